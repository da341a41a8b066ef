"""Draws a run: one panel for every quantity in its records, all against the step, under one legend.

The loss is drawn as its difference from the dense model's loss. If this is much larger than the target's difference,
the axis is linear near zero and logarithmic beyond: a run may start nats away and end within hundredths of its target.
"""

from collections.abc import Sequence
from functools import partial
from math import ceil, floor, isfinite, log10
from string import ascii_lowercase
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from sparselens.analyses.figures import paper
from sparselens.analyses.figures.palette import INK, MODELS, QUIET
from sparselens.analyses.figures.paper import SIZE, literal
from sparselens.analyses.figures.plot_ticks import (
    Ticks,
    clear_along_x,
    clear_along_y,
    linear_ticks,
    log_ticks,
    number,
    set_small_ticks,
    symlog_ticks,
)

Records = Sequence[dict[str, Any]]

PANEL = 1.9, 1.45  # inches: smallest width, and height
CURVE, DENSE = MODELS["sparse"].light, MODELS["dense"].light
PALE = "#dfeaf4"  # colour of the smallest share above zero
SMALLEST = 1e-5  # smaller shares have the same colour
SHORT = 60  # characters of an event that fit the legend
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Panel(NamedTuple):
    """The quantity that one panel shows, and its axis."""

    key: str
    title: str
    label: str
    log: bool = False
    percent: bool = False


LAYERS = Panel("share_per_layer", "open edges by layer", "layer")
RATE = Panel("learning_rate", "learning rate", "")
PANELS = (
    Panel("loss", "held-out loss", "nats per token"),
    Panel("share_of_visible_pairs", "open edges", "share of visible pairs", log=True, percent=True),
    Panel("multiplier", "multiplier", "relative edges per nat", log=True),
    Panel("gate_bias", "gate bias", "added to scores"),
    RATE,
    LAYERS,
)


def draw_training(records: Records, step: int | None, width: float) -> Any:
    """The matplotlib Figure of a run; `step` is the step of the returned state, if known."""
    panels = [panel for panel in PANELS if _column(records, panel)]
    columns = min(len(panels), max(1, int(width / PANEL[0])))
    rows = ceil(len(panels) / columns)
    figure = paper.measured_figure(width, rows * PANEL[1])
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[len(panels) :]:
        axes.remove()
    drawn = [(_draw(axes, panel, records, step), axes, panel) for axes, panel in zip(grid, panels, strict=False)]
    for place, (_, axes, panel) in enumerate(drawn):
        letter = ascii_lowercase[place] if len(drawn) > 1 else ""
        _write_around(axes, panel, records, letter, last=place + columns >= len(drawn))
    _lay_out(figure, drawn, _draw_legend(figure, records, step))
    return figure


def _column(records: Records, panel: Panel) -> list[tuple[int, Any]]:
    """(step, value) of every record that has a value which the panel can show."""
    found = [(record["step"], record[panel.key]) for record in records if panel.key in record]
    if panel is LAYERS:
        return [(step, shares) for step, shares in found if shares]
    return [(step, value) for step, value in found if isfinite(value) and (value > 0 or not panel.log)]


# -- one panel


def _draw(axes: Any, panel: Panel, records: Records, step: int | None) -> Any:
    """Draw a panel; returns the axes of its colour scale, if it has one."""
    paper.plain_axes(axes)
    axes.set_xlim(*_x_limits(records))
    for record in records:
        if "event" in record:
            axes.axvline(record["step"], **_event_look())
    if panel is LAYERS:
        return _draw_layers(axes, records)
    _draw_curve(axes, panel, records, step)
    return None


def _x_limits(records: Records) -> tuple[float, float]:
    first, last = records[0]["step"], records[-1]["step"]
    margin = 0.03 * (last - first) or 0.5
    return first - margin, last + margin


def _event_look() -> dict[str, Any]:
    return {"color": INK, "linewidth": 0.5, "linestyle": (0, (4, 2)), "zorder": 2.5}


