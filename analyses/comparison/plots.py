"""The paper's curves, as plots of a comparison's numbers.

1. loss_plot: loss against the share of open attention edges (Fig. 2a).
2. kept_plot: share of the metric that the top components keep (Fig. 3a, b).
3. edges_needed_plot: share of attribution in the largest edges (Figs. 4a, 5).
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.circuits.stability import ShareCurves, share_curves
from sparselens.analyses.comparison.model_results import ModelResults
from sparselens.analyses.comparison.results import SIDES, Comparison
from sparselens.analyses.comparison.rows import percent, times
from sparselens.analyses.comparison.table import GOAL, known
from sparselens.analyses.figures.palette import MODELS
from sparselens.analyses.figures.plot import Plot, Series
from sparselens.analyses.patching.top_components import ComponentCurve
from sparselens.analyses.sparsity.loss_curve import LossPoint
from sparselens.prompts.intervals import Interval


def loss_plot(points: Sequence[LossPoint], names: tuple[str, str] = SIDES, loss: str = "the text") -> Plot:
    """Cross-entropy against the share of visible pairs that are open (Fig. 2a), from `loss_points`.

    Points of other names, such as `measure_loss(model, rows, name="8,000 steps")`, are drawn as further sparse models.

    >>> save_plots([loss_plot(comparison.loss.points)], "loss.pdf")

    Args:
        names: of the dense and the sparse model
        loss: of what, for the label
    """
    named: dict[str, str] = dict(zip(SIDES, names, strict=True))
    limited = sorted((p for p in points if p.name.startswith("top-")), key=lambda p: p.share_of_visible_pairs)
    labels = tuple(f"k = {point.name.removeprefix('top-')}" for point in limited)
    series = [_points(f"{named['dense']}, top-k attention", "baseline", limited, labels)] if limited else []
    closed = [point.name for point in points if not point.share_of_visible_pairs]  # no place on a log axis
    for point in points:
        if point not in limited and point.name not in closed:
            model = point.name if point.name in MODELS else "sparse"
            series.append(
                _points((named | {"control": "dense, fine-tuned"}).get(point.name, point.name), model, [point])
            )
    return Plot(
        name="loss",
        title="Loss and open edges",
        x_label="open attention edges, share of visible pairs",
        y_label=f"loss of {loss} (nats)",
        series=tuple(series),
        log_x=True,
        percent_x=True,
        notes=tuple(f"{named.get(name, name)}: no open edge" for name in closed),
    )


def _points(name: str, model: str, points: Sequence[LossPoint], labels: tuple[str, ...] = ()) -> Series:
    intervals = [point.interval() for point in points]
    x = tuple(point.share_of_visible_pairs for point in points)
    return Series(name, model, x, **_banded(intervals), joined=len(points) > 1, labels=labels)


def kept_plot(comparison: Comparison, part: str = "heads") -> Plot:
    """Share of the metric kept when only the top components act; `part` is a field of `ComponentCurves` (Fig. 3).

    >>> save_plots([kept_plot(comparison, "heads"), kept_plot(comparison, "components")], "kept.pdf")

    Raises:
        ValueError: the models have no such components.
    """
    kept: list[ComponentCurve | None] = [getattr(getattr(comparison, side).kept, part) for side in SIDES]
    what = "heads" if part.startswith("heads") else "heads and MLPs"
    series: list[Series] = []
    for side, name, found in zip(SIDES, comparison.about.names, kept, strict=True):
        if found is None:
            raise ValueError(f"these models have no {part}: want heads or heads_once")
        if not bool(found.shares.isfinite().all()):
            raise ValueError(
                f"the {side} model's clean and corrupted prompts score the same: there is no share to keep"
            )
        intervals = [found.interval(count) for count in found.counts]
        series.append(Series(name, side, tuple(map(float, found.counts)), **_banded(intervals)))
    ratio = known(partial(comparison.fewer_components, part))
    once = part.endswith("_once")
    return Plot(
        name=f"kept_{part}",
        title=f"Top {what}, chosen " + ("once for all" if once else "per prompt"),
        x_label=f"{what} that act",
        y_label=f"{comparison.about.metric.replace('_', ' ')} kept",
        series=tuple(series),
        guides=(GOAL,),
        percent_y=True,
        notes=() if ratio is None else (f"dense / sparse at {percent(GOAL)}: {times(ratio)}",),
    )


def edges_needed_plot(comparison: Comparison) -> Plot:
    """Cumulative share of sorted |edge scores|: mean of the prompts' curves, and (dotted) curve of the mean scores.

    >>> save_plots([edges_needed_plot(comparison)], "edges_needed.pdf")
    """
    named = dict(zip(SIDES, comparison.about.names, strict=True))
    series = [one for side in SIDES for one in curves_of(getattr(comparison, side), named[side], side)]
    return _needed_plot(series, comparison.about.share, _fewer(comparison))


def curves_of(model: ModelResults, name: str, side: str) -> list[Series]:
    """The curves of one model; those of a slim comparison are thinned already."""
    return _needed(model.curves, name, side) if model.summary is None else list(model.summary.curves)


def edges_needed_of_one(scores: EdgeScores, name: str = "model", share: float = 0.9) -> Plot:
    """As `edges_needed_plot`, of one model."""
    return _needed_plot(_needed(share_curves(scores), name, "sparse"), share)


def _needed(curves: ShareCurves, name: str, side: str) -> list[Series]:
    x = tuple(float(n + 1) for n in range(len(curves.of_mean)))
    whole = Series(f"{name}, per prompt", side, x, tuple(curves.mean.tolist()))
    return [whole, Series(f"{name}, mean scores", side, x, tuple(curves.of_mean.tolist()), dotted=True)]


def _needed_plot(series: Sequence[Series], share: float, notes: tuple[str, ...] = ()) -> Plot:
    return Plot(
        name="edges_needed",
        title="Edges needed",
        x_label="edges, largest |score| first",
        y_label="share of attribution",
        series=tuple(series),
        log_x=True,
        guides=(share,),
        percent_y=True,
        notes=notes,
    )


def _fewer(comparison: Comparison) -> tuple[str, ...]:
    ratios = {"per prompt": known(comparison.fewer_edges), "mean scores": known(comparison.fewer_edges_of_mean)}
    return tuple(f"{times(ratio)} fewer, {what}" for what, ratio in ratios.items() if ratio is not None)


def _banded(intervals: Sequence[Interval]) -> dict[str, Any]:
    """The y of a series, with its interval."""
    y = tuple(interval.mean for interval in intervals)
    if not all(math.isfinite(end) for interval in intervals for end in (interval.low, interval.high)):
        return {"y": y}
    return {"y": y, "low": tuple(i.low for i in intervals), "high": tuple(i.high for i in intervals)}
