"""The numbers of a comparison as rows, from which the printed table, the figures and the report are made.

A row has a value of each model, with a 95 % confidence interval where there is one, and for counts the ratio
dense / sparse: how many times fewer the sparse model has.
"""

import math
from collections.abc import Callable
from functools import partial
from statistics import stdev
from typing import Any

from sparselens.analyses.circuits.pruning import PrunedCircuit
from sparselens.analyses.comparison.model_results import ModelResults
from sparselens.analyses.comparison.results import SIDES, Comparison
from sparselens.analyses.comparison.rows import FORMS, NEVER, Row, Value, Values, percent
from sparselens.analyses.patching.top_components import ComponentCurve
from sparselens.names import unknown
from sparselens.prompts.intervals import Interval, mean_interval, proportion_interval

GOAL = 0.9  # of the metric, for the number of components that keep it
LABELLED = 0.4  # the score from which on a head is counted as, say, an induction head
HELD_OUT = "its faithfulness on held-out prompts"  # of the pruned circuit, above it in the table


def rows_of(comparison: Comparison) -> list[Row]:
    """All rows, in the order of the table."""
    return [*_behaviour(comparison), *_components(comparison), *_edges(comparison), *_labels(comparison)]


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
        Row("Model", about.metric.replace("_", " "), _both(comparison, lambda model: mean_of(model.edges.clean))),
        Row("Model", f"loss of {about.loss}, nats", (points[0].interval(), points[1].interval()), digits=4),
        Row("Model", "open edges, of visible pairs", shares, _times(shares), percent=True),
        Row("Model", "open edges, of all pairs", all_pairs, percent=True),
        Row("Model", "open edges per query and head", per_query),
    ]
    controls = [point for point in comparison.loss.points if point.name == "control"]
    return rows + [Row("Model", "loss of the control, nats", (point.interval(), None), digits=4) for point in controls]


def _components(comparison: Comparison) -> list[Row]:
    rows: list[Row] = []
    for part, name in (("heads", "heads"), ("components", "heads and MLPs")):
        for suffix, chosen in (("", "per prompt"), ("_once", "once for all")):
            if comparison.dense.kept.has(part + suffix):
                label = f"{name} for {percent(GOAL)} of the metric, {chosen}"
                values = _both(comparison, lambda model: _smallest(getattr(model.kept, part + suffix)))  # noqa: B023
                rows.append(
                    Row(
                        "Components",
                        label,
                        values,
                        known(partial(comparison.fewer_components, part + suffix)),
                        count=True,
                    )
                )
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
            lambda model: known(partial(getattr(model.circuits, which).interval, clusters=comparison.clusters)),
        )

    fewer, fewer_of_mean = known(comparison.fewer_edges), known(comparison.fewer_edges_of_mean)
    return [
        Row("Edges", f"edges for {share} of attribution, per prompt", (needed[0], needed[1]), fewer),
        Row("Edges", f"edges for {share} of attribution, mean scores", sizes, fewer_of_mean, count=True),
        Row("Edges", "overlap of two prompts (Jaccard)", overlaps),
        Row("Circuit", f"faithfulness, {share} circuit", faithfulness("own")),
        Row("Circuit", "faithfulness, other model's circuit", faithfulness("other")),
        Row("Circuit", "faithfulness, random connected circuits [lowest, highest]", _both(comparison, _drawn)),
        Row(
            "Circuit",
            f"edges for {percent(about.goal)} faithfulness",
            faithful,
            known(comparison.fewer_edges_for_goal),
            count=True,
        ),
        Row("Circuit", "its faithfulness", faithfulness("faithful")),
        *_pruned(comparison),
        Row("Circuit", f"edges in the {share} circuits of both", (shared, shared), count=True),
        Row("Circuit", "overlap of the two models (Jaccard)", (overlap, overlap)),
        Row("Circuit", "rank correlation of the two models", (ranked, ranked)),
    ]


def _drawn(model: ModelResults) -> Interval | None:
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
    goal = comparison.about.goal
    dense, sparse = (known(partial(comparison.pruned_edges, side)) for side in SIDES)
    judged = [None if found is None else known(partial(_judged, comparison, found)) for found in pruned]
    return [
        Row(
            "Circuit",
            f"edges for {percent(goal)} faithfulness, pruned",
            (dense, sparse),
            known(comparison.fewer_edges_pruned),
            count=True,
        ),
        Row("Circuit", HELD_OUT, (judged[0], judged[1])),
    ]


def _judged(comparison: Comparison, pruned: PrunedCircuit) -> Interval:
    """Faithfulness on the prompts that did not choose the circuit."""
    chosen = set(pruned.chosen_on.tolist())
    clusters = [label for row, label in enumerate(comparison.clusters) if row not in chosen]
    return pruned.held_out.interval(clusters=clusters)


def _labels(comparison: Comparison) -> list[Row]:
    rows: list[Row] = []
    for number, kind in enumerate(comparison.dense.labels.kinds):
        counts = _both(comparison, lambda model: float((model.labels.scores[number] >= LABELLED).sum()))  # noqa: B023
        rows.append(Row("Heads", f"{kind} heads", counts, count=True))
    return rows


def _both(comparison: Comparison, ask: Callable[[ModelResults], Value]) -> Values:
    return ask(comparison.dense), ask(comparison.sparse)


def _edges_for_goal(comparison: Comparison, side: str) -> Value:
    edges = getattr(comparison, side).circuits.faithful_edges
    found = None if edges is None else known(partial(comparison.edges_for_goal, side))
    return NEVER if edges is None else found or float(edges)


def known(ratio: Callable[[], Interval | None]) -> Interval | None:
    """None where a ratio divides by zero, in the data or in a resample of the prompts."""
    try:
        return ratio()
    except ValueError:
        return None


def _times(values: Values) -> Interval | None:
    """The ratio of two numbers without per-prompt values, so without an interval."""
    dense, sparse = values
    if not isinstance(dense, float) or not isinstance(sparse, float) or not sparse or NEVER in values:
        return None
    return Interval(dense / sparse, math.nan, math.nan, math.nan, 0)


def in_form(comparison: Comparison, form: str) -> Any:
    """All rows as a pandas frame, Markdown, LaTeX or HTML.

    Raises:
        ValueError: there is no such form.
    """
    if form not in FORMS:
        raise unknown("form of a table", form, FORMS)
    return FORMS[form](rows_of(comparison), comparison.about.names)
