"""Scores of nodes and attention edges: hand-computed, and as parts and sums of other scores."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import sparselens as sl
from sparselens.analyses.attribution.edges import attribute_edge_positions, attribute_edges
from sparselens.analyses.attribution.integration import BY_GRADIENT
from sparselens.analyses.attribution.nodes import attribute_attention_edges, attribute_nodes
from sparselens.prompts.metrics import logit_difference
from sparselens.prompts.tokenized import TokenizedPairs
from tests.analyses.small_models import tiny_pairs, two_layer_pairs, two_layers
from tests.tiny_models import KINDS_OF_BLOCKS, tiny_bridge

POST_NORM = {"gemma2", "gemma3", "olmo2"}  # heads write their share of a norm, which their attention edges do not
QUIET: dict[str, Any] = {"progress": False}


def test_scores_worked_out_by_hand():
    """The numbers are those of test_edges.

    The gradient is (2, -4) at what a0.h0 writes at position 1, (1, -3) at position 0; z is half of what is written.
    """
    model, pairs = two_layers(), two_layer_pairs()
    assert attribute_nodes(model, pairs, logit_difference, **QUIET).mean.tolist() == [8, 6, 8]
    edges = attribute_attention_edges(model, pairs, logit_difference, **QUIET)
    # layer 0: from position 0 (1, 0) - (2, 1); to itself times 2 (1, -3) = 4, to position 1 times (2, -4) = 2
    # layer 1: values (3, 0) - (6, 9) from position 0 and (1, 6) - (2, 9) from position 1, times (1, -1) = 6 and 2
    assert edges.mean[:, 0].tolist() == [[[4, 0], [2, 0]], [[0, 0], [6, 2]]]


@pytest.mark.parametrize(
    ("family", "method"),
    [(family, "eap") for family in KINDS_OF_BLOCKS]
    + [(family, method) for family in ("gpt2", "gemma2") for method in BY_GRADIENT[1:]],
)
def test_a_node_scores_what_its_edges_add_up_to(family: str, method: str):
    model, pairs = tiny_bridge(family), tiny_pairs()
    nodes, edges = (
        ask(model, pairs, logit_difference, method, 2, **QUIET) for ask in (attribute_nodes, attribute_edges)
    )
    assert edges.per_prompt is not None
    sums = edges.per_prompt.sum(-1)
    torch.testing.assert_close(nodes.per_prompt, sums, rtol=1e-3, atol=2e-5)
    torch.testing.assert_close(nodes.mean, nodes.per_prompt.mean(0))
    torch.testing.assert_close(nodes.clean, edges.clean)


@pytest.mark.parametrize("family", sorted(set(KINDS_OF_BLOCKS) - POST_NORM))
def test_a_head_scores_what_its_attention_edges_add_up_to(family: str):
    model, pairs = tiny_bridge(family), tiny_pairs()
    edges = attribute_attention_edges(model, pairs, logit_difference, **QUIET)
    nodes = attribute_nodes(model, pairs, logit_difference, **QUIET)
    assert edges.per_prompt is not None
    heads = [place for place, name in enumerate(nodes.sources) if name.startswith("a")]
    sums = edges.per_prompt.sum((-1, -2)).flatten(1)
    torch.testing.assert_close(sums, nodes.per_prompt[:, heads], rtol=1e-3, atol=2e-5)


def test_only_open_attention_edges_of_a_sparse_model_score():
    model, pairs = sl.sparsify(tiny_bridge("llama"), gate_bias=-0.1), tiny_pairs()
    edges = attribute_attention_edges(model, pairs, logit_difference, **QUIET)
    assert edges.per_prompt is not None
    gates = []
    for tokens in (pairs.clean, pairs.corrupted):
        _, cache = model.run_with_cache(tokens)
        gates.append(torch.stack([cache[f"blocks.{layer}.attn.hook_gate"] for layer in range(2)], 1))
    closed = (gates[0] + gates[1]) == 0
    assert 0.1 < float(closed.float().mean()) < 1
    assert not edges.per_prompt[closed].any()
    assert edges.per_prompt[~closed].any()


@pytest.mark.parametrize("family", ["gpt2", "llama", "olmo2"])
def test_positions_add_up(family: str):
    model, pairs = tiny_bridge(family), tiny_pairs()
    parts = attribute_edge_positions(model, pairs, logit_difference, **QUIET)
    whole = attribute_edges(model, pairs, logit_difference, **QUIET)
    assert parts.shape == (*whole.mean.shape, 9)
    torch.testing.assert_close(parts.sum(-1), whole.mean, rtol=1e-4, atol=1e-6)
    assert not parts[0, :, :2].any()  # prompts differ from position 2 on


def test_means_over_positions_need_one_length():
    long, mask = tiny_pairs(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[0, 6:] = 0
    mixed = TokenizedPairs(long.clean, long.corrupted, long.answer, long.wrong_answer, attention_mask=mask)
    for attribute in (attribute_edge_positions, attribute_attention_edges):
        with pytest.raises(ValueError, match="prompts have lengths 6 to 9"):
            attribute(tiny_bridge("gpt2"), mixed, logit_difference, **QUIET)


@pytest.mark.parametrize(
    ("attribute", "instead"),
    [
        (attribute_nodes, "patch_heads and patch_activations are exact for nodes"),
        (attribute_attention_edges, "patch_activations with site='attention_edges' is exact"),
        (attribute_edge_positions, "attribute_edges has exact scores"),
    ],
)
def test_what_has_no_exact_scores_says_what_is_exact_and_takes_auto(attribute: Callable[..., Any], instead: str):
    model, pairs = tiny_bridge("gpt2"), tiny_pairs()
    with pytest.raises(ValueError, match=rf"{instead}.*want eap, eap-ig, .*, auto"):
        attribute(model, pairs, logit_difference, "exact", **QUIET)
    auto, default = (
        found if isinstance(found, torch.Tensor) else found.mean
        for found in (attribute(model, pairs, logit_difference, method, **QUIET) for method in ("auto", "eap-ig"))
    )
    assert torch.equal(auto, default)


def test_gates_with_a_slope_are_seen_by_nodes_and_positions_as_by_edges():
    model, pairs = sl.sparsify(tiny_bridge("llama"), gate_bias=-0.1), tiny_pairs()
    how: dict[str, Any] = {"gate_gradient": "straight-through", **QUIET}
    edges, nodes = (ask(model, pairs, logit_difference, **how) for ask in (attribute_edges, attribute_nodes))
    parts = attribute_edge_positions(model, pairs, logit_difference, **how)
    torch.testing.assert_close(nodes.mean, edges.mean.sum(-1), rtol=1e-3, atol=2e-5)
    torch.testing.assert_close(parts.sum(-1), edges.mean, rtol=1e-4, atol=1e-6)
    flat = attribute_nodes(model, pairs, logit_difference, **QUIET)
    assert float((nodes.mean - flat.mean).abs().max()) > 0.01 * float(flat.mean.abs().max())


def test_gates_with_a_slope_are_seen_behind_an_attention_edge():
    model, pairs = sl.sparsify(tiny_bridge("llama"), gate_bias=-0.1), tiny_pairs()
    flat, sloped = (
        attribute_attention_edges(model, pairs, logit_difference, gate_gradient=gradient, **QUIET).mean
        for gradient in ("none", "straight-through")
    )
    assert not torch.allclose(flat[0], sloped[0], rtol=1e-3)  # the gates of the layer above
    torch.testing.assert_close(flat[1], sloped[1])  # no gate is behind these
    with pytest.raises(ValueError, match="no such gate_gradient: 'soft'"):
        attribute_attention_edges(model, pairs, gate_gradient="soft", **QUIET)
