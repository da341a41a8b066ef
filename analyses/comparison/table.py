"""The numbers of a comparison as rows, from which the printed table and the report are made.

A row has one value per model, with a 95 % confidence interval where one can be computed. Counts also have the ratio
dense / sparse: how many times fewer the sparse model needs.
"""

import math
from collections.abc import Callable
from functools import partial
from statistics import stdev
from typing import Any

from sparselens.analyses.circuits.pruning import PrunedCircuit
from sparselens.analyses.comparison.model_results import ModelResults
from sparselens.analyses.comparison.results import SIDES, About, Comparison
from sparselens.analyses.comparison.rows import FORMS, NEVER, Row, Value, Values, percent
from sparselens.analyses.patching.top_components import ComponentCurve
from sparselens.names import unknown
from sparselens.prompts.intervals import Interval, mean_interval, proportion_interval

GOAL = 0.9  # share of the metric to keep, in the number of components needed
LABELLED = 0.4  # lowest score at which a head counts as, say, an induction head
OPEN_EDGES = "open edges, share of visible pairs"  # as on model cards
HELD_OUT = "faithfulness of the pruned circuit on held-out prompts"


def rows_of(comparison: Comparison) -> list[Row]:
    """All rows, in the order of the table."""
    return [*_behaviour(comparison), *_components(comparison), *_edges(comparison), *_labels(comparison)]


# -- names of the rows that the finding refers to


def loss_name(about: About) -> str:
    """Name of the row with the loss of both models."""
    return f"loss on {about.loss} (nats)"


def metric_name(about: About) -> str:
    """Name of the row with the mean metric; "accuracy" alone is that on all pairs drawn."""
    return "accuracy on the pairs used" if about.metric == "accuracy" else about.metric.replace("_", " ")


def share_name(about: About) -> str:
    """Name of the row with the size of the circuits that hold the given share of attribution."""
    return f"edges needed for {percent(about.share)} of attribution, mean scores"


def pruned_name(about: About) -> str:
    """Name of the row with the size of the pruned circuits."""
    return f"edges for {percent(about.goal)} faithfulness, pruned"


def faithful_name(about: About) -> str:
    """Name of the row with the size of the smallest faithful circuits found."""
    return f"edges needed for {percent(about.goal)} faithfulness"


def _behaviour(comparison: Comparison) -> list[Row]:
    solved, about = comparison.solved, comparison.about
    points = (comparison.loss.named("dense"), comparison.loss.named("sparse"))
    drawn = solved.clean_prompt.tolist()
    right = tuple(proportion_interval(who.double(), clusters=drawn) for who in (solved.dense, solved.sparse))
    shares = points[0].share_of_visible_pairs, points[1].share_of_visible_pairs
    all_pairs = points[0].share_of_all_pairs, points[1].share_of_all_pairs
    per_query = points[0].edges_per_query_per_head, points[1].edges_per_query_per_head
    mean_of = partial(
        proportion_interval if about.metric == "accuracy" else mean_interval, clusters=comparison.clusters
    )
    rows = [
        Row("Model", "accuracy", (right[0], right[1]), percent=True),
        Row("Model", metric_name(about), _both(comparison, lambda model: mean_of(model.edges.clean))),
        Row("Model", loss_name(about), (points[0].interval(), points[1].interval()), digits=4),
        Row("Model", OPEN_EDGES, shares, _times(shares), percent=True),
        Row("Model", "open edges, share of all pairs", all_pairs, percent=True),
        Row("Model", "open edges per query and head", per_query),
    ]
    controls = [point for point in comparison.loss.points if point.name == "control"]
    return rows + [Row("Model", "loss of the control (nats)", (point.interval(), None), digits=4) for point in controls]


def _components(comparison: Comparison) -> list[Row]:
    rows: list[Row] = []
    for kind, name in (("heads", "heads"), ("components", "heads and MLPs")):
        for suffix, ranked in (("", "ranked per prompt"), ("_once", "ranked once for all prompts")):
            part = kind + suffix
            if comparison.dense.kept.has(part):
                label = f"{name} needed for {percent(GOAL)} of the metric, {ranked}"
                values = _both(comparison, lambda model: _smallest(getattr(model.kept, part)))  # noqa: B023
                fewer = or_none(partial(comparison.fewer_components, part))
                rows.append(Row("Components", label, values, fewer, count=True))
    return rows


def _smallest(kept: ComponentCurve) -> float:
    found = kept.smallest(GOAL)
    return NEVER if found is None else float(found)


