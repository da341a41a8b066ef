"""Circuits of one group of prompts on another: cells computed separately, one attribution per group, two models."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

import sparselens as sl
from sparselens import analyses
from sparselens.analyses.circuits import robustness as module
from sparselens.analyses.circuits.circuit_runs import Faithfulness
from sparselens.analyses.circuits.robustness import Robustness, robustness
from sparselens.circuits.circuit import Circuit
from sparselens.circuits.graph import Graph
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.tasks import TASKS
from sparselens.tasks.addition import Addition
from tests.analyses.small_models import shipped, tiny_pairs
from tests.tiny_models import tiny_bridge

QUIET: dict[str, Any] = {"progress": False}


def carries(pair: sl.PromptPair) -> str:
    first, second = pair.clean.partition("=")[0].split("+")
    return Addition().kind(int(first), int(second))


def addition_groups(model: Any) -> dict[str, TokenizedPairs]:
    pairs = TASKS["addition"].tokenize(model.tokenizer, 60).groups(carries, least=8)
    return {name: some[:8] for name, some in pairs.items()}


def made_up(kept: list[list[float]], edges: list[list[str]]) -> Robustness:
    """Circuits of a one-layer graph with this faithfulness, alike on every prompt."""
    graph, one = Graph.of_shape(1, 1), torch.ones(3)
    names = [f"group {number}" for number in range(len(kept))]
    runs = {
        (row, column): Faithfulness(value * one, one, 0 * one)
        for row, values in zip(names, kept, strict=True)
        for column, value in zip(names, values, strict=True)
    }
    circuits = {name: Circuit(graph, some) for name, some in zip(names, edges, strict=True)}
    return Robustness(circuits, runs, {name: [0, 1, 2] for name in names}, 0.8)


def test_means_by_hand():
    edges = [["input->m0", "m0->logits"], ["input->m0", "input->logits"], ["input->m0"]]
    found = made_up([[0.8, 0.1, 0.2], [0.3, 0.9, 0.4], [0.5, 0.6, 1.0]], edges)
    assert found.own().mean == pytest.approx(0.9) and found.across().mean == pytest.approx(0.35)
    assert torch.allclose(found.jaccard, torch.tensor([[1, 1 / 3, 1 / 2], [1 / 3, 1, 1 / 2], [1 / 2, 1 / 2, 1]]))
    assert found.overlap().mean == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3)
    other = made_up([[0.8, 0.1, 0.2], [0.3, 0.9, 0.4], [0.5, 0.6, 1.0]], edges[::-1])
    assert found.overlap_with(other).mean == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)
    assert float(found.faithfulness[0, 2]) == pytest.approx(0.2) == found.interval("group 0", "group 2").mean
    frame = found.to_frame().set_index(["found_on", "run_on"])
    assert frame.loc[("group 1", "group 0")][["edges", "jaccard"]].tolist() == pytest.approx([2, 1 / 3])
    assert repr(found).startswith("Robustness(3 circuits of 1 to 2 edges on 3 groups: faithfulness 0.90 on their own, ")
    with pytest.raises(ValueError, match=r"no such cell: \('group 0', 'group 9'\)"):
        found.interval("group 0", "group 9")


def test_the_picture_names_what_was_found_on_what_and_run_on_what():
    long = [f"{'the same words ' * 4}{end}" for end in "ab"]
    found = made_up([[0.8, 0.1], [0.3, 0.9]], [["input->m0"], ["m0->logits"]])
    renamed = dict(zip(found.circuits, long, strict=True))
    runs = {(renamed[one], renamed[other]): run for (one, other), run in found.runs.items()}
    circuits = {renamed[name]: circuit for name, circuit in found.circuits.items()}
    picture = Robustness(circuits, runs, dict.fromkeys(long), 0.8).plot()
    (trace,) = picture.data
    assert len({*trace.x}) == 2 and all(len(name) < 50 for name in trace.x)
    assert trace.z[0][1] == pytest.approx(0.1) and trace.text[1][0] == "0.30"


def test_every_cell_is_the_circuit_of_its_row_on_the_prompts_of_its_column(monkeypatch: pytest.MonkeyPatch):
    model = shipped("addition-sparse")
    groups = addition_groups(model)
    scored: list[int] = []

    def counted(*args: Any, **options: Any) -> Any:
        scored.append(len(args[1]))
        return attribute(*args, **options)

    attribute: Callable[..., Any] = module.attribute_edges
    monkeypatch.setattr(module, "attribute_edges", counted)
    found = robustness(model, groups, **QUIET)
    assert scored == [8] * len(groups) and found.found_on == found.run_on == tuple(groups) and len(groups) == 3
    for name, pairs in groups.items():
        scores = analyses.attribute_edges(model, pairs, **QUIET)
        circuit, alone = analyses.faithful_circuit(model, pairs, scores, **QUIET)
        assert circuit.kept.equal(found.circuits[name].kept)
        torch.testing.assert_close(found.runs[name, name].circuit, alone.circuit, rtol=1e-4, atol=1e-5)
        assert float(found.faithfulness.diag().min()) >= 0.8
    for (one, _), (other, pairs) in pairwise(groups.items()):
        alone = analyses.faithfulness(model, found.circuits[one], pairs, **QUIET)
        torch.testing.assert_close(found.runs[one, other].circuit, alone.circuit, rtol=1e-4, atol=1e-5)
        assert found.interval(one, other).groups == len(set(pairs.clusters()))


def test_the_circuits_of_one_model_inside_the_other():
    dense, sparse = shipped("addition"), shipped("addition-sparse")
    groups = addition_groups(dense)
    two = dict(list(groups.items())[:2])
    own = robustness(sparse, two, **QUIET)
    moved = robustness(dense, two, circuits=own.circuits, **QUIET)
    assert moved.circuits == own.circuits and moved.run_on == own.run_on
    name = next(iter(two))
    alone = analyses.faithfulness(dense, own.circuits[name], two[name], **QUIET)
    torch.testing.assert_close(moved.runs[name, name].circuit, alone.circuit, rtol=1e-4, atol=1e-5)
    assert own.overlap_with(own).mean == 1 and own.overlap_with(moved).n == 2


def test_circuits_run_on_groups_that_were_held_out():
    model = shipped("addition-sparse")
    (first, one), (second, two), (third, other) = addition_groups(model).items()
    found = robustness(model, {first: one, second: two}, **QUIET)
    held_out = robustness(model, {third: other}, circuits=found.circuits, **QUIET)
    assert held_out.faithfulness.shape == (2, 1) and held_out.across().n == 2
    assert "on their own" not in repr(held_out) and "on others" in repr(held_out)
    with pytest.raises(ValueError, match="no such cell"):
        held_out.own()


def test_a_budget_changes_nothing():
    model = tiny_bridge("gpt2")
    groups = {"one": tiny_pairs(6), "other": tiny_pairs(4)}
    whole, small = (robustness(model, groups, **QUIET, batch_size=size) for size in (None, 2))
    torch.testing.assert_close(whole.faithfulness, small.faithfulness, rtol=1e-3, atol=1e-4)
    assert torch.equal(whole.jaccard, small.jaccard)


def test_prompts_that_do_not_move_the_metric_are_refused():
    pairs = tiny_pairs(4)
    still = sl.TokenizedPairs(pairs.corrupted, pairs.corrupted, pairs.answer, pairs.wrong_answer)
    with pytest.raises(ValueError, match="on 'still' the model scores the same with all edges and with none"):
        robustness(tiny_bridge("gpt2"), {"moves": pairs, "still": still}, **QUIET)


def test_circuits_of_another_shape_are_refused():
    circuit = Circuit(Graph.of_shape(1, 1), ["input->m0"])
    with pytest.raises(ValueError, match="the circuit belongs to a model with"):
        robustness(tiny_bridge("gpt2"), {"all": tiny_pairs(4)}, circuits={"one": circuit}, **QUIET)
