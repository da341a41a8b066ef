"""Top-k attention: which edges it keeps, what it costs, and that it leaves no trace."""

from typing import Any

import pytest
import torch

import sparselens as sl
from sparselens.analyses import attention_edges, top_k_attention
from sparselens.analyses.sparsity.top_k import CLOSED, largest
from tests.analyses.small_models import two_layers
from tests.tiny_models import tiny_bridge, tiny_model, tiny_tokens

LIVE_AND_WRAPPED = ("gpt2", "llama", "neo", "opt", "gpt-oss", "bert")


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens)


def test_the_k_largest_and_of_equal_ones_the_earliest():
    scores = torch.tensor([[[[1.0, 3.0, 2.0, 3.0, 3.0]]]])
    assert largest(scores, 1).tolist() == [[[[False, True, False, False, False]]]]
    assert largest(scores, 2).tolist() == [[[[False, True, False, True, False]]]]
    assert largest(scores, 4).tolist() == [[[[False, True, True, True, True]]]]
    assert largest(scores, 9).all()


def test_a_head_that_looks_at_all_alike_is_left_with_its_first_key():
    # layer 0 writes 2 (1, 0) to both positions, layer 1 then reads (3, 0) at position 0 and writes 2 (6, 0)
    model = two_layers()
    with top_k_attention(model, 1):
        out = logits(model, torch.tensor([[0, 1]]))[0]
    assert out[:, :2].tolist() == [[9.0, 0.0], [8.0, 1.0]]


@pytest.mark.parametrize("family", LIVE_AND_WRAPPED)
def test_all_keys_are_the_dense_model_and_the_pattern_sums_to_one(family: str):
    model, tokens = tiny_bridge(family), tiny_tokens()
    dense = logits(model, tokens)
    with top_k_attention(model, tokens.shape[1]):
        assert torch.equal(logits(model, tokens), dense)
    with top_k_attention(model, 2):
        with sl.record_gates(model) as gates, torch.no_grad():
            changed, cache = model.run_with_cache(tokens)
        edges = attention_edges(model, tokens)
    assert not torch.allclose(changed, dense)
    weights = cache["blocks.1.attn.hook_pattern"]
    kept = weights > 0
    assert kept.sum(-1).max() == 2
    if family != "gpt-oss":  # whose attention sink takes part of the weight
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))
    each = 18 if family == "bert" else 17  # in causal models the first of nine queries sees only one key
    assert gates.open.tolist() == [[each] * 4] * 2
    assert len(edges) == 2 * 2 * 4 * each
    assert torch.equal(logits(model, tokens), dense)
    assert not sl.is_sparse(model)


def test_the_kept_keys_share_what_the_softmax_gives_them():
    model, tokens = tiny_bridge("gpt2"), tiny_tokens()
    _, cache = model.run_with_cache(tokens)
    scores, dense = cache["blocks.0.attn.hook_attn_scores"], cache["blocks.0.attn.hook_pattern"]
    with top_k_attention(model, 3), torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    wanted = dense * largest(scores, 3)
    torch.testing.assert_close(cache["blocks.0.attn.hook_pattern"], wanted / wanted.sum(-1, keepdim=True))


def test_closed_edges_stay_visible_to_the_count():
    model, tokens = tiny_bridge("llama"), tiny_tokens()
    with top_k_attention(model, 2), sl.record_gates(model) as gates, torch.no_grad():
        model(tokens)
    assert gates.visible_pairs.tolist() == [[45.0] * 4] * 2
    assert gates.edges_per_query_per_head == pytest.approx(17 / 9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_counts_alike(dtype: torch.dtype):
    assert float(torch.tensor(CLOSED, dtype=dtype)) == CLOSED
    model = tiny_bridge("gpt2").to(dtype)
    with top_k_attention(model, 2), sl.record_gates(model) as gates, torch.no_grad():
        model(tiny_tokens())
    assert gates.edges_per_query_per_head == pytest.approx(17 / 9)


def test_refusals_leave_the_model_as_it_was():
    model = tiny_bridge("gpt2")
    with pytest.raises(ValueError, match="k = 0"), top_k_attention(model, 0):
        pass
    with pytest.raises(ValueError, match="not a GPT2LMHeadModel"), top_k_attention(tiny_model("gpt2"), 1):
        pass
    with pytest.raises(ZeroDivisionError), top_k_attention(model, 1):
        raise ZeroDivisionError
    assert not sl.is_sparse(model)
    with pytest.raises(ValueError, match="densify it first"), top_k_attention(sl.sparsify(model, 0.0), 1):
        pass
