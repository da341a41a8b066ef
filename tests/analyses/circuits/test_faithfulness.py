"""What circuits do alone: hand-computed, with all edges and with none, and in every family."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import sparselens as sl
from sparselens.analyses.attribution.edges import attribute_edges
from sparselens.analyses.attribution.exact import patch_edges
from sparselens.analyses.circuits import ablated_run
from sparselens.analyses.circuits.ablated_run import ablated_by
from sparselens.analyses.circuits.circuit_runs import CircuitRunner, Faithfulness
from sparselens.analyses.circuits.faithfulness import (
    SIZES,
    FaithfulnessCurve,
    completeness,
    faithfulness,
    faithfulness_curve,
    minimality,
)
from sparselens.analyses.engine.edge_products import writes_of
from sparselens.analyses.engine.request import open_request
from sparselens.circuits.circuit import Circuit
from sparselens.circuits.graph import Graph
from sparselens.circuits.selection import top
from sparselens.prompts.metrics import logit_difference
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.tasks import TASKS
from tests.analyses.small_models import tiny_pairs, two_layer_pairs, two_layers
from tests.tiny_models import FAMILIES, bridge_of, tiny_bridge, tiny_model

READABLE = sorted(set(FAMILIES) - {"bert"})
QUIET: dict[str, Any] = {"progress": False}


def graph_of(model: Any, pairs: TokenizedPairs) -> Graph:
    return attribute_edges(model, pairs[:1], logit_difference, **QUIET).graph


def circuit_of(graph: Graph, *edges: str) -> Circuit:
    return Circuit(graph, graph.matrix(edges), torch.zeros(graph.exists.shape))


def whole(graph: Graph) -> Circuit:
    return Circuit(graph, graph.exists, torch.zeros(graph.exists.shape))


def metric_of(model: Any, pairs: TokenizedPairs, corrupted: bool = False) -> Tensor:
    with torch.no_grad():
        return logit_difference(model(pairs.corrupted if corrupted else pairs.clean), pairs)


# -- by hand (the model of test_edges)


def two_layer_faithfulness(*edges: str, ablation: str = "corrupted") -> Faithfulness:
    model, pairs = two_layers(), two_layer_pairs()
    return faithfulness(
        model, circuit_of(Graph.of_shape(2, 1, mlp=False), *edges), pairs, logit_difference, ablation, **QUIET
    )


def test_faithfulness_worked_out_by_hand():
    """The chain input->a0.h0->a1.h0->logits.

    a0.h0 writes as in the clean run. a1.h0 reads (6, 3) + (2, 0) - (4, 2) = (4, 1) and (2, 3) + (1, 1) - (2, 2) =
    (1, 2), so it writes (5, 3) times (1, 3) = (5, 9). Logits: (10, 21) + (5, 9) - (8, 18) = (7, 12).
    """
    found = two_layer_faithfulness("input->a0.h0<v>", "a0.h0->a1.h0<v>", "a1.h0->logits")
    assert (found.circuit.item(), found.clean.item(), found.ablated.item()) == (-5, -3, -11)
    assert found.mean == found.per_prompt.item() == 0.75


@pytest.mark.parametrize(
    ("edges", "expected"),
    [
        (("input->a1.h0<v>", "a1.h0->logits"), 0.25),
        (("input->a0.h0<v>", "a0.h0->logits"), 0.0),  # (-1, -1) changes both logits alike
        (("input->a0.h0<v>", "a0.h0->a1.h0<v>"), 0.0),  # ends before the logits
        (("input->a0.h0<v>", "input->a1.h0<v>", "a0.h0->a1.h0<v>", "a1.h0->logits"), 1.0),
    ],
)
def test_paths_add_up_in_a_linear_model(edges: tuple[str, ...], expected: float):
    assert two_layer_faithfulness(*edges).mean == expected


def test_zero_ablation_worked_out_by_hand():
    """Without anything no logit is left. Of the chain alone, a1.h0 reads (2, 0) + (1, 1) and writes (3, 1) * (1, 3)."""
    found = two_layer_faithfulness("input->a0.h0<v>", "a0.h0->a1.h0<v>", "a1.h0->logits", ablation="zero")
    assert (found.circuit.item(), found.clean.item(), found.ablated.item()) == (0, -3, 0)
    direct = two_layer_faithfulness("input->logits", ablation="zero")
    assert direct.circuit.item() == -1  # the last token's embedding (0, 1)


def test_completeness_and_minimality_by_hand():
    model, pairs, graph = two_layers(), two_layer_pairs(), Graph.of_shape(2, 1, mlp=False)
    chain = circuit_of(graph, "input->a0.h0<v>", "a0.h0->a1.h0<v>", "a1.h0->logits", "a0.h0->logits")
    # without the chain the input reaches a1.h0, but a1.h0 no longer the logits
    assert completeness(model, chain, pairs, logit_difference, **QUIET).mean == 0
    falls = minimality(model, chain, pairs, logit_difference, **QUIET)
    assert {name: fall.mean for name, fall in falls.items()} == {
        "input->a0.h0<v>": 0.75,
        "a0.h0->a1.h0<v>": 0.75,
        "a0.h0->logits": 0.0,
        "a1.h0->logits": 0.75,
    }


def test_the_curve_and_its_areas_by_hand():
    model, pairs = two_layers(), two_layer_pairs()
    scores = attribute_edges(model, pairs, logit_difference, **QUIET)
    # of 12 edges, by |score|: a1.h0->logits 8, two of 6, input->a1.h0<v> 2, the others 0
    curve = faithfulness_curve(model, pairs, scores, logit_difference, [0, 1, 3, 4, 12], **QUIET)
    assert curve.total == 12
    assert [point.mean for point in curve.points] == [0, 0, 0.75, 1, 1]
    assert curve.cpr == pytest.approx((0 + 2 * 0.375 + 0.875 + 8) / 12)
    assert curve.cmd == pytest.approx((1 + 2 * 0.625 + 0.125 + 0) / 12)
    assert curve.first_to_reach(0.7) == 3
    assert curve.first_to_reach(1.1) is None


def test_the_areas_are_those_of_mibs_code():
    """addition-sparse on some pairs: 8 of its 175 edges keep 0.1475 of the metric, 17 keep all of it."""
    kept = [0, 0, 0, 0, 0, 0.1475, 1, 1, 1, 1]
    one = torch.ones(1)
    points = tuple(Faithfulness(share * one, one, 0 * one) for share in kept)
    curve = FaithfulnessCurve((0, 0, 0, 1, 3, 8, 17, 35, 87, 175), 175, points, SIZES)
    # MIB's loop: sum over neighbours of (difference of the nominal shares) * (mean of the two heights)
    assert curve.cpr == pytest.approx(0.9309, abs=1e-8)
    assert curve.cmd == pytest.approx(0.0681, abs=1e-8)


def test_mibs_cpr_takes_edges_that_lower_the_metric_last():
    model, pairs = two_layers(), two_layer_pairs()
    scores = attribute_edges(model, pairs, logit_difference, **QUIET)
    # the largest edge is now one that lowers the metric: by |score| it comes first, by the score itself last
    mean = scores.mean.clone()
    mean[scores.graph.edge("input->logits")] = -9
    worst = replace(scores, mean=mean)
    assert worst.top(1).edges == ["input->logits"] and worst.top(1, signed=True).edges == ["a1.h0->logits"]
    assert "input->logits" not in worst.top(11, signed=True)
    by_size, signed = (
        faithfulness_curve(model, pairs, worst, logit_difference, [0, 4, 12], choose, **QUIET)
        for choose in ("top", "signed")
    )
    assert [point.mean for point in by_size.points] == [0, 0.75, 1]  # the fourth is no longer among them
    assert [point.mean for point in signed.points] == [0, 1, 1]
    assert signed.cpr == pytest.approx((0.5 * 4 + 8) / 12) and signed.cpr > by_size.cpr


def test_sizes_are_rounded_down_as_mib_does():
    model, pairs = two_layers(), two_layer_pairs()
    scores = attribute_edges(model, pairs, logit_difference, **QUIET)  # of 12 edges
    curve = faithfulness_curve(model, pairs, scores, logit_difference, [0.05, 0.15, 0.5, 12], **QUIET)
    assert curve.n_edges == (0, 1, 6, 12) and curve.shares == (0.05, 0.15, 0.5, 1.0)
    assert [point.mean for point in curve.points] == [0, 0, 1, 1]
    assert curve.cpr == pytest.approx(0.35 * 0.5 + 0.5)


# -- several at once


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_circuits_that_run_together_do_as_each_alone(family: str):
    model, pairs = tiny_bridge(family), tiny_pairs()
    graph = graph_of(model, pairs)
    circuits = [top(graph, torch.randn(graph.exists.shape), number) for number in (0, 10, 40, 70)]
    with open_request(model, pairs, logit_difference) as request:
        together = CircuitRunner(request, graph, "corrupted").run(circuits)
    for circuit, found in zip(circuits, together, strict=True):
        alone = faithfulness(model, circuit, pairs, logit_difference, **QUIET)
        torch.testing.assert_close(found.circuit, alone.circuit, rtol=1e-4, atol=1e-5)


# -- both ends, in every family


@pytest.mark.parametrize("family", READABLE)
def test_all_edges_are_the_model_and_none_the_corrupted_run(family: str):
    model, pairs = tiny_bridge(family), tiny_pairs()
    clean, corrupted = metric_of(model, pairs), metric_of(model, pairs, corrupted=True)
    graph = graph_of(model, pairs)
    found = faithfulness(model, whole(graph), pairs, logit_difference, **QUIET)
    torch.testing.assert_close(found.circuit, clean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.clean, clean, rtol=1e-4, atol=1e-5)
    nothing = faithfulness(model, circuit_of(graph), pairs, logit_difference, **QUIET)
    torch.testing.assert_close(nothing.circuit, corrupted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(nothing.ablated, corrupted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ablation", ["mean", "zero"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "gemma2", "olmo2"])
def test_all_edges_are_the_model_under_every_ablation(family: str, ablation: str):
    model, pairs = tiny_bridge(family), tiny_pairs()
    found = faithfulness(model, whole(graph_of(model, pairs)), pairs, logit_difference, ablation, **QUIET)
    torch.testing.assert_close(found.circuit, metric_of(model, pairs), rtol=1e-4, atol=1e-4)
    assert (found.ablated - found.clean).abs().max() > 0.01


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "olmo2"])
def test_leaving_out_one_edge_is_patching_it(family: str):
    model, pairs = tiny_bridge(family), tiny_pairs()
    exact = patch_edges(model, pairs, logit_difference, **QUIET)
    graph = exact.graph
    assert exact.per_prompt is not None
    for name in ("m1->logits", "input->a1.h2<k>", "m0->a1.h3<v>", "input->m0", "a0.h0->a1.h1<q>"):
        left = Circuit(graph, graph.exists & ~graph.matrix([name]), torch.zeros(graph.exists.shape))
        found = faithfulness(model, left, pairs, logit_difference, **QUIET)
        place = graph.edge(name)
        expected = exact.per_prompt[:, place[0], place[1]]
        torch.testing.assert_close(found.clean - found.circuit, expected, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_leaving_out_all_edges_of_a_source_is_patching_it(family: str):
    model, pairs = tiny_bridge(family), tiny_pairs()
    graph = graph_of(model, pairs)
    kept = graph.exists.clone()
    kept[graph.source("m0")] = False
    found = faithfulness(model, Circuit(graph, kept, torch.zeros(kept.shape)), pairs, logit_difference, **QUIET)
    _, cache = model.run_with_cache(pairs.corrupted)
    corrupted = cache["blocks.0.hook_mlp_out"]
    with torch.no_grad():
        logits = model.run_with_hooks(pairs.clean, fwd_hooks=[("blocks.0.hook_mlp_out", lambda x, hook: corrupted)])
    torch.testing.assert_close(found.circuit, logit_difference(logits, pairs), rtol=1e-4, atol=1e-4)


def test_pruning_changes_nothing_under_corrupted_ablation():
    model, pairs = tiny_bridge("gpt2"), tiny_pairs()
    graph = graph_of(model, pairs)
    chosen = top(graph, torch.randn(graph.exists.shape), 30)
    assert len(chosen.pruned()) < 30
    before, after = (
        faithfulness(model, some, pairs, logit_difference, **QUIET).circuit for some in (chosen, chosen.pruned())
    )
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-5)


def test_a_sparse_model_and_half_precision():
    pairs = tiny_pairs()
    sparse = sl.sparsify(tiny_bridge("llama"), gate_bias=-0.1)
    half = bridge_of(tiny_model("gpt2").to(torch.bfloat16))
    for model, atol in ((sparse, 1e-4), (half, 0.05)):
        found = faithfulness(model, whole(graph_of(model, pairs)), pairs, logit_difference, **QUIET)
        torch.testing.assert_close(found.circuit, metric_of(model, pairs).float(), rtol=0.05, atol=atol)


def test_batches_do_not_matter():
    model, pairs = tiny_bridge("llama"), tiny_pairs(5)
    circuit = top(graph_of(model, pairs), torch.rand(graph_of(model, pairs).exists.shape), 60)
    for ablation in ("corrupted", "mean"):
        together = faithfulness(model, circuit, pairs, logit_difference, ablation, memory=2**30, **QUIET)
        with pytest.raises(ValueError, match=r"too small: one prompt takes \d+") as refused:
            faithfulness(model, circuit, pairs, logit_difference, "corrupted", memory=1, **QUIET)
        smallest = int(str(refused.value).rsplit(" ", 1)[1]) + 2**14
        apart = faithfulness(model, circuit, pairs, logit_difference, ablation, memory=smallest, **QUIET)
        torch.testing.assert_close(together.circuit, apart.circuit, rtol=1e-4, atol=1e-5)


def test_the_interval_is_that_of_the_ratio_of_means():
    found = Faithfulness(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 4.0]), torch.tensor([0.0, 0.0]))
    assert found.mean == pytest.approx(4 / 6)
    assert found.interval().mean == pytest.approx(4 / 6)
    assert found.per_prompt.tolist() == [0.5, 0.75]


# -- what is refused


def test_a_circuit_from_another_model():
    other = whole(Graph.of_shape(3, 2))
    with pytest.raises(ValueError, match="3 layers of 2 heads, not to this one with 2 layers of 4 heads"):
        faithfulness(tiny_bridge("gpt2"), other, tiny_pairs(), logit_difference, **QUIET)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ablation": "noise"}, "no such ablation: 'noise'"),
        ({"memory": 10}, "memory = 10 bytes is too small"),
        ({"metric": lambda logits, pairs: logits.mean()}, "want a tensor, one value for each prompt"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str):
    model, pairs = tiny_bridge("gpt2"), tiny_pairs()
    circuit = whole(Graph.of_shape(2, 4))
    with pytest.raises(ValueError, match=message):
        faithfulness(model, circuit, pairs, options.pop("metric", logit_difference), **options, **QUIET)


def test_a_curve_of_sizes_that_do_not_rise():
    model, pairs = tiny_bridge("gpt2"), tiny_pairs()
    scores = attribute_edges(model, pairs, logit_difference, **QUIET)
    with pytest.raises(ValueError, match="sizes must rise"):
        faithfulness_curve(model, pairs, scores, logit_difference, [0.5, 0.1], **QUIET)
    with pytest.raises(ValueError, match="no such choice: 'best'"):
        faithfulness_curve(model, pairs, scores, logit_difference, [0.5], "best", **QUIET)


def test_the_minimality_of_nothing():
    with pytest.raises(ValueError, match="no edge that could be redundant"):
        minimality(tiny_bridge("gpt2"), circuit_of(Graph.of_shape(2, 4)), tiny_pairs(), logit_difference, **QUIET)


@pytest.mark.parametrize("family", ["gpt2", "neox", "phi", "gemma2", "olmo2"])
def test_writes_add_up_to_the_streams_that_are_read(family: str):
    model, pairs = tiny_bridge(family), tiny_pairs()
    for name, values in model.named_parameters():
        if "bias" in name:
            values.data = torch.randn_like(values) / 8
    with open_request(model, pairs, logit_difference) as request:
        own = ablated_by(request)
        again = ablated_by(request, writes_of(request.reading, own.recorded))
    assert own.streams.keys() == again.streams.keys() | own.streams.keys()
    for name, stream in again.streams.items():
        torch.testing.assert_close(stream, own.streams[name], rtol=1e-4, atol=1e-5)


def test_zeros_are_exact_so_the_order_of_prompts_does_not_open_gates():
    model = sl.load("stories260k-sparse")
    pairs = TASKS["gendered_pronoun"].tokenize(model.tokenizer, 16)
    scores = attribute_edges(model, pairs, logit_difference, **QUIET)
    order = torch.randperm(len(pairs))
    one, other = (
        faithfulness(model, scores.top(25), some, logit_difference, "zero", **QUIET) for some in (pairs, pairs[order])
    )
    assert torch.equal(one.ablated, torch.zeros(16))
    torch.testing.assert_close(one.circuit[order], other.circuit, atol=1e-5, rtol=1e-4)
    with open_request(model, pairs, logit_difference) as request:
        batch = request.batch(torch.arange(2))
        shape = (len(batch.reading.graph.sources), 1, batch.pairs.clean.shape[1], model.cfg.d_model)
        assert not any(stream.any() for stream in ablated_by(batch, torch.zeros(shape)).streams.values())


@pytest.mark.parametrize("ablation", ["corrupted", "mean", "zero"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "gemma2"])
def test_what_a_circuit_does_not_touch_need_not_run(family: str, ablation: str, monkeypatch: pytest.MonkeyPatch):
    """Against runs in which every block runs and no edge is pruned."""
    model, pairs = tiny_bridge(family), tiny_pairs()
    graph = graph_of(model, pairs)
    edges = (
        "input->a0.h1<v>",
        "a0.h1->logits",
        "input->m1",
        "m1->logits",
        "input->m0",
        "m0->a1.h1<v>",
        "a1.h1->logits",
    )
    circuits = [circuit_of(graph, *edges[:number]) for number in range(len(edges) + 1)]
    circuits.append(circuit_of(graph, *edges[:2], "a0.h0->a1.h1<v>", "a1.h1->logits"))  # nothing leads to a0.h0
    # nothing follows a0.h0, but under a norm behind the heads it changes what a0.h1 writes
    circuits.append(circuit_of(graph, *edges[:2], "input->a0.h0<v>"))
    with open_request(model, pairs, logit_difference) as request:
        quick = CircuitRunner(request, graph, ablation).run(circuits)
        monkeypatch.setattr(Circuit, "pruned", lambda circuit, from_input=True: circuit)
        monkeypatch.setattr(ablated_run, "skipping", lambda *_: nullcontext())
        whole = CircuitRunner(request, graph, ablation).run(circuits)
    for one, other in zip(quick, whole, strict=True):
        torch.testing.assert_close(one.circuit, other.circuit, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(quick[2].circuit, quick[2].ablated)
