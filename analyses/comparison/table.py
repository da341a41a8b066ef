"""The numbers of a comparison as rows, from which the printed table, the figures and the report are made.

A row has a value of each model, with a 95 % confidence interval where there is one, and for counts the ratio
dense / sparse: how many times fewer the sparse model has. All numbers of a row are printed with as many decimals as
give each estimate at least three digits; what is counted is whole.
"""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import stdev
from typing import Any

from sparselens.analyses.circuits.pruning import PrunedCircuit
from sparselens.analyses.comparison.model_results import ModelResults
from sparselens.analyses.comparison.results import SIDES, Comparison
from sparselens.analyses.patching.top_components import ComponentCurve
from sparselens.names import unknown
from sparselens.prompts.intervals import Interval, mean_interval, proportion_interval

GOAL = 0.9  # of the metric, for the number of components that keep it
LABELLED = 0.4  # the score from which on a head counts as of a kind

NEVER = math.inf  # components or edges needed, where not even all are enough

Value = Interval | float | None  # None: not computed for this model
Values = tuple[Value, Value]  # dense, sparse


@dataclass(frozen=True)
class Row:
    """One quantity, and its values for both models."""

    section: str
    name: str
    values: Values
    ratio: Interval | None = None  # dense / sparse
    percent: bool = False
    digits: int = 3  # that each estimate has at least
    count: bool = False  # whole numbers


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
    """Mean faithfulness of the circuits drawn at random, and its range; None where the whole model does as nothing."""
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
        Row("Circuit", "its faithfulness on held-out prompts", (judged[0], judged[1])),
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
    """A ratio of two numbers without per-prompt values, and so without an interval."""
    dense, sparse = values
    if not isinstance(dense, float) or not isinstance(sparse, float) or not sparse or NEVER in values:
        return None
    return Interval(dense / sparse, math.nan, math.nan, math.nan, 0)


# -- forms

FORMS = ("pandas", "markdown", "latex", "html")


def in_form(comparison: Comparison, form: str) -> Any:
    """The rows as a pandas frame, Markdown, LaTeX or HTML.

    Raises:
        ValueError: there is no such form.
    """
    if form not in FORMS:
        raise unknown("form of a table", form, FORMS)
    rows = rows_of(comparison)
    if form == "pandas":
        return _frame(rows)
    written = {"markdown": _markdown, "latex": _latex, "html": html_table}
    return written[form](rows, comparison.about.names)


def _frame(rows: Sequence[Row]) -> Any:
    import pandas as pd

    columns = {
        f"{name}{suffix}": [_number((*row.values, row.ratio)[number], place) for row in rows]
        for number, name in enumerate((*SIDES, "ratio"))
        for suffix, place in (("", "mean"), ("_low", "low"), ("_high", "high"))
    }
    index = pd.MultiIndex.from_tuples([(row.section, row.name) for row in rows], names=["section", "quantity"])
    return pd.DataFrame(columns, index=index, dtype=float)  # NaN for None, also in a column of nothing else


def _number(value: Value, place: str) -> float | None:
    if isinstance(value, Interval):
        return getattr(value, place)
    return value if place == "mean" else None


def cells(row: Row) -> tuple[str, str, str]:
    """The row's values as printed."""
    places = max(_places(value, row) for value in row.values)
    dense, sparse = (_said(value, row.percent, places) for value in row.values)
    return dense, sparse, times(row.ratio)


def said(value: float, row: Row) -> str:
    """A number of the row as it is printed by itself."""
    return _said(value, row.percent, _places(value, row))


def times(ratio: Interval | None) -> str:
    """A ratio, such as 4.80x [4.10, 5.63]."""
    if ratio is None:
        return ""
    places = _decimals(ratio, 3)
    around = f" [{ratio.low:,.{places}f}, {ratio.high:,.{places}f}]" if math.isfinite(ratio.low) else ""
    return f"{ratio.mean:,.{places}f}x{around}"


def _places(value: Value, row: Row) -> int:
    """How many decimals this value of the row asks for; a percentage for at least one."""
    if row.count or value is None or value == NEVER:
        return 0
    return max(_decimals(value, row.digits, 100.0 if row.percent else 1.0), int(row.percent))


def _decimals(value: Interval | float, digits: int, unit: float = 1.0) -> int:
    """How many decimals give an estimate so many digits; no more than one above that, where it is next to nothing."""
    mean, *ends = (value.mean, value.low, value.high) if isinstance(value, Interval) else (value,)
    size = unit * (abs(mean) or max((abs(end) for end in ends if math.isfinite(end)), default=0.0))
    if not size or not math.isfinite(size):
        return digits - 1
    exponent = int(f"{size:.{digits - 1}e}".partition("e")[2])  # of the rounded number: 99.96 is 100
    return min(max(digits - 1 - exponent, 0), digits + 1)


def _said(value: Value, as_percent: bool, places: int) -> str:
    """A value with its interval, if it has one; empty where it is undefined, as the overlap of a single prompt."""
    if isinstance(value, Interval):
        around = [_said(end, as_percent, places) for end in (value.low, value.high)]
        return _said(value.mean, as_percent, places) + (f" [{', '.join(around)}]" if all(around) else "")
    if value == NEVER:
        return "never"
    if value is None or not math.isfinite(value):
        return ""
    number = round(100 * value if as_percent else value, places) + 0.0  # no minus before a zero
    return f"{number:,.{places}f} %" if as_percent else f"{number:,.{places}f}"


def percent(share: float) -> str:
    """A share in percent: 90 %."""
    return f"{100 * share:.3g} %"


def _markdown(rows: Sequence[Row], names: tuple[str, str]) -> str:
    dense, sparse = (html.escape(name).replace("|", "\\|") for name in names)
    lines = [f"| | {dense} | {sparse} | dense / sparse |", "|---|---|---|---|"]
    lines += [f"| {row.name} | {' | '.join(cells(row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def _latex(rows: Sequence[Row], names: tuple[str, str]) -> str:
    head = " & ".join(("", *(_escaped(name) for name in names), "dense / sparse"))
    lines = [r"\begin{tabular}{lrrr}", r"\toprule", head + r" \\"]
    section = ""
    for row in rows:
        if row.section != section:
            lines.append(r"\midrule")
            section = row.section
        values = (_escaped(cell).replace("x [", r"$\times$ [") for cell in cells(row))
        lines.append(" & ".join((_escaped(row.name), *values)) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def html_table(rows: Sequence[Row], names: tuple[str, str], found: Sequence[str] = ()) -> str:
    """The rows as HTML, those named in `found` of a class of that name."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *names, "dense / sparse"))
    section, body = "", list[str]()
    for row in rows:
        kinds = [name for name, is_so in (("first", row.section != section), ("found", row.name in found)) if is_so]
        section, kind = row.section, f' class="{" ".join(kinds)}"' if kinds else ""
        body.append(f"<tr{kind}>" + "".join(f"<td>{html.escape(c)}</td>" for c in (row.name, *cells(row))) + "</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)