def _draw_curve(axes: Any, panel: Panel, records: Records, step: int | None) -> None:
    above = _draw_target(axes, records) if panel.key == "loss" else 0.0
    column = _column(records, panel)
    scale = 10.0 ** _power(column) if panel is RATE else 1.0
    column = [(at, (value - above) / scale) for at, value in column]
    size = min(3.2, 0.8 + 90 / len(column))
    axes.plot(*zip(*column, strict=True), color=CURVE, lw=0.9, zorder=3)
    missed = {record["step"] for record in records if not record.get("feasible", True)}
    for group, look in _point_looks(size).items():
        points = [(at, value) for at, value in column if (at in missed) == (group == "missed")]
        axes.plot(*zip(*points, strict=True) if points else ([], []), ls="none", zorder=4, **look)
    if panel.key in ("loss", "share_of_visible_pairs"):
        axes.plot(*zip(*[point for point in column if point[0] == step] or [((), ())], strict=True), **_returned_look())
    if panel.log:
        axes.set_yscale("log")
    low, high = (edge([value for _, value in column]) for edge in (min, max))
    if low == high and panel.key != "loss":
        axes.set_ylim(*((low / 3, low * 3) if panel.log else (low - 1.1, low + 1.1)))


def _power(column: Sequence[tuple[int, Any]]) -> int:
    """The power of ten by which the values are divided, since learning rates are small."""
    top = max(value for _, value in column)
    return floor(log10(top)) if top > 0 else 0


def _point_looks(size: float) -> dict[str, dict[str, Any]]:
    look = {"marker": "s", "color": CURVE, "markersize": size, "markeredgewidth": 0.7}
    return {"met": look, "missed": {**look, "markerfacecolor": "white"}}


def _returned_look() -> dict[str, Any]:
    return {
        "ls": "none", "marker": "*", "markersize": 8, "color": DENSE, "markeredgecolor": "white",
        "markeredgewidth": 0.6, "zorder": 5,
    }  # fmt: skip


def _draw_target(axes: Any, records: Records) -> float:
    """Draw the lines of dense loss and target; returns the dense loss, which is the panel's zero, or 0 if unknown."""
    dense = records[-1].get("dense_loss", 0.0)
    if dense:
        axes.axhline(0, **_dense_look())
    known = [(record["step"], record["target"] - dense) for record in records if "target" in record]
    if known:
        axes.plot(*zip(*known, strict=True), **_target_look())
    distance = abs(known[-1][1]) if known else 0.0
    near = 10.0 ** floor(log10(distance)) if distance > 1e-6 else 0.01
    if dense and max(abs(record["loss"] - dense) for record in records) > 10 * near:
        axes.set_yscale("symlog", linthresh=near)
    return dense


def _dense_look() -> dict[str, Any]:
    return {"color": DENSE, "lw": 0.9, "ls": (0, (1, 1.2)), "zorder": 2}


def _target_look() -> dict[str, Any]:
    return {"color": INK, "lw": 0.7, "zorder": 2}


def _draw_layers(axes: Any, records: Records) -> Any:
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    steps, shares = zip(*_column(records, LAYERS), strict=True)
    values = np.ma.masked_less_equal(np.array(shares, dtype=float).T, 0)
    top = float(values.max()) if values.count() else 1.0
    low = max(min(float(values.min()), 0.5 * top), min(SMALLEST, 0.5 * top)) if values.count() else 0.1
    colours = LinearSegmentedColormap.from_list("shares", [PALE, MODELS["sparse"].dark, CURVE])
    mesh = axes.pcolormesh(
        _edges(steps), np.arange(len(values) + 1) - 0.5, values, cmap=colours, norm=LogNorm(low, top),
        rasterized=values.size > 4000,
    )  # fmt: skip
    axes.set_ylim(-0.5, len(values) - 0.5)  # upward, as in every other figure
    bar = axes.get_figure().colorbar(mesh, ax=axes, pad=0.03, aspect=18, use_gridspec=False)
    bar.outline.set(linewidth=0.4, edgecolor=QUIET)
    bar.ax.tick_params(color=QUIET, labelcolor=INK, width=0.6, length=2, pad=2, labelsize=SIZE)
    bar.ax.minorticks_off()
    bar.set_label("share of visible pairs", size=SIZE, color=INK, labelpad=2)
    return bar.ax


def _edges(steps: Sequence[int]) -> Float[np.ndarray, " edge"]:
    """The edges of the columns: half way between neighbouring evaluations."""
    at = np.array(steps, dtype=float)
    if len(at) == 1:
        return np.array([at[0] - 0.5, at[0] + 0.5])
    return np.concatenate([at[:1], (at[1:] + at[:-1]) / 2, at[-1:]])


