"""Logit lens, direct logit attribution, path patching and head roles of a HookedTransformer."""

from typing import Any

import pytest
import torch

import sparselens as sl
from sparselens.analyses import (
    attention_edges,
    direct_logit_attribution,
    head_roles,
    logit_lens,
    patch_edges,
    patch_paths,
    side_by_side,
)
from sparselens.prompts.metrics import logit_difference
from tests.hooked.test_hooked_attribution import KINDS, make_model, make_pairs

QUIET: dict[str, Any] = {"progress": False}
GATES = pytest.mark.parametrize("gate_bias", [None, 0.0])


@GATES
@pytest.mark.parametrize("kind", KINDS)
def test_the_logit_lens_is_transformer_lens_own(kind: str, gate_bias: float | None):
    model, pairs = make_model(kind, gate_bias), make_pairs()
    logits, cache = model.run_with_cache(pairs.clean)
    streams, labels = cache.accumulated_resid(incl_mid=kind not in ("neox", "attention only"), return_labels=True)
    norm = model._modules.get("ln_final") or torch.nn.Identity()
    wanted = [logit_difference(model.unembed(norm(stream)), pairs) for stream in streams]
    found = logit_lens(model, pairs, **QUIET)
    assert list(found.streams) == labels
    torch.testing.assert_close(found.values, torch.stack(wanted, 1).float(), atol=1e-5, rtol=1e-4)
    assert logit_lens(model, pairs.clean).tokens[0][-1] == tuple(map(str, logits[0].argmax(-1).tolist()))


@GATES
@pytest.mark.parametrize("kind", KINDS)
def test_direct_effects_add_up(kind: str, gate_bias: float | None):
    model, pairs = make_model(kind, gate_bias), make_pairs()
    found = direct_logit_attribution(model, pairs, **QUIET)
    torch.testing.assert_close(found.per_prompt.sum(-1), found.clean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.clean, logit_difference(model(pairs.clean), pairs).float(), atol=1e-5, rtol=1e-5)


@GATES
def test_direct_effects_are_transformer_lens_own(gate_bias: float | None):
    model, pairs = make_model("folded", gate_bias), make_pairs()
    found = direct_logit_attribution(model, pairs, **QUIET)
    _, cache = model.run_with_cache(pairs.clean)
    heads, labels = cache.stack_head_results(pos_slice=-1, return_labels=True)
    wanted = cache.logit_attrs(heads, pairs.answer, incorrect_tokens=pairs.wrong_answer, pos_slice=-1)
    for label, values in zip(labels, wanted, strict=True):
        ours = found.per_prompt[:, found.sources.index(f"a{label[1]}.h{label[3]}")]
        torch.testing.assert_close(ours, values.float(), atol=1e-5, rtol=1e-4)


@GATES
@pytest.mark.parametrize("kind", sorted({*KINDS} - {"attention only"}))
def test_paths(kind: str, gate_bias: float | None):
    model, pairs = make_model(kind, gate_bias), make_pairs()
    edges = patch_edges(model, pairs, **QUIET)
    for receiver in ("logits", "a1.h1<k>", "m1"):
        found, column = patch_paths(model, pairs, receiver, **QUIET), edges.graph.destination(receiver)
        torch.testing.assert_close(found.mean, edges.mean[: len(found.sources), column], atol=1e-6, rtol=0)
    assert patch_paths(model, pairs, ["a1.h0<q>", "m1"], "a0.h1", **QUIET).mean.abs() > 0


@GATES
def test_roles_and_pictures(gate_bias: float | None):
    model, pairs = make_model("gpt2", gate_bias), make_pairs()
    places = {name: torch.full((3,), at) for at, name in enumerate(("IO", "S1", "S1+1", "S2", "END"))}
    named = sl.TokenizedPairs(pairs.clean, pairs.corrupted, pairs.answer, pairs.wrong_answer, positions=places)
    found = head_roles(model, named, threshold=0.0, share=0.0, **QUIET)
    assert found.roles["induction"] and len(found.to_frame()) == 4
    _, cache = model.run_with_cache(pairs.clean)
    wanted = cache["blocks.1.attn.hook_pattern"][:, 0, 4, 1].float()
    torch.testing.assert_close(found.attention[:, 1, 0, found.links.index("END->S1")], wanted)
    edges = attention_edges(model, pairs)
    assert len(side_by_side({"one": edges, "other": edges}).layout.panels) == 2
