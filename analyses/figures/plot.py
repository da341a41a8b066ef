"""Plots of curves and points as plain data, for paper (matplotlib), notebooks (plotly) and the viewer's page."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from sparselens.analyses.figures.palette import MODELS


@dataclass(frozen=True)
class Series:
    """One curve, or separate points if `joined` is false.

    Raises:
        ValueError: it is empty, contains NaN or infinity, its columns differ in length, or its model is unknown.
    """

    name: str
    model: str  # a key of `palette.MODELS`, which sets colour and marker
    x: tuple[float, ...] = field(repr=False)
    y: tuple[float, ...] = field(repr=False)
    dotted: bool = False
    joined: bool = True
    low: tuple[float, ...] = field(default=(), repr=False)  # 95 % interval of every y; empty if unknown
    high: tuple[float, ...] = field(default=(), repr=False)
    labels: tuple[str, ...] = field(default=(), repr=False)  # labels of the points, such as k = 1

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ValueError(f"series {self.name!r} has model {self.model!r}: want one of {', '.join(MODELS)}")
        if not self.x:
            raise ValueError(f"series {self.name!r} is empty: leave it out, or give it at least one point")
        for column in ("y", "low", "high", "labels"):
            n = len(getattr(self, column))
            if n != len(self.x) and (n or column == "y"):
                raise ValueError(f"series {self.name!r} has {len(self.x)} x and {n} {column}: want equally many")
        if bool(self.low) != bool(self.high):
            raise ValueError(f"series {self.name!r} has only one end of its intervals: want low and high, or neither")
        for column in ("x", "y", "low", "high"):
            if bad := [value for value in getattr(self, column) if not isfinite(value)]:
                raise ValueError(f"series {self.name!r} has {bad[0]} in {column}: leave such points out")


@dataclass(frozen=True)
class Plot:
    """The content of one panel; its numbers are the same as in the tables.

    Raises:
        ValueError: there is no series, or a log axis cannot show one of them.
    """

    name: str  # file name without suffix, such as "edges_needed"
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    percent_y: bool = False
    guides: tuple[float, ...] = ()  # y of horizontal lines
    notes: Sequence[str] = field(default=())  # written inside the panel, such as a ratio and its interval
    percent_x: bool = False

    def __post_init__(self) -> None:
        if not self.series:
            raise ValueError(f"plot {self.name!r} has no series: want at least one")
        for series in self.series:
            if self.log_x and min(series.x) <= 0:
                raise ValueError(f"series {series.name!r} has x = {min(series.x):g}, which a log axis cannot show")

    def save(self, path: str | Path, width: float = 3.25, dpi: int = 300) -> Path:
        """Write a .pdf, .svg or .png for paper, `width` inches wide, either completely or not at all.

        Curves of more than 400 points are thinned without visible change; the first and last point stay. Labels of
        points are left out if all space around the point is taken by other text.
        """
        from sparselens.analyses.figures.plot_drawing import save_plots

        this: Any = self  # type checkers see this class under two module names
        return save_plots([this], path, width, dpi)

    def plotly(self) -> Any:
        """The plotly Figure for a notebook, thinned as in `save`.

        `figure.write_html(path, include_plotlyjs=True)` writes a page that does not load plotly from the network.
        """
        from sparselens.analyses.figures.plot_plotly import plotly_figure

        this: Any = self
        return plotly_figure(this)

    def _repr_png_(self) -> bytes:
        from sparselens.analyses.figures.plot_drawing import picture

        this: Any = self
        return picture([this], width=3.25, form="png", dpi=220)


def curve(title: str, x: Sequence[float | int], y: Sequence[float], labels: tuple[str, str], **options: Any) -> Plot:
    """A plot of one curve, without points that are not finite or that a log axis cannot show.

    Args:
        labels: labels of the x and y axis
        options: other fields of `Plot`
    """
    least = 0 if options.get("log_x") else -1
    shown = [(float(at), float(value)) for at, value in zip(x, y, strict=True) if isfinite(value) and at > least]
    series = Series(title, "sparse", tuple(at for at, _ in shown), tuple(value for _, value in shown))
    return Plot(title.lower().replace(" ", "_"), title, *labels, (series,), percent_y=True, **options)
