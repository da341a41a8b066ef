"""Activation patching, top components and dependency cones of a HookedTransformer."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformer_lens.patching as theirs

from sparselens.analyses import (
    attribute_edges,
    dependency_cone,
    faithfulness,
    keep_top,
    outside_effect,
    patch_activations,
    patch_heads,
)
from sparselens.analyses.engine.request import Request, open_request
from sparselens.prompts.metrics import logit_difference
from tests.hooked.test_hooked_attribution import KINDS, make_model, make_pairs


@pytest.mark.parametrize("gate_bias", [None, 0.0])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_transformer_lens(kind: str, gate_bias: float | None):
    model, pairs = make_model(kind, gate_bias, torch.float32), make_pairs()
    cases: list[tuple[str, bool, Any]] = [
        ("heads", False, theirs.get_act_patch_attn_head_out_all_pos),
        ("heads", True, theirs.get_act_patch_attn_head_out_by_pos),
        ("mlps", True, theirs.get_act_patch_mlp_out),
        ("attention", True, theirs.get_act_patch_attn_out),
        ("residual", True, theirs.get_act_patch_resid_pre),
        ("attention_edges", False, theirs.get_act_patch_attn_head_pattern_dest_src_pos),
    ]
    with torch.no_grad():
        _, cache = model.run_with_cache(pairs.clean)
    for site, by_position, function in cases:
        if site == "mlps" and kind == "attention only":
            with pytest.raises(ValueError, match=r"blocks\.0\.hook_mlp_out was not called"):
                patch_activations(model, pairs, site=site)
            continue
        with torch.no_grad():
            wanted = function(model, pairs.corrupted, cache, lambda logits: logit_difference(logits, pairs).mean())
        found = patch_activations(
            model, pairs, site=site, base="corrupted", ablation="clean", by_position=by_position, progress=False
        )
        torch.testing.assert_close(found.mean, wanted, atol=1e-5, rtol=0)
        assert (found.effects.abs() > 1e-6).any()


@pytest.mark.parametrize("kind", KINDS)
def test_top_components_end_in_the_clean_run(kind: str):
    model, pairs = make_model(kind, None, torch.float32), make_pairs()
    kept = keep_top(model, pairs, [patch_heads(model, pairs, progress=False)], progress=False)
    torch.testing.assert_close(kept.values[:, -1], kept.clean, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_depends_on_its_cone_alone(kind: str):
    model, pairs = make_model(kind, 0.0, torch.float32), make_pairs()
    cone = dependency_cone(model, pairs)
    assert outside_effect(model, cone, pairs.corrupted).max() < 1e-5


@pytest.mark.parametrize("gate_bias", [None, 0.0])
@pytest.mark.parametrize("kind", KINDS)
def test_runs_begin_behind_what_prompts_have_in_common(
    kind: str, gate_bias: float | None, monkeypatch: pytest.MonkeyPatch
):
    model, pairs = make_model(kind, gate_bias, torch.float32), make_pairs()
    length = pairs.clean.shape[1]
    start = length - 2
    pairs = replace(pairs, corrupted=torch.cat([pairs.clean[:, :start], pairs.corrupted[:, start:]], 1))
    with open_request(model, pairs, "logit_difference") as request:
        assert request.sharing().starts.get(length, 0) >= start

    def results() -> list[torch.Tensor]:
        scores = attribute_edges(model, pairs, progress=False)
        assert scores.per_prompt is not None
        circuit = faithfulness(model, scores.top(9), pairs, progress=False).circuit
        return [patch_heads(model, pairs, progress=False).values, scores.per_prompt, circuit]

    behind = results()
    monkeypatch.setattr(Request, "sharing", lambda request: request)
    for one, other in zip(behind, results(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
