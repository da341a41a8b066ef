"""Round tick values, as many as fit; the y axis also has a tick at every guide line."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from sparselens.analyses.figures.paper import SIZE, text_size
from sparselens.analyses.figures.plot import Plot

Ticks = list[float]


def set_ticks(axes: Any, plot: Plot) -> None:
    """Set the ticks of both axes. Call it when the limits and the size of the panel are final."""
    box = axes.get_window_extent()
    points = 72 / axes.get_figure().dpi
    low, high = axes.get_xlim()
    whole = all(float(x).is_integer() for series in plot.series for x in series.x)
    fits = partial(clear_along_x, axes, percent=plot.percent_x)
    x = log_ticks(low, high, fits) if plot.log_x else linear_ticks(low, high, fits, whole)
    axes.set_xticks(x, labels=[number(tick, plot.percent_x) for tick in x])
    if plot.log_x:
        set_small_ticks(axes.xaxis)
    bottom, top = axes.get_ylim()
    y = _with_guides(axes, plot, linear_ticks(bottom, top, lambda ticks: bool(12 * len(ticks) < points * box.height)))
    axes.set_yticks(y, labels=[number(tick, plot.percent_y) for tick in y])


def clear_along_x(axes: Any, ticks: Ticks, percent: bool = False, gap: float = 3.0) -> bool:
    """Whether the tick labels along x are at least `gap` points apart."""
    middle = axes.transData.transform([(tick, 1) for tick in ticks])[:, 0]
    half = np.array([text_size(axes, number(tick, percent))[0] / 2 for tick in ticks])
    return bool(np.all(np.diff(middle) - half[1:] - half[:-1] > gap * axes.get_figure().dpi / 72))


def clear_along_y(axes: Any, ticks: Ticks) -> bool:
    """Whether the tick labels along y do not overlap."""
    at = axes.transData.transform([(axes.get_xlim()[1], tick) for tick in ticks])[:, 1]
    return bool(np.all(np.abs(np.diff(at)) * 72 / axes.get_figure().dpi > 1.5 * SIZE))


def number(value: float, percent: bool = False) -> str:
    """Format a tick label: 0.01, 10,000, 50 %."""
    text = f"{100 * value if percent else value:,.10g}".replace("-", "\N{MINUS SIGN}")
    return f"{text} %" if percent else text


def linear_ticks(low: float, high: float, fits: Callable[[Ticks], bool], whole: bool = False) -> Ticks:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten between the limits, as many as fit."""
    from matplotlib.ticker import MaxNLocator

    for n in (7, 6, 5, 4, 3, 2, 1):
        found = MaxNLocator(n, steps=[1, 2, 2.5, 5, 10], integer=whole).tick_values(low, high)
        ticks = [float(np.round(tick, 12)) for tick in found if low <= tick <= high]
        if fits(ticks):
            return ticks
    return ticks[:1]


def log_ticks(low: float, high: float, fits: Callable[[Ticks], bool]) -> Ticks:
    """Powers of ten, or every second or third if not all fit; with 2 and 5 times each if there are few."""
    for ticks in (_multiples(low, high, (1, 2, 5)), *(_multiples(low, high, (1,))[::step] for step in (1, 2, 3, 4))):
        if ticks and fits(ticks) and (len(ticks) < 7 or ticks[1] / ticks[0] > 9):
            return ticks
    return linear_ticks(low, high, fits)


def symlog_ticks(low: float, high: float, fits: Callable[[Ticks], bool], linear: float) -> Ticks:
    """Zero, powers of ten on both sides, and numbers between them if there are few; each only if it still fits.

    Args:
        linear: the power of ten below which the axis is linear
    """
    first, kept = round(np.log10(linear)), Ticks()
    for multiple in (0, 1, 5, 2):
        if multiple > 1 and len(kept) > 3:
            break
        sizes = [float(f"{multiple}e{power}") for power in range(first, first + 9)]
        for tick in (sign * size for size in sizes for sign in (1, -1)):
            if low <= tick <= high and tick not in kept and fits(sorted([*kept, tick])):
                kept.append(tick)
    return sorted(kept)


def _multiples(low: float, high: float, of: Sequence[int]) -> Ticks:
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    return [tick for tick in (float(f"{m}e{power}") for power in powers for m in of) if low <= tick <= high]


def set_small_ticks(axis: Any) -> None:
    """Add unlabelled ticks between the powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_minor_locator(LogLocator(subs=tuple(range(2, 10)), numticks=50))
    axis.set_minor_formatter(NullFormatter())


def _with_guides(axes: Any, plot: Plot, ticks: Ticks) -> Ticks:
    """Add the guides to the ticks, without ticks too close to a guide, or above 100 % if no value is."""
    points = 72 / axes.get_figure().dpi
    values = [y for series in plot.series for y in (*series.y, *series.high)]
    if plot.percent_y and max(values) <= 1.0001:
        ticks = [tick for tick in ticks if tick < 1.0001]

    def away(tick: float, guide: float) -> bool:
        (_, one), (_, other) = axes.transData.transform([(1, tick), (1, guide)])
        return bool(abs(one - other) * points > SIZE)

    kept = [tick for tick in ticks if all(away(tick, guide) for guide in plot.guides)]
    return sorted({*kept, *plot.guides})
