"""Plots as plotly figures, for notebooks.

By default plotly writes pages that load its script from a CDN; `figure.write_html(path, include_plotlyjs=True)` writes
one file (about 5 MB) that needs no network.
"""

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from sparselens.analyses.figures.palette import INK, MODELS, QUIET, RULE
from sparselens.analyses.figures.plot import Plot, Series
from sparselens.analyses.figures.thinning import thinned
from sparselens.analyses.figures.token_layout import printable

SYMBOLS = {"o": "circle-open", "s": "square", "^": "triangle-up", "D": "diamond"}


def plotly_figure(plot: Plot) -> Any:
    """The plot as an interactive plotly Figure; see `Plot.plotly`."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for series in plot.series:
        for trace in _traces(thinned(series, plot.log_x), plot):
            figure.add_trace(trace)
    for guide in plot.guides:
        figure.add_hline(y=guide, line={"color": QUIET, "width": 1})
    figure.update_layout(
        **look(plot.title, plot.notes),
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        xaxis=axis(plot.x_label, plot.percent_x) | {"type": "log" if plot.log_x else "linear"},
        yaxis=axis(plot.y_label, plot.percent_y),
    )
    return figure


def escaped(text: str) -> str:
    """Escape a text so that plotly shows it literally, without tags or formulas."""
    return html.escape(printable(text)).replace("$", "&#36;")


def _traces(series: Series, plot: Plot) -> list[Any]:
    import plotly.graph_objects as go

    ink = MODELS[series.model].light
    shown: dict[str, Any] = {
        "x": series.x,
        "y": series.y,
        "name": escaped(series.name),
        "legendgroup": escaped(series.name),
        "mode": _mode(series),
        "line": {"color": ink, "dash": "dot" if series.dotted else "solid", "width": 2},
        "marker": {"color": ink, "symbol": SYMBOLS[MODELS[series.model].marker], "size": 8},
        "text": [escaped(label) for label in series.labels] or None,
        "cliponaxis": False,  # otherwise the last label is cut off
        "textposition": "top right",
        "textfont": {"color": ink},
        "hovertemplate": f"{_form('x', plot.percent_x)}, {_form('y', plot.percent_y)}",
    }
    if series.low and not series.joined:
        y, low, high = (np.array(column) for column in (series.y, series.low, series.high))
        shown["error_y"] = {"array": np.maximum(high - y, 0), "arrayminus": np.maximum(y - low, 0), "color": ink}
    band = _band(series, ink) if series.low and series.joined else []
    return [*band, go.Scatter(**shown)]


def _mode(series: Series) -> str:
    parts = ["lines"] if series.joined else []
    parts += ["markers"] if len(series.x) <= 30 or not series.joined else []
    return "+".join([*parts, *(["text"] if any(series.labels) else [])])


def _band(series: Series, ink: str) -> list[Any]:
    """The two ends of the intervals, with the area between them filled."""
    import plotly.graph_objects as go

    red, green, blue = (int(ink[i : i + 2], 16) for i in (1, 3, 5))
    thin = {
        "x": series.x,
        "mode": "lines",
        "line": {"width": 0, "color": ink},
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": escaped(series.name),
    }
    fill = {"fill": "tonexty", "fillcolor": f"rgba({red}, {green}, {blue}, 0.18)"}
    return [go.Scatter(y=series.high, **thin), go.Scatter(y=series.low, **thin, **fill)]


def _form(name: str, percent: bool) -> str:
    return f"%{{{name}:.3~%}}" if percent else f"%{{{name}:,.6~g}}"


def axis(label: str, percent: bool = False) -> dict[str, Any]:
    """Settings of an axis, shared by all plotly figures here."""
    return {
        "title": {"text": escaped(label)},
        "tickformat": ".3~%" if percent else None,
        "gridcolor": RULE,
        "linecolor": QUIET,
        "ticks": "outside",
        "zeroline": False,
    }


def look(title: str, notes: Sequence[str] = ()) -> dict[str, Any]:
    """Layout settings shared by all plotly figures here; notes are small lines below the title."""
    small = [f'<br><span style="font-size:0.75em">{escaped(note)}</span>' for note in notes]
    return {
        "title": {"text": escaped(title) + "".join(small)},
        "template": "plotly_white",
        "font": {"color": INK},
        "margin": {"l": 60, "r": 20, "t": 90 + 14 * len(notes), "b": 50},
    }
