"""The gradient of hard gates: that of training on request, without a change of the forward pass."""

from typing import Any

import pytest
import torch

import sparselens as sl
from sparselens.analyses import attribute_attention_edges, attribute_edges
from sparselens.analyses.engine.gate_gradient import gate_gradient_hooks
from sparselens.analyses.engine.gradients import gradients
from sparselens.analyses.engine.request import open_request
from sparselens.gates.surgery import find_settings
from sparselens.prompts.metrics import logit_difference
from tests.analyses.small_models import tiny_pairs
from tests.tiny_models import tiny_bridge


def sparse_model() -> Any:
    return sl.sparsify(tiny_bridge("gpt2"), 0.0)


def test_the_value_is_the_gate_and_the_slope_that_of_a_sigmoid():
    (_, read), (_, put), *_ = gate_gradient_hooks(sparse_model(), "straight-through")
    logits = torch.tensor([-1.0, 0.5, 3.0, -torch.inf], requires_grad=True)
    hard = (logits > 0).float()
    read(logits)
    gate = put(hard)
    assert gate is not None and torch.equal(gate, hard)
    (slope,) = torch.autograd.grad(gate.sum(), logits)
    soft = torch.sigmoid(logits)
    torch.testing.assert_close(slope, soft * (1 - soft))


def test_it_is_the_gradient_of_training_without_noise():
    model, pairs = sparse_model(), tiny_pairs()
    with open_request(model, pairs, logit_difference) as request:
        batch = request.batch(torch.arange(3))
        plain = gradients(batch)
        through = gradients(batch, edits=gate_gradient_hooks(model, "straight-through"))
        settings = find_settings(model)
        assert settings is not None
        settings.noise = lambda layer, shape, device: torch.full(tuple(shape), 0.5, device=device)
        for block in model.blocks:
            block.attn.training = True  # so that gates are drawn, and no dropout
        trained = gradients(batch)
    torch.testing.assert_close(through.metric, plain.metric)
    for name, gradient in trained.at.items():
        torch.testing.assert_close(through.at[name], gradient, rtol=1e-4, atol=1e-6)
    queries = "blocks.0.attn.hook_q"
    assert (through.at[queries] - plain.at[queries]).abs().max() > 1e-4


def test_edges_whose_scores_decide_over_gates_are_seen():
    model, pairs = sparse_model(), tiny_pairs()
    options: dict[str, Any] = {"progress": False}
    plain, through = (
        attribute_edges(model, pairs, gate_gradient=gradient, **options) for gradient in ("none", "straight-through")
    )
    assert (plain.method, through.method) == ("eap-ig", "eap-ig, straight-through gates")
    torch.testing.assert_close(through.clean, plain.clean)
    changed = {name.partition("->")[2] for name in plain.graph.edge_names((plain.mean - through.mean).abs() > 1e-5)}
    assert any(name.startswith("a1.") and name.endswith(("<q>", "<k>")) for name in changed)
    assert not any(name.startswith("a1.") and name.endswith("<v>") for name in changed)
    assert "logits" not in changed and "m1" not in changed


def test_a_dense_model_has_no_gates():
    assert gate_gradient_hooks(tiny_bridge("llama"), "straight-through") == []


def test_what_has_no_gradient_is_refused():
    model, pairs = sparse_model(), tiny_pairs()
    with pytest.raises(ValueError, match=r"no such gate_gradient: 'soft' \(want none, straight-through\)"):
        attribute_edges(model, pairs, gate_gradient="soft", progress=False)
    with pytest.raises(ValueError, match="exact scores use no gradient"):
        attribute_edges(model, pairs, method="exact", gate_gradient="straight-through", progress=False)
    with pytest.raises(ValueError, match=r"no such method: 'straight' \(want eap, "):
        attribute_attention_edges(model, pairs, method="straight", progress=False)
