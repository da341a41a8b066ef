"""What edges add within a circuit: the derivative with respect to the share at which they act."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import sparselens as sl
from sparselens.analyses.attribution.edges import attribute_edges
from sparselens.analyses.circuits.ablated_run import ablated_by, edge_gradient, run_circuits
from sparselens.analyses.circuits.circuit_runs import CircuitRunner
from sparselens.analyses.engine.request import Request, open_request
from sparselens.circuits.circuit import Circuit
from sparselens.prompts.metrics import accuracy, logit_difference
from tests.analyses.small_models import tiny_pairs, two_layer_pairs, two_layers
from tests.tiny_models import FAMILIES, tiny_bridge

READABLE = sorted(set(FAMILIES) - {"bert"})


def start_of(batch: Request) -> Tensor:
    name = batch.reading.layers[0].at("hook_resid_pre")
    return batch.record([name]).recorded[name]


def half_of_the_edges(exists: Tensor) -> Tensor:
    chosen = torch.rand(exists.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    return exists & chosen


@pytest.mark.parametrize(("family", "step"), [*((f, 0.01) for f in READABLE), ("gpt2", 0.001), ("llama", 0.001)])
def test_it_is_the_slope_of_the_metric(family: str, step: float):
    """Against central differences of single edges and of all together; in sparse models too small to move a gate."""
    model = tiny_bridge(family)
    if step < 0.01:
        sl.sparsify(model, 0.5)
    with torch.no_grad(), open_request(model, tiny_pairs(2), logit_difference, progress=False) as request:
        batch = request.batch(torch.arange(2))
        ablated, start = ablated_by(batch), start_of(batch)
        kept = 0.5 * half_of_the_edges(batch.reading.graph.exists)

        def metric(shares: Tensor) -> float:
            return float(run_circuits(batch, shares[None], ablated, start).sum())

        found = edge_gradient(batch, kept, ablated, start)
        everywhere = (metric(kept * (1 + step)) - metric(kept * (1 - step))) / (2 * step)
        assert float((found * kept).sum()) == pytest.approx(everywhere, rel=0.01, abs=1e-3)
        largest = (found * (kept > 0)).abs().flatten().topk(3).indices.tolist()
        for place in largest:
            moved = torch.zeros_like(kept)
            moved.view(-1)[place] = step
            slope = (metric(kept + moved) - metric(kept - moved)) / (2 * step)
            assert float(found.flatten()[place]) == pytest.approx(slope, rel=0.01, abs=1e-3)
        assert found.flatten()[largest[0]] != 0


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_of_all_edges_it_is_eap(family: str):
    model, pairs = tiny_bridge(family), tiny_pairs(3)
    eap = attribute_edges(model, pairs, logit_difference, "eap", progress=False).mean
    with torch.no_grad(), open_request(model, pairs, logit_difference, progress=False) as request:
        batch = request.batch(torch.arange(3))
        exists = batch.reading.graph.exists
        found = edge_gradient(batch, exists.float(), ablated_by(batch), start_of(batch)) * exists
    torch.testing.assert_close(found / 3, eap, rtol=1e-4, atol=1e-6)


def test_by_hand_both_edges_of_a_path_add_half_of_what_it_adds():
    """Half of each of two shares is a quarter of their product, whose slopes there are a half each."""
    model, pairs, path = two_layers(), two_layer_pairs(), ("input->a1.h0<v>", "a1.h0->logits")
    with torch.no_grad(), open_request(model, pairs, logit_difference, progress=False) as request:
        graph = request.reading.graph
        circuit = Circuit(graph, graph.matrix(path), torch.zeros(graph.exists.shape))
        runner = CircuitRunner(request, graph, "corrupted", gradients=True)
        ((alone,), found) = runner.run([circuit]), runner.contributions(circuit)
    adds = float((alone.circuit - alone.ablated).mean())
    assert adds != 0 and [float(found[graph.edge(edge)]) for edge in path] == pytest.approx([adds / 2, adds / 2])
    assert int((found != 0).sum()) == 2


@pytest.mark.parametrize("options", [{}, {"batch_size": 1}, {"memory": 2**21}])
@pytest.mark.parametrize("ablation", ["corrupted", "mean", "zero"])
def test_batches_change_nothing(ablation: str, options: dict[str, Any]):
    model, pairs = tiny_bridge("llama"), tiny_pairs(5)
    whole = attribute_edges(model, pairs, logit_difference, "eap", progress=False)
    values = list[Tensor]()
    for budget in ({"batch_size": 5}, options):
        with torch.no_grad(), open_request(model, pairs, logit_difference, progress=False, **budget) as request:
            runner = CircuitRunner(request, whole.graph, ablation, gradients=True)
            values.append(runner.contributions(whole.top(40)))
    torch.testing.assert_close(values[1], values[0], rtol=1e-4, atol=1e-6)
    assert values[0].any() and not values[0][~whole.top(40).kept].any()


def test_a_metric_without_a_gradient_is_refused():
    model, pairs = tiny_bridge("gpt2"), tiny_pairs(2)
    scores = attribute_edges(model, pairs, logit_difference, "eap", progress=False)
    whole = replace(scores.top(1), kept=scores.exists)
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match="the metric has no gradient: pruning needs one"),
        open_request(model, pairs, accuracy, progress=False) as request,
    ):
        CircuitRunner(request, scores.graph, "corrupted", gradients=True).contributions(whole)
