"""The confidence intervals of a comparison: of every share, count and ratio that is printed with one."""

import math
from dataclasses import replace
from typing import Any

import torch

from sparselens.analyses.comparison.caveats import pruning_caveats
from sparselens.analyses.comparison.report import _description, _pruning
from sparselens.analyses.comparison.results import Comparison
from sparselens.analyses.comparison.rows import cells
from sparselens.analyses.comparison.table import HELD_OUT, pruned_name, rows_of
from sparselens.prompts.intervals import Interval
from tests.analyses.comparison.compared import compared


def test_a_model_without_a_fault_is_not_said_to_be_sure(comparison: Comparison):
    (accuracy,) = [row for row in rows_of(comparison) if row.name == "accuracy"]
    assert all(isinstance(value, Interval) and value.mean == value.high == 1 > value.low for value in accuracy.values)
    assert cells(accuracy)[0].endswith(", 100.0 %]") and "[100.0 %, " not in "".join(cells(accuracy))


def test_the_edges_for_a_goal_have_an_interval(comparison: Comparison):
    (row,) = [row for row in rows_of(comparison) if row.name == "edges needed for 80 % faithfulness"]
    for side, value in zip(("dense", "sparse"), row.values, strict=True):
        circuits = getattr(comparison, side).circuits
        assert isinstance(value, Interval) and value.mean == circuits.faithful_edges
        assert value.low <= value.mean <= value.high <= circuits.tried.total
        assert circuits.tried.first_to_reach(comparison.about.goal) == circuits.faithful_edges
        assert circuits.tried.n_edges[-1] >= min(2 * value.mean, circuits.tried.total)
    assert row.ratio is not None and math.isfinite(row.ratio.low) and row.ratio.low <= row.ratio.mean


def test_random_circuits_are_told_by_their_range(comparison: Comparison):
    (row,) = [row for row in rows_of(comparison) if row.name.startswith("faithfulness of random connected circuits")]
    for side, value in zip(("dense", "sparse"), row.values, strict=True):
        means = [found.mean for found in getattr(comparison, side).circuits.random]
        assert isinstance(value, Interval) and value.n == 10
        assert (value.low, value.high) == (min(means), max(means)) and value.mean == sum(means) / 10


def test_pruned_circuits_are_in_the_table_and_the_report(comparison: Comparison):
    rows = {row.name: row for row in rows_of(comparison)}
    size, judged = rows[pruned_name(comparison.about)], rows[HELD_OUT]
    for side, edges, kept in zip(("dense", "sparse"), size.values, judged.values, strict=True):
        pruned = getattr(comparison, side).circuits.pruned
        assert (
            isinstance(edges, Interval) and edges.mean == len(pruned.circuit) and edges.low <= edges.mean <= edges.high
        )
        assert isinstance(kept, Interval) and abs(kept.mean - pruned.held_out.mean) < 1e-6
        told = f"{pruned.start} edges pruned to {len(pruned.circuit)} (none of which can be removed) on 6 pairs"
        assert _pruning(comparison)[f"pruned circuit, {side}"].startswith(told)
    ratio, sizes = size.ratio, [value.mean for value in size.values if isinstance(value, Interval)]
    assert ratio is not None and ratio.mean == sizes[0] / sizes[1] and ratio.n == 6


def test_pruning_can_be_left_out_and_says_what_it_left(models: tuple[Any, Any], comparison: Comparison):
    none = compared(models, n=4, prune_runs=0)
    assert none.sparse.circuits.faithful_edges is not None and none.sparse.circuits.pruned is None
    assert not any("prun" in row.name for row in rows_of(none))
    assert none.fewer_edges_pruned() is None
    pruned = comparison.sparse.circuits.pruned
    assert pruned is not None
    unfinished = {"sparse": {"circuits": replace(comparison.sparse.circuits, pruned=replace(pruned, untested=3))}}
    (note,) = pruning_caveats(unfinished)
    assert note.startswith(
        f"In the sparse model pruning stopped at its limit on runs (prune_runs): 3 of {len(pruned.circuit)} "
    )
    assert not pruning_caveats({"sparse": {"circuits": comparison.sparse.circuits}})


def test_pairs_that_ask_the_same_are_one_observation(comparison: Comparison):
    assert comparison.clusters == list(range(len(comparison.clusters)))  # no prompt occurs twice here
    half = replace(comparison.solved, clean_prompt=torch.arange(len(comparison.clusters)) // 2)
    paired = replace(comparison, solved=half)
    plain, wide = (found.fewer_edges() for found in (comparison, paired))
    assert wide.distinct == plain.distinct // 2 and wide.mean == plain.mean and wide.low != plain.low
    accuracy, clustered = (rows_of(found)[0].values[0] for found in (comparison, paired))
    assert isinstance(accuracy, Interval) and isinstance(clustered, Interval) and clustered.low < accuracy.low
    assert f"{len(half.kept) // 2} clean prompts" in _description(paired)
