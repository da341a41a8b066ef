"""Draws plots for paper: a row of panels under one legend, as .pdf, .svg or .png.

The legend goes above the panels, titles and axis labels are wrapped to fit, and the panels share the remaining space.
Only then are ticks chosen, and notes and labels placed in empty space.
"""

from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np

from sparselens.analyses.figures import paper
from sparselens.analyses.figures.palette import INK, MODELS, QUIET
from sparselens.analyses.figures.paper import DPI, SIZE, literal, style, text_size
from sparselens.analyses.figures.plot import Plot, Series
from sparselens.analyses.figures.plot_places import Box, Label, cloud, corner_box, place_labels, place_note
from sparselens.analyses.figures.plot_ticks import set_ticks
from sparselens.analyses.figures.thinning import thinned
from sparselens.files.whole import write_file

LINE, MARKER = 1.1, 3.8  # points
NARROWEST = 1.2  # smallest width of a panel, in inches


def save_plots(plots: Sequence[Plot], path: str | Path, width: float = 6.75, dpi: int = 300) -> Path:
    """Write plots side by side into one .pdf, .svg or .png, `width` inches wide, either completely or not at all.

    Several panels get letters and share one legend. Curves of more than 400 points are thinned without visible change;
    the first and last point stay.

    >>> save_plots([edges_needed_plot(comparison), kept_plot(comparison)], "figure.pdf")

    Raises:
        ValueError: there is no plot, too little width, or the format is not supported.
    """
    path = Path(path)
    form = paper.form_of(path)
    return write_file(path, picture(plots, width, form, dpi))


def picture(plots: Sequence[Plot], width: float, form: str, dpi: int) -> bytes:
    """The file content that `save_plots` writes."""
    with style():
        return paper.encoded(draw(plots, width), form, dpi)


def draw(plots: Sequence[Plot], width: float) -> Any:
    """The matplotlib Figure that `save_plots` writes."""
    if not plots or width / len(plots) < NARROWEST:
        raise ValueError(f"{len(plots)} plots in {width:g} inches: want at least one, each {NARROWEST} inches or wider")
    figure = paper.measured_figure(width, 1.0)
    panels = list(figure.subplots(1, len(plots), squeeze=False)[0])
    shown = [[thinned(series, plot.log_x) for series in plot.series] for plot in plots]
    for axes, plot, series in zip(panels, plots, shown, strict=True):
        _draw_panel(axes, plot, series)
    _lay_out(figure, panels, plots)
    for axes, plot, series in zip(panels, plots, shown, strict=True):
        _write_inside(axes, plot, series)
        set_ticks(axes, plot)
    return figure


def _draw_panel(axes: Any, plot: Plot, series: Sequence[Series]) -> None:
    axes.set_xscale("log" if plot.log_x else "linear")
    for guide in plot.guides:
        axes.axhline(guide, color=QUIET, lw=0.5, zorder=0.5)
    for place, one in enumerate(series):
        _draw_series(axes, one, place)
    axes.set_xlim(*_limits([x for one in series for x in one.x], plot.log_x))
    heights = [y for one in series for y in (*one.y, *one.low, *one.high)]
    axes.set_ylim(*_limits([*heights, *plot.guides, *_zero(heights)]))
    paper.plain_axes(axes)


def _draw_series(axes: Any, series: Series, place: int) -> None:
    look = _look(series)
    many = len(series.x) > 12
    if series.low and series.joined:
        axes.fill_between(series.x, series.low, series.high, color=look["color"], alpha=0.18, lw=0, zorder=1)
    elif series.low:
        axes.vlines(series.x, series.low, series.high, color=look["color"], lw=0.9, zorder=2)
        for ends in (series.low, series.high):
            axes.plot(series.x, ends, ls="none", marker="_", color=look["color"], markersize=MARKER, mew=0.7, zorder=2)
    every = (0.04 + 0.03 * (place % 4), 0.16) if many and series.joined else None  # as shares of the diagonal
    axes.plot(series.x, series.y, markevery=every, zorder=3, **look)


def _look(series: Series) -> dict[str, Any]:
    ink = MODELS[series.model]
    line = (0, (1, 1.4)) if series.dotted else "solid"
    return {
        "color": ink.light,
        "linestyle": line if series.joined else "none",
        "lw": LINE,
        "marker": ink.marker,
        "markersize": MARKER * (0.8 if ink.marker == "D" else 1),  # a diamond's width is its diagonal
        "markeredgewidth": 0.9,
        "markerfacecolor": "white" if ink.marker == "o" or series.dotted else ink.light,
    }


def _limits(values: Sequence[float], log: bool = False) -> tuple[float, float]:
    ends = np.array([min(values), max(values)])
    ends = np.log(ends) if log else ends
    margin = 0.05 * (ends[1] - ends[0]) or (0.7 if log else max(abs(ends[0]), 1) / 2)
    low, high = ends + np.array([-margin, margin])
    return (float(np.exp(low)), float(np.exp(high))) if log else (float(low), float(high))


