"""How sure the numbers of a comparison are: every share, count and ratio that is printed with an interval."""

import math
from dataclasses import replace

import torch

from sparselens.analyses.comparison.report import report_page
from sparselens.analyses.comparison.results import Comparison
from sparselens.analyses.comparison.table import cells, rows_of
from sparselens.prompts.intervals import Interval


def test_a_model_without_a_fault_is_not_said_to_be_sure(comparison: Comparison):
    (accuracy,) = [row for row in rows_of(comparison) if row.name == "accuracy"]
    assert all(isinstance(value, Interval) and value.mean == value.high == 1 > value.low for value in accuracy.values)
    assert "[100 %, 100 %]" not in "".join(cells(accuracy))


def test_the_edges_for_a_goal_have_an_interval(comparison: Comparison):
    (row,) = [row for row in rows_of(comparison) if row.name == "edges for 80 % faithfulness"]
    for side, value in zip(("dense", "sparse"), row.values, strict=True):
        circuits = getattr(comparison, side).circuits
        assert isinstance(value, Interval) and value.mean == circuits.faithful_edges
        assert value.low <= value.mean <= value.high <= circuits.tried.total
        assert circuits.tried.first_to_reach(comparison.about.goal) == circuits.faithful_edges
        assert circuits.tried.n_edges[-1] >= min(2 * value.mean, circuits.tried.total)
    assert row.ratio is not None and math.isfinite(row.ratio.low) and row.ratio.low <= row.ratio.mean


def test_pairs_that_ask_the_same_are_one_observation(comparison: Comparison):
    assert comparison.clusters == list(range(len(comparison.clusters)))  # here no prompt repeats
    half = replace(comparison.solved, clean_prompt=torch.arange(len(comparison.clusters)) // 2)
    paired = replace(comparison, solved=half)
    plain, wide = (found.fewer_edges() for found in (comparison, paired))
    assert wide.distinct == plain.distinct // 2 and wide.mean == plain.mean and wide.low != plain.low
    accuracy, clustered = (rows_of(found)[0].values[0] for found in (comparison, paired))
    assert isinstance(accuracy, Interval) and isinstance(clustered, Interval) and clustered.low < accuracy.low
    assert f"{len(half.kept) // 2} clean prompts" in report_page(paired)
