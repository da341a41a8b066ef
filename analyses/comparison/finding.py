"""What a comparison found, in one sentence and four numbers: what a reader sees first."""

import math
from typing import NamedTuple

import torch

from sparselens.analyses.comparison.results import Comparison, Solved
from sparselens.analyses.comparison.rows import Row, Value, cells, percent, said, times
from sparselens.analyses.comparison.table import HELD_OUT, rows_of
from sparselens.prompts.intervals import Interval


class Fact(NamedTuple):
    """A quantity of both models as printed, and dense / sparse where that says something."""

    name: str
    dense: str
    sparse: str
    ratio: str


def facts(comparison: Comparison) -> list[Fact]:
    """Of the whole table: how well both do, and how much smaller the sparse model and its circuit are."""
    rows = {row.name: row for row in rows_of(comparison)}
    chosen = [rows[name] for name in (*_model(comparison), _circuit(comparison, rows)) if name in rows]
    return [Fact(row.name, *cells(row)) for row in chosen]


def _model(comparison: Comparison) -> tuple[str, str, str]:
    return "accuracy", f"loss of {comparison.about.loss}, nats", "open edges, of visible pairs"


def _circuit(comparison: Comparison, rows: dict[str, Row]) -> str:
    """The smallest circuit that was found: pruned, faithful, or of the paper's rule."""
    about = comparison.about
    faithful = f"edges for {percent(about.goal)} faithfulness"
    known = [name for name in (f"{faithful}, pruned", faithful) if name in rows and _numbers(rows[name]) is not None]
    return known[0] if known else f"edges for {percent(about.share)} of attribution, mean scores"


def finding(comparison: Comparison) -> str:
    """The sentence: same accuracy, how many times fewer open attention edges, how many times fewer in the circuit."""
    rows = {row.name: row for row in rows_of(comparison)}
    names = comparison.about.names
    accuracy, _, open_edges = (rows[name] for name in _model(comparison))
    circuit = _fewer(rows[_circuit(comparison, rows)], _what(comparison, rows))
    alike = _accuracy(accuracy, names[0], comparison.solved)
    return (
        f"{names[1]} {alike}, with {_fewer(open_edges, 'open attention edges')} and {circuit}"
        f"{_held_out(comparison, rows)}."
    )


def _held_out(comparison: Comparison, rows: dict[str, Row]) -> str:
    """What the circuits do on prompts that did not choose them: it may be much less."""
    numbers = _numbers(rows[HELD_OUT]) if _circuit(comparison, rows).endswith(", pruned") else None
    return "" if numbers is None else f"; on other prompts these do {percent(numbers[1])} and {percent(numbers[0])}"


def _what(comparison: Comparison, rows: dict[str, Row]) -> str:
    name = _circuit(comparison, rows)
    if "faithfulness" in name:
        chosen = " on the prompts that chose it" if name.endswith(", pruned") else ""
        return f"edges in a circuit that is {percent(comparison.about.goal)} faithful{chosen}"
    return f"edges that hold {percent(comparison.about.share)} of the attribution"


def _accuracy(row: Row, dense: str, solved: Solved) -> str:
    """Whether the two accuracies differ by more than what the prompts leave open."""
    first, second = row.values
    texts = [said(_mean(value), row) for value in row.values]
    if texts[0] == texts[1]:
        return f"is as accurate as {dense} ({texts[0]})"
    verb = ("less" if _mean(first) > _mean(second) else "more") if _differ(solved) else "not measurably less or more"
    return f"is {verb} accurate than {dense} ({texts[1]} and {texts[0]})"


def _fewer(row: Row, what: str) -> str:
    """How many times fewer, or that it is not known to be fewer."""
    numbers = _numbers(row)
    shown = "" if numbers is None or row.percent else f" ({numbers[1]:,g} against {numbers[0]:,g})"
    ratio = row.ratio
    if ratio is None or numbers is None:
        return f"no measurable ratio of {what}{shown}"
    if math.isfinite(ratio.low) and ratio.low <= 1 <= ratio.high:
        return f"no measurable difference in {what}{shown}"
    if ratio.n and not math.isfinite(ratio.low):  # of prompts, and too few
        shown += ", of which too few prompts were asked to say how sure that is"
    larger = ratio.mean if ratio.mean >= 1 else 1 / ratio.mean
    alone = times(Interval(larger, math.nan, math.nan, math.nan, ratio.n))
    return f"{alone} {'fewer' if ratio.mean >= 1 else 'more'} {what}{shown}"


def _numbers(row: Row) -> tuple[float, float] | None:
    dense, sparse = map(_mean, row.values)
    return (dense, sparse) if math.isfinite(dense) and math.isfinite(sparse) else None


def _mean(value: Value) -> float:
    return value.mean if isinstance(value, Interval) else math.nan if value is None else value


def _differ(solved: Solved) -> bool:
    """McNemar's exact test at 5 %: of the prompts that one model alone solves, does one have more than a half?

    Prompts are those that differ: where one comes several times, the model that solves it more often has it.
    """
    from scipy.stats import binomtest

    more = solved.sparse.long() - solved.dense.long()
    sums = torch.zeros_like(more).index_add_(0, solved.clean_prompt, more)
    alone = int((sums != 0).sum())
    return alone > 0 and float(binomtest(int((sums > 0).sum()), alone).pvalue) < 0.05
