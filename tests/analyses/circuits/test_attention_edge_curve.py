"""Circuits of attention edges: all of them, none, one head's edges, and the open ones of sparse models."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import sparselens as sl
from sparselens.analyses import attention_edge_curve, attribute_attention_edges
from sparselens.analyses.circuits.attention_edge_curve import attention_edge_curve as curve_of
from sparselens.prompts.metrics import logit_difference
from tests.analyses.small_models import tiny_pairs, two_layer_pairs, two_layers
from tests.tiny_models import tiny_bridge

QUIET: dict[str, Any] = {"progress": False}


def patched(model: Any, pairs: Any, heads: Any) -> torch.Tensor:
    """The metric of the clean run in which the named heads have their outputs of the corrupted run."""
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]
    _, cache = model.run_with_cache(pairs.corrupted)

    def take(z: torch.Tensor, hook: Any) -> torch.Tensor:
        z = z.clone()
        for head in heads[int(hook.name.split(".")[1])]:
            z[:, :, head] = cache[hook.name][:, :, head]
        return z

    return logit_difference(model.run_with_hooks(pairs.clean, fwd_hooks=[(name, take) for name in names]), pairs)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "neox", "gptj"])
def test_all_edges_are_the_clean_run_and_none_that_with_every_head_patched(family: str):
    model, pairs = tiny_bridge(family), tiny_pairs()
    scores = attribute_attention_edges(model, pairs, **QUIET)
    curve = attention_edge_curve(model, pairs, scores, **QUIET)
    assert curve.n_edges[0] == 0
    assert curve.n_edges[-1] == curve.total
    every = [range(model.cfg.n_heads)] * model.cfg.n_layers
    torch.testing.assert_close(curve.points[-1].circuit, curve.points[-1].clean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(curve.points[0].circuit, patched(model, pairs, every), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(curve.points[0].circuit, curve.points[0].ablated)
    assert curve.first_to_reach(1 - 1e-3) is not None


def test_the_edges_of_one_head_are_the_run_with_all_others_patched():
    model, pairs = tiny_bridge("llama"), tiny_pairs()
    scores = attribute_attention_edges(model, pairs, **QUIET)
    assert scores.per_prompt is not None
    layer, head = 1, 0
    alone = torch.zeros_like(scores.per_prompt)
    alone[:, layer, head] = 1
    n = int(alone[0].sum())
    curve = attention_edge_curve(model, pairs, replace(scores, per_prompt=alone), sizes=[n], **QUIET)
    others = [[h for h in range(model.cfg.n_heads) if (at, h) != (layer, head)] for at in range(model.cfg.n_layers)]
    torch.testing.assert_close(curve[n].circuit, patched(model, pairs, others), rtol=1e-4, atol=1e-5)


def test_every_prompt_keeps_its_own_edges_by_size_of_the_score():
    """Of test_nodes' model, prompt by prompt: the score of 6 before that of -4."""
    model, pairs = two_layers(), two_layer_pairs()
    scores = attribute_attention_edges(model, pairs, **QUIET)
    assert scores.per_prompt is not None
    curve = attention_edge_curve(model, pairs, scores, sizes=[0, 1, 2, 5], **QUIET)
    turned = attention_edge_curve(
        model, pairs, replace(scores, per_prompt=-scores.per_prompt), sizes=[0, 1, 2, 5], **QUIET
    )
    for one, other in zip(curve.points, turned.points, strict=True):
        assert one.circuit.tolist() == other.circuit.tolist()
    assert curve[0].mean == 0
    assert curve[5].mean == 1
    best = torch.zeros_like(scores.per_prompt)
    best[:, 1, 0, 1, 0] = 1  # the edge that scores 6
    same = attention_edge_curve(model, pairs, replace(scores, per_prompt=best), sizes=[1], **QUIET)
    assert curve[1].circuit.tolist() == same[1].circuit.tolist()


def test_a_sparse_model_has_no_more_edges_than_are_open_in_either_run():
    model, pairs = tiny_bridge("llama"), tiny_pairs()
    sl.sparsify(model, 0.0)
    scores = attribute_attention_edges(model, pairs, **QUIET)
    curve = attention_edge_curve(model, pairs, scores, batch_size=1, **QUIET)
    opened = torch.zeros(len(pairs))
    for tokens in (pairs.clean, pairs.corrupted):
        _, cache = model.run_with_cache(tokens)
        opened += sum(cache[f"blocks.{n}.attn.hook_gate"].sum((1, 2, 3)) for n in range(model.cfg.n_layers))
    assert 0 < curve.total <= opened.max()
    torch.testing.assert_close(curve.points[-1].circuit, curve.points[-1].clean, rtol=1e-4, atol=1e-5)
    whole = attention_edge_curve(model, pairs, scores, **QUIET)
    for one, other in zip(curve.points, whole.points, strict=True):
        torch.testing.assert_close(one.circuit, other.circuit, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused():
    model, pairs = tiny_bridge("gpt2"), tiny_pairs()
    scores = attribute_attention_edges(model, pairs, **QUIET)
    with pytest.raises(ValueError, match="sizes must rise from 0 or more, not \\[4, 2\\]"):
        curve_of(model, pairs, scores, sizes=[4, 2], **QUIET)
    with pytest.raises(
        ValueError, match=f"these are scores of {len(pairs)} prompts: want those of every edge on each of"
    ):
        curve_of(model, pairs[:1], scores, **QUIET)
    with pytest.raises(ValueError, match="these are scores of means only"):
        curve_of(model, pairs, replace(scores, per_prompt=None), **QUIET)