def _edges(comparison: Comparison) -> list[Row]:
    about, share = comparison.about, percent(comparison.about.share)
    sizes = float(len(comparison.dense.circuit)), float(len(comparison.sparse.circuit))
    stable = comparison.dense.stability, comparison.sparse.stability
    needed = tuple(mean_interval(found.sizes.double(), clusters=comparison.clusters) for found in stable)
    overlaps = stable[0].mean_overlap, stable[1].mean_overlap
    faithful = _edges_for_goal(comparison, "dense"), _edges_for_goal(comparison, "sparse")
    overlap, ranked, shared = comparison.overlap, comparison.rank_correlation, float(comparison.shared_edges)

    def faithfulness(which: str) -> Values:
        return _both(
            comparison,
            lambda model: or_none(partial(getattr(model.circuits, which).interval, clusters=comparison.clusters)),
        )

    fewer, fewer_of_mean = or_none(comparison.fewer_edges), or_none(comparison.fewer_edges_of_mean)
    fewer_faithful = or_none(comparison.fewer_edges_for_goal)
    return [
        Row("Edges", f"edges needed for {share} of attribution, per prompt", (needed[0], needed[1]), fewer),
        Row("Edges", share_name(about), sizes, fewer_of_mean, count=True),
        Row("Edges", "overlap of two prompts' circuits (Jaccard)", overlaps),
        Row("Circuit", f"faithfulness of the {share} circuit", faithfulness("own")),
        Row("Circuit", "faithfulness of the other model's circuit", faithfulness("other")),
        Row("Circuit", "faithfulness of random connected circuits [lowest, highest]", _both(comparison, _random)),
        Row("Circuit", faithful_name(about), faithful, fewer_faithful, count=True),
        Row("Circuit", "faithfulness of that circuit", faithfulness("faithful")),
        *_pruned(comparison),
        Row("Circuit", f"edges in both models' {share} circuits", (shared, shared), count=True),
        Row("Circuit", f"overlap of the two {share} circuits (Jaccard)", (overlap, overlap)),
        Row("Circuit", "rank correlation of the two models' scores", (ranked, ranked)),
    ]


def _random(model: ModelResults) -> Interval | None:
    """Mean faithfulness of the random circuits, and its range; None where clean and ablated runs score the same."""
    means = [found.mean for found in model.circuits.random]
    if not all(map(math.isfinite, means)):
        return None
    mean, spread = sum(means) / len(means), stdev(means) if len(means) > 1 else math.nan
    return Interval(mean, min(means), max(means), spread, len(means))


def _pruned(comparison: Comparison) -> list[Row]:
    pruned = [getattr(comparison, side).circuits.pruned for side in SIDES]
    if pruned == [None, None]:
        return []
    dense, sparse = (or_none(partial(comparison.pruned_edges, side)) for side in SIDES)
    held_out = [None if found is None else or_none(partial(_held_out, comparison, found)) for found in pruned]
    fewer = or_none(comparison.fewer_edges_pruned)
    return [
        Row("Circuit", pruned_name(comparison.about), (dense, sparse), fewer, count=True),
        Row("Circuit", HELD_OUT, (held_out[0], held_out[1])),
    ]


def _held_out(comparison: Comparison, pruned: PrunedCircuit) -> Interval:
    """Faithfulness on the prompts that the circuit was not pruned on."""
    chosen = set(pruned.chosen_on.tolist())
    clusters = [label for row, label in enumerate(comparison.clusters) if row not in chosen]
    return pruned.held_out.interval(clusters=clusters)


def _labels(comparison: Comparison) -> list[Row]:
    rows: list[Row] = []
    for number, kind in enumerate(comparison.dense.labels.kinds):
        counts = _both(comparison, lambda model: float((model.labels.scores[number] >= LABELLED).sum()))  # noqa: B023
        rows.append(Row("Heads", f"{kind} heads", counts, count=True))
    return rows


def _both(comparison: Comparison, value: Callable[[ModelResults], Value]) -> Values:
    return value(comparison.dense), value(comparison.sparse)


def _edges_for_goal(comparison: Comparison, side: str) -> Value:
    edges = getattr(comparison, side).circuits.faithful_edges
    return NEVER if edges is None else or_none(partial(comparison.edges_for_goal, side)) or float(edges)


def or_none(ratio: Callable[[], Interval | None]) -> Interval | None:
    """The interval, or None where the ratio divides by zero, in the data or in a resample of the prompts."""
    try:
        return ratio()
    except ValueError:
        return None


def _times(values: Values) -> Interval | None:
    """The ratio of two numbers. They have no per-prompt values, so the ratio has no interval."""
    dense, sparse = values
    if not isinstance(dense, float) or not isinstance(sparse, float) or not sparse or NEVER in values:
        return None
    return Interval(dense / sparse, math.nan, math.nan, math.nan, 0)


def in_form(comparison: Comparison, form: str) -> Any:
    """All rows as a pandas frame, Markdown, LaTeX or HTML.

    Raises:
        ValueError: the form is unknown.
    """
    if form not in FORMS:
        raise unknown("form of a table", form, FORMS)
    return FORMS[form](rows_of(comparison), comparison.about.names)