def _zero(heights: Sequence[float]) -> tuple[float, ...]:
    """Include zero in the axis if the numbers come near it."""
    return (0.0,) if 0 <= min(heights) < 0.4 * max(heights) else ()


def _lay_out(figure: Any, panels: Sequence[Any], plots: Sequence[Plot]) -> None:
    """Place the legend, then panels of equal height, with titles and labels wrapped to fit."""
    width = figure.get_size_inches()[0]
    legend = _draw_legend(figure, plots)
    height = min(max(0.62 * width / len(plots), 1.6), 2.3)
    for _ in range(2):  # labels need the panel's size, and change it
        for place, (axes, plot) in enumerate(zip(panels, plots, strict=True)):
            _write_around(axes, plot, ascii_lowercase[place] if len(plots) > 1 else "")
            set_ticks(axes, plot)
        lines = max(axes.get_title(loc="left").count("\n") + 1 for axes in panels)
        title = lines * 1.3 * SIZE / 72
        paper.fit_layout(figure, width, height + legend + title, legend)


def _draw_legend(figure: Any, plots: Sequence[Plot]) -> float:
    """Draw the legend; returns its height in inches."""
    from matplotlib.lines import Line2D

    entries: dict[tuple[str, str, bool], Series] = {}
    for series in [series for plot in plots for series in plot.series]:
        key = series.name, series.model, series.dotted
        entries[key] = series if series.joined else entries.get(key, series)  # a line shows more than a point
    room = DPI * figure.get_size_inches()[0] - 40 * DPI / 72
    names = [_wrapped(figure.axes[0], series.name, room) for series in entries.values()]
    handles = [Line2D([], [], **_look(series)) for series in entries.values()]
    return paper.legend_above(figure, handles, names, handlelength=2.2, columnspacing=1.4)


def _write_around(axes: Any, plot: Plot, letter: str) -> None:
    box = axes.get_window_extent()
    for text in [text for text in axes.texts if text.get_gid() == "letter"]:
        text.remove()
    look = {"size": SIZE, "color": INK, "parse_math": False}
    axes.set_xlabel(_wrapped(axes, plot.x_label, box.width), labelpad=2, **look)
    axes.set_ylabel(_wrapped(axes, plot.y_label, box.height), labelpad=2, **look)
    axes.set_title(_wrapped(axes, plot.title, box.width), loc="left", pad=5, **look)
    if letter:
        above = 5 + 1.2 * SIZE * axes.get_title(loc="left").count("\n")
        paper.write_letter(axes, letter, above)


def _wrapped(axes: Any, text: str, width: float) -> str:
    """Wrap a text to lines of at most `width` pixels; only words longer than a line are split."""
    lines = [""]
    for word in literal(text).split(" "):
        for place, piece in enumerate(_pieces(axes, word, width)):
            longer = f"{lines[-1]} {piece}".strip()
            if not lines[-1] or (place == 0 and text_size(axes, longer)[0] <= width):
                lines[-1] = longer
            else:
                lines.append(piece)
    return "\n".join(lines)


def _pieces(axes: Any, word: str, width: float) -> list[str]:
    too_wide = text_size(axes, word)[0] / width
    n = len(word) if too_wide <= 1 else max(1, int(0.9 * len(word) / too_wide))
    return [word[start : start + n] for start in range(0, len(word), n or 1)]


def _write_inside(axes: Any, plot: Plot, series: Sequence[Series]) -> None:
    words = [_write_notes(axes, plot, series)] if plot.notes else []
    taken = cloud(axes, plot, series)
    labels = [
        Label(literal(text), (x, y), MODELS[one.model].light)
        for one in series
        for text, x, y in zip(one.labels, one.x, one.y, strict=False)
        if text
    ]
    for label, box in place_labels(axes, labels, taken, words):
        _write_label(axes, label, box)


def _write_notes(axes: Any, plot: Plot, series: Sequence[Series]) -> Box:
    text = "\n".join(_wrapped(axes, note, 0.9 * axes.get_window_extent().width) for note in plot.notes)
    size = text_size(axes, text)
    corner = place_note(axes, plot, series, size)
    box = corner_box(axes, size, corner)
    x, y = axes.transAxes.inverted().transform((box[2 * corner[0]], box[1 + 2 * corner[1]]))
    align = {"ha": ("left", "right")[corner[0]], "va": ("bottom", "top")[corner[1]]}
    axes.text(x, y, text, transform=axes.transAxes, size=SIZE, color=INK, parse_math=False, gid="note", **align)
    return box


def _write_label(axes: Any, label: Label, box: Box) -> None:
    middle = axes.transData.transform(label.at)
    offset = 72 / DPI * (np.array([box[0] + box[2], box[1] + box[3]]) / 2 - middle)
    axes.annotate(
        label.text, label.at, tuple(offset), "data", "offset points", ha="center", va="center", size=SIZE,
        color=label.colour, parse_math=False, gid="label",
    )  # fmt: skip