# -- texts and ticks


def _write_around(axes: Any, panel: Panel, records: Records, letter: str, last: bool) -> None:
    look = {"size": SIZE, "color": INK, "parse_math": False}
    axes.set_ylabel(_label(panel, records), labelpad=2, **look)
    closed = panel is LAYERS and any(0 in shares for _, shares in _column(records, panel))
    axes.set_title(f"{panel.title}{' (white: none)' if closed else ''}", loc="left", pad=5.5, **look)
    if last:
        axes.set_xlabel("step", labelpad=2, **look)
    if letter:
        paper.write_letter(axes, letter, 5.5)


def _label(panel: Panel, records: Records) -> str:
    if panel.key == "loss" and records[-1].get("dense_loss"):
        return f"{panel.label}\nabove dense"
    if panel is RATE:
        return f"\N{MULTIPLICATION SIGN} 10{str(_power(_column(records, panel))).translate(_SUPERSCRIPTS)}"
    return panel.label


def _draw_legend(figure: Any, records: Records, step: int | None) -> float:
    """Draw the legend; returns its height in inches."""
    from matplotlib.lines import Line2D

    names, looks = zip(*_entries(records, step), strict=True)
    handles = [Line2D([], [], **look) for look in looks]
    return paper.legend_above(figure, handles, [literal(name) for name in names], handlelength=1.8, columnspacing=1.2)


def _entries(records: Records, step: int | None) -> list[tuple[str, dict[str, Any]]]:
    last, looks = records[-1], _point_looks(3.2)
    line = {"lw": 0.9}
    known = {bool(record["feasible"]) for record in records if "feasible" in record}
    names = {True: ("met", "meets the target"), False: ("missed", "misses the target")}
    entries = [(name, looks[group] | line) for meets, (group, name) in names.items() if meets in known]
    if not known:
        entries.append(("evaluation", looks["met"] | line))
    if step is not None and step in {record["step"] for record in records}:
        entries.append((f"returned state (step {number(float(step))})", _returned_look()))
    if "target" in last:
        entries.append((f"target {last['target']:.4f}", _target_look()))
    if last.get("dense_loss"):
        entries.append((f"dense model {last['dense_loss']:.4f}", _dense_look()))
    events = [record["event"] for record in records if "event" in record]
    if events:
        short = len(events) == 1 and len(events[0]) <= SHORT
        name = events[0] if short else f"{len(events)} event{'s' * (len(events) > 1)}, see the log"
        entries.append((name, _event_look()))
    return entries


def _lay_out(figure: Any, drawn: Sequence[tuple[Any, Any, Panel]], legend: float) -> None:
    width, height = figure.get_size_inches()
    for _ in range(2):  # ticks need the size of a panel, and change it
        for bar, axes, panel in drawn:
            _set_ticks(axes, panel)
            if bar is not None:
                _set_numbers(bar, _log_ticks(bar), percent=True)
        paper.fit_layout(figure, width, height + legend, legend)


def _set_ticks(axes: Any, panel: Panel) -> None:
    first, last = axes.get_xlim()
    steps = linear_ticks(first, last, partial(clear_along_x, axes, gap=4.0), whole=True)
    axes.set_xticks(steps, labels=[number(step) for step in steps])
    (low, high), room = sorted(axes.get_ylim()), partial(clear_along_y, axes)
    if axes.get_yscale() == "symlog":
        ticks = symlog_ticks(low, high, room, axes.yaxis.get_transform().linthresh)
    elif panel.log:
        ticks = _log_ticks(axes)
        set_small_ticks(axes.yaxis)
    else:
        ticks = linear_ticks(low, high, room, whole=panel is LAYERS)
    _set_numbers(axes, ticks, panel.percent)


def _set_numbers(axes: Any, ticks: Ticks, percent: bool) -> None:
    axes.set_yticks(ticks, labels=[number(tick, percent) for tick in ticks])


def _log_ticks(axes: Any) -> Ticks:
    """Ticks of a log axis; with fewer than two powers of ten, equal steps, since one number does not show a scale."""
    (low, high), room = axes.get_ylim(), partial(clear_along_y, axes)
    ticks = log_ticks(low, high, room)
    return ticks if len(ticks) > 1 else linear_ticks(low, high, room)
