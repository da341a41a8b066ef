"""Why a gate of a HookedTransformer is open: the pairs add up to its score, in every kind of model."""

import pytest
import torch

import sparselens as sl
from sparselens.analyses import explain_edge
from tests.hooked.test_hooked_attribution import KINDS, make_model, make_pairs


@pytest.mark.parametrize("gate_bias", [None, 0.1])
@pytest.mark.parametrize("kind", KINDS)
def test_pairs_add_up_to_the_score(kind: str, gate_bias: float | None):
    model, tokens = make_model(kind, gate_bias), make_pairs().clean
    for by_position in (False, True):
        found = explain_edge(model, tokens, "a1.h1", 5, 2, by_position=by_position)
        with torch.no_grad():
            _, cache = model.run_with_cache(tokens)
        total = found.per_prompt.sum((1, 2)) + found.position_bias
        if kind == "gemma2":
            total = 2 * torch.tanh(total / 2)
        torch.testing.assert_close(total, cache["blocks.1.attn.hook_attn_scores"][:, 1, 5, 2], rtol=1e-5, atol=1e-6)
        assert bool(found.position_bias.any()) == (kind == "alibi")
        assert (found.is_open is not None) == sl.is_sparse(model)


def test_a_longer_prompt_before_changes_no_explanation():
    model, tokens = make_model("alibi", 0.1), make_pairs().clean
    before = explain_edge(model, tokens, "a1.h1", 5, 2)
    with torch.no_grad():
        model(tokens.repeat(1, 2))
        _, cache = model.run_with_cache(tokens)
    after = explain_edge(model, tokens, "a1.h1", 5, 2)
    assert torch.equal(after.is_open, before.is_open)
    torch.testing.assert_close(after.score + after.gate_bias, before.score + before.gate_bias)
    logits = cache["blocks.1.attn.hook_gate_logits"][:, 1, 5, 2]
    torch.testing.assert_close(after.score + after.gate_bias, logits)
