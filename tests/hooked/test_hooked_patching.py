"""Activation patching, top components and dependency cones of a HookedTransformer."""

from typing import Any

import pytest
import torch
import transformer_lens.patching as theirs
from transformer_lens import HookedTransformer, HookedTransformerConfig

import sparselens as sl
from sparselens.analyses import dependency_cone, keep_top, outside_effect, patch_activations, patch_heads
from sparselens.prompts.metrics import logit_difference

KINDS: dict[str, dict[str, Any]] = {
    "gpt2-like": {},
    "llama-like": {
        "n_key_value_heads": 1,
        "positional_embedding_type": "rotary",
        "rotary_dim": 4,
        "normalization_type": "RMS",
        "gated_mlp": True,
    },
    "parallel": {"parallel_attn_mlp": True},
    "attention only": {"attn_only": True},
}


def make_model(kind: str, gate_bias: float | None) -> HookedTransformer:
    sizes: dict[str, Any] = {"n_layers": 2, "d_model": 8, "n_ctx": 6, "d_head": 4, "n_heads": 2, "d_vocab": 11}
    if kind != "attention only":
        sizes["act_fn"] = "gelu"
    model = HookedTransformer(HookedTransformerConfig(**sizes, **KINDS[kind], seed=0, device="cpu"))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)), alpha=0.3)
    if gate_bias is not None:
        sl.sparsify(model, gate_bias)
    return model.eval()


def make_pairs() -> sl.TokenizedPairs:
    clean, corrupted = torch.randint(11, (2, 3, 6), generator=torch.Generator().manual_seed(0))
    return sl.TokenizedPairs(clean, corrupted, torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6]))


@pytest.mark.parametrize("gate_bias", [None, 0.0])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_transformer_lens(kind: str, gate_bias: float | None):
    model, pairs = make_model(kind, gate_bias), make_pairs()
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
    model, pairs = make_model(kind, None), make_pairs()
    kept = keep_top(model, pairs, [patch_heads(model, pairs, progress=False)], progress=False)
    torch.testing.assert_close(kept.values[:, -1], kept.clean, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_depends_on_its_cone_alone(kind: str):
    model, pairs = make_model(kind, 0.0), make_pairs()
    cone = dependency_cone(model, pairs)
    assert outside_effect(model, cone, pairs.corrupted).max() < 1e-5
