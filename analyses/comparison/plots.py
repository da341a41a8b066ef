"""The curves of the paper's figures, drawn from a comparison.

1. loss_plot: loss against the share of open attention edges (Fig. 2a).
2. kept_plot: share of the metric kept by the top components (Fig. 3a, b).
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
from sparselens.analyses.comparison.table import GOAL, or_none
from sparselens.analyses.figures.palette import MODELS
from sparselens.analyses.figures.plot import Plot, Series
from sparselens.analyses.patching.top_components import ComponentCurve
from sparselens.analyses.sparsity.loss_curve import LossPoint
from sparselens.prompts.intervals import Interval


def loss_plot(points: Sequence[LossPoint], names: tuple[str, str] = SIDES, loss: str = "the text") -> Plot:
    """Cross-entropy against the share of visible pairs that are open (Fig. 2a), from `loss_points`.

    Points with other names, such as `measure_loss(model, rows, name="8,000 steps")`, are drawn as further sparse
    models, and all sparse models are then labelled.

    >>> save_plots([loss_plot(comparison.loss.points)], "loss.pdf")

    Args:
        names: of the dense and the sparse model
        loss: what the loss was measured on, for the axis label
    """
    named: dict[str, str] = dict(zip(SIDES, names, strict=True))
    limited = sorted((p for p in points if p.name.startswith("top-")), key=lambda p: p.share_of_visible_pairs)
    labels = tuple(f"k = {point.name.removeprefix('top-')}" for point in limited)
    series = [_points(f"{named['dense']}, top-k attention", "baseline", limited, labels)] if limited else []
    closed = [point.name for point in points if not point.share_of_visible_pairs]  # zero has no place on a log axis
    shown = [point for point in points if point not in limited and point.name not in closed]
    further = any(point.name not in MODELS for point in shown)
    for point in shown:
        name = (named | {"control": "dense, fine-tuned"}).get(point.name, point.name)
        model = point.name if point.name in MODELS else "sparse"
        series.append(_points(name, model, [point], (name,) if further and model == "sparse" else ()))
    return Plot(
        name="loss",
        title="Loss and open attention edges",
        x_label="open attention edges, share of visible pairs",
        y_label=f"loss on {loss} (nats)",
        series=tuple(series),
        log_x=True,
        percent_x=True,
        notes=tuple(f"{named.get(name, name)}: no open edges" for name in closed),
    )


def _points(name: str, model: str, points: Sequence[LossPoint], labels: tuple[str, ...] = ()) -> Series:
    intervals = [point.interval() for point in points]
    x = tuple(point.share_of_visible_pairs for point in points)
    return Series(name, model, x, **_banded(intervals), joined=len(points) > 1, labels=labels)


def kept_plot(comparison: Comparison, part: str = "heads") -> Plot:
    """Share of the metric kept when only the top components are active (Fig. 3).

    >>> save_plots([kept_plot(comparison, "heads"), kept_plot(comparison, "components")], "kept.pdf")

    Args:
        part: a field of `ComponentCurves`: heads, heads_once, components or components_once

    Raises:
        ValueError: the models have no such components, or clean and corrupted prompts score the same.
    """
    kept: list[ComponentCurve | None] = [getattr(getattr(comparison, side).kept, part) for side in SIDES]
    what = "heads" if part.startswith("heads") else "heads and MLPs"
    series: list[Series] = []
    for side, name, found in zip(SIDES, comparison.about.names, kept, strict=True):
        if found is None:
            raise ValueError(f"these models have no {part}: want heads or heads_once")
        if not bool(found.shares.isfinite().all()):
            raise ValueError(
                f"in the {side} model clean and corrupted prompts score the same, so no share of the metric is defined"
            )
        intervals = [found.interval(count) for count in found.counts]
        series.append(Series(name, side, tuple(map(float, found.counts)), **_banded(intervals)))
    ratio = or_none(partial(comparison.fewer_components, part))
    once = part.endswith("_once")
    return Plot(
        name=f"kept_{part}",
        title=f"Top {what}, ranked " + ("once for all prompts" if once else "per prompt"),
        x_label=f"active {what}",
        y_label=f"{comparison.about.metric.replace('_', ' ')} kept",
        series=tuple(series),
        guides=(GOAL,),
        percent_y=True,
        notes=() if ratio is None else (f"dense / sparse at {percent(GOAL)}: {times(ratio)}",),
    )


def edges_needed_plot(comparison: Comparison) -> Plot:
    """Cumulative share of sorted |edge scores|: the mean of the prompts' curves, and (dotted) the mean scores' curve.

    >>> save_plots([edges_needed_plot(comparison)], "edges_needed.pdf")
    """
    named = dict(zip(SIDES, comparison.about.names, strict=True))
    series = [curve for side in SIDES for curve in curves_of(getattr(comparison, side), named[side], side)]
    return _needed_plot(series, comparison.about.share, _fewer(comparison))


def curves_of(model: ModelResults, name: str, side: str) -> list[Series]:
    """The curves of one model; in a slim comparison they are already thinned."""
    return _needed(model.curves, name, side) if model.summary is None else list(model.summary.curves)


def edges_needed_of_one(scores: EdgeScores, name: str = "model", share: float = 0.9) -> Plot:
    """Like `edges_needed_plot`, for one model."""
    return _needed_plot(_needed(share_curves(scores), name, "sparse"), share)


def _needed(curves: ShareCurves, name: str, side: str) -> list[Series]:
    x = tuple(float(n + 1) for n in range(len(curves.of_mean)))
    per_prompt = Series(f"{name}, per prompt", side, x, tuple(curves.mean.tolist()))
    return [per_prompt, Series(f"{name}, mean scores", side, x, tuple(curves.of_mean.tolist()), dotted=True)]


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
    ratios = {"per prompt": or_none(comparison.fewer_edges), "mean scores": or_none(comparison.fewer_edges_of_mean)}
    return tuple(f"{times(ratio)} fewer, {what}" for what, ratio in ratios.items() if ratio is not None)


def _banded(intervals: Sequence[Interval]) -> dict[str, Any]:
    """The y of a series, with its confidence band if every interval is finite."""
    y = tuple(interval.mean for interval in intervals)
    if not all(math.isfinite(end) for interval in intervals for end in (interval.low, interval.high)):
        return {"y": y}
    return {"y": y, "low": tuple(i.low for i in intervals), "high": tuple(i.high for i in intervals)}
