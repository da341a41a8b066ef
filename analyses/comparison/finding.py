"""The main result of a comparison, in one sentence and four numbers; the report starts with them."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch

from sparselens.analyses.comparison.results import About, Comparison, Solved
from sparselens.analyses.comparison.rows import Row, Value, cells, formatted, percent, times
from sparselens.analyses.comparison.table import (
    HELD_OUT,
    OPEN_EDGES,
    faithful_name,
    loss_name,
    pruned_name,
    rows_of,
    share_name,
)
from sparselens.prompts.intervals import Interval


class Fact(NamedTuple):
    """A quantity of both models as printed, and the ratio dense / sparse where it is meaningful."""

    name: str
    dense: str
    sparse: str
    ratio: str
    differs: bool = True  # whether the interval of the ratio excludes 1, if it has one


def facts(comparison: Comparison) -> list[Fact]:
    """The rows that matter most: how well both models do, and how much smaller the sparse one and its circuit are."""
    rows, about = _rows_by_name(comparison), comparison.about
    names = ("accuracy", loss_name(about), OPEN_EDGES, _circuit(about, rows))
    return [Fact(name, *cells(rows[name]), differs=not _holds_one(rows[name].ratio)) for name in names]


def finding(comparison: Comparison) -> str:
    """One sentence: the accuracies, and how many times fewer open attention edges and circuit edges there are."""
    rows, about = _rows_by_name(comparison), comparison.about
    dense, sparse = about.names
    circuit, on_others = _circuit(about, rows), ""
    what = f"edges in a circuit with {percent(about.goal)} faithfulness"
    if circuit == share_name(about):
        what = f"edges that hold {percent(about.share)} of the attribution"
    elif circuit == pruned_name(about):
        what = f"edges in a circuit pruned to {percent(about.goal)} faithfulness"
        if numbers := _numbers(rows[HELD_OUT]):  # may be much lower
            on_others = f"; held-out faithfulness {percent(numbers[1])} (dense {percent(numbers[0])})"
    return (
        f"{sparse} {_accuracy(rows['accuracy'], dense, comparison.solved)}, with "
        f"{_fewer(rows[OPEN_EDGES], 'open attention edges')} and {_fewer(rows[circuit], what)}{on_others}."
    )


def _rows_by_name(comparison: Comparison) -> dict[str, Row]:
    return {row.name: row for row in rows_of(comparison)}


def _circuit(about: About, rows: Mapping[str, Row]) -> str:
    """The row with the smallest circuits found: pruned ones, else faithful ones, else those of the paper's rule.

    Pruned and faithful circuits are skipped unless both models have one.
    """
    for name in (pruned_name(about), faithful_name(about)):
        if name in rows and _numbers(rows[name]) is not None:
            return name
    return share_name(about)


def _accuracy(row: Row, dense: str, solved: Solved) -> str:
    """Compares the two accuracies; a difference that is not significant is called not measurable."""
    first, second = row.values
    texts = [formatted(_mean(value), row) for value in row.values]
    if texts[0] == texts[1]:
        return f"is as accurate as {dense} ({texts[0]})"
    verb = ("less" if _mean(first) > _mean(second) else "more") if _differ(solved) else "not measurably less or more"
    return f"is {verb} accurate than {dense} ({texts[1]} and {texts[0]})"


def _fewer(row: Row, what: str) -> str:
    """How many times fewer the sparse model needs, or that the difference is not measurable."""
    numbers = _numbers(row)
    shown = "" if numbers is None or row.percent else f" ({numbers[1]:,g} instead of {numbers[0]:,g})"
    ratio = row.ratio
    if ratio is None or numbers is None:
        return f"no defined ratio of {what}{shown}"
    if _holds_one(ratio):
        return f"no measurable difference in {what}{shown}"
    if ratio.n and not math.isfinite(ratio.low):  # a ratio over prompts, of which there are too few
        shown += ", measured on too few prompts for a confidence interval"
    larger = ratio.mean if ratio.mean >= 1 else 1 / ratio.mean
    without_interval = times(Interval(larger, math.nan, math.nan, math.nan, ratio.n))
    return f"{without_interval} {'fewer' if ratio.mean >= 1 else 'more'} {what}{shown}"


def _holds_one(ratio: Interval | None) -> bool:
    return ratio is not None and math.isfinite(ratio.low) and ratio.low <= 1 <= ratio.high


def _numbers(row: Row) -> tuple[float, float] | None:
    dense, sparse = map(_mean, row.values)
    return (dense, sparse) if math.isfinite(dense) and math.isfinite(sparse) else None


def _mean(value: Value) -> float:
    return value.mean if isinstance(value, Interval) else math.nan if value is None else value


def _differ(solved: Solved) -> bool:
    """McNemar's exact test at 5 %: does one model solve significantly more of the prompts that only one solves?

    Pairs with the same clean prompt count as one prompt, which the model that solves more of them has solved.
    """
    from scipy.stats import binomtest

    more = solved.sparse.long() - solved.dense.long()
    sums = torch.zeros_like(more).index_add_(0, solved.clean_prompt, more)
    by_one_only = int((sums != 0).sum())
    return by_one_only > 0 and float(binomtest(int((sums > 0).sum()), by_one_only).pvalue) < 0.05
