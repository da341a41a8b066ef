"""A plot of curves and points as plain data: drawn once for paper, once for notebooks, once for the page."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from sparselens.analyses.figures.palette import MODELS


@dataclass(frozen=True)
class Series:
    """One curve, or points where `joined` is false.

    Raises:
        ValueError: it is empty, holds NaN or infinity, its columns differ in length, or its model is unknown.
    """

    name: str
    model: str  # a key of `palette.MODELS`: what it is the curve of
    x: tuple[float, ...] = field(repr=False)
    y: tuple[float, ...] = field(repr=False)
    dotted: bool = False
    joined: bool = True
    low: tuple[float, ...] = field(default=(), repr=False)  # 95 % interval of every y; none: not known
    high: tuple[float, ...] = field(default=(), repr=False)
    labels: tuple[str, ...] = field(default=(), repr=False)  # of the points, such as k = 1

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ValueError(f"series {self.name!r} is of model {self.model!r}: want one of {', '.join(MODELS)}")
        if not self.x:
            raise ValueError(f"series {self.name!r} is empty: leave it out, or give it at least one point")
        for column in ("y", "low", "high", "labels"):
            n = len(getattr(self, column))
            if n != len(self.x) and (n or column == "y"):
                raise ValueError(f"series {self.name!r} has {len(self.x)} x and {n} {column}: want as many")
        if bool(self.low) != bool(self.high):
            raise ValueError(f"series {self.name!r} has one end of its intervals: want low and high, or neither")
        for column in ("x", "y", "low", "high"):
            if bad := [value for value in getattr(self, column) if not isfinite(value)]:
                raise ValueError(f"series {self.name!r} has {bad[0]} among its {column}: leave such points out")


@dataclass(frozen=True)
class Plot:
    """The content of one panel; its numbers are those of the tables.

    Raises:
        ValueError: there is no series, or one that a log axis cannot show.
    """

    name: str  # of its file, such as "edges_needed"
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    percent_y: bool = False
    guides: tuple[float, ...] = ()  # y of horizontal lines
    notes: Sequence[str] = field(default=())  # printed inside, such as a ratio and its interval
    percent_x: bool = False

    def __post_init__(self) -> None:
        if not self.series:
            raise ValueError(f"plot {self.name!r} has no series: nothing can be drawn")
        for series in self.series:
            if self.log_x and min(series.x) <= 0:
                raise ValueError(f"series {series.name!r} has x = {min(series.x):g}, which a log axis cannot show")

    def save(self, path: str | Path, width: float = 3.25, dpi: int = 300) -> Path:
        """Write a .pdf, .svg or .png for paper, `width` inches wide, completely or not at all.

        Curves of more than 400 points are thinned invisibly; the first and the last point stay. A
        label of a point is left out where other words fill all places around it.
        """
        from sparselens.analyses.figures.plot_drawing import save_plots

        this: Any = self  # type checkers meet this class under two names
        return save_plots([this], path, width, dpi)

    def plotly(self) -> Any:
        """The plotly Figure for a notebook, thinned like `save`.

        `figure.write_html(path, include_plotlyjs=True)` keeps a page from asking the network for plotly.
        """
        from sparselens.analyses.figures.plot_plotly import plotly_figure

        this: Any = self
        return plotly_figure(this)

    def _repr_png_(self) -> bytes:
        from sparselens.analyses.figures.plot_drawing import picture

        this: Any = self
        return picture([this], width=3.25, form="png", dpi=220)


def curve(title: str, x: Sequence[float | int], y: Sequence[float], labels: tuple[str, str], **options: Any) -> Plot:
    """A plot of one curve, without the points that cannot be shown.

    Args:
        labels: of x and y
        options: other fields of `Plot`
    """
    least = 0 if options.get("log_x") else -1
    shown = [(float(at), float(value)) for at, value in zip(x, y, strict=True) if isfinite(value) and at > least]
    series = Series(title, "sparse", tuple(at for at, _ in shown), tuple(value for _, value in shown))
    return Plot(title.lower().replace(" ", "_"), title, *labels, (series,), percent_y=True, **options)
