"""Keeping only the top components: ends of the curve, order, hand-computed numbers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import sparselens as sl
from sparselens.analyses import ComponentCurve, keep_top, patch_activations, patch_heads
from sparselens.prompts.metrics import logit_difference
from tests.analyses.hand_model import hand_model, hand_pairs
from tests.tiny_models import tiny_bridge, tiny_tokens


def make_pairs(n: int = 3) -> sl.TokenizedPairs:
    return sl.TokenizedPairs(tiny_tokens(n), tiny_tokens(n, seed=1), torch.arange(n) + 1, torch.arange(n) + 2)


def heads_of(model: Any, pairs: sl.TokenizedPairs):
    return patch_heads(model, pairs, progress=False)


def mlps_of(model: Any, pairs: sl.TokenizedPairs):
    return patch_activations(model, pairs, site="mlps", progress=False)


def test_by_hand():
    model, pairs = hand_model(), hand_pairs()
    # effects of heads: layer 0: 0, -8; layer 1: -2, -4, so they come as a0.h1, a1.h1, a1.h0, a0.h0
    kept = keep_top(model, pairs, [heads_of(model, pairs)], progress=False)
    assert kept.counts == (0, 1, 2, 3, 4)
    # none: (2, 0) -> (2, 2), then (3, 2): (5, 4) -> (10, 4). a0.h1: (6, 6), then (9, 8) -> (18, 8).
    # a1.h1: (11, 8) -> (22, 8). a1.h0: as in the clean run, (22, 6)
    assert kept.values.tolist() == [[6, 10, 14, 16, 16]]
    assert kept.shares.tolist() == [-4, -2, 0, 1, 1]
    assert kept.smallest(0.9) == 3 and kept.smallest(2.0) is None
    both = keep_top(model, pairs, [heads_of(model, pairs), mlps_of(model, pairs)], counts=[0, 6], progress=False)
    # only the embedding is clean: (0, 2) + (2, -2) + (0, 6) = (2, 6), and + (3, 2) + (9, 0) = (14, 8)
    assert both.values[0].tolist() == [6, 16]


@pytest.mark.parametrize("gate_bias", [None, 0.0])
@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "neo"])
def test_the_ends_are_the_clean_and_the_corrupted_run(family: str, gate_bias: float | None):
    model, pairs = tiny_bridge(family), make_pairs()
    if gate_bias is not None:
        sl.sparsify(model, gate_bias)
    scores = [heads_of(model, pairs), mlps_of(model, pairs)]
    kept = keep_top(model, pairs, scores, counts=[0, 10], progress=False, memory=4 * 10**5)
    torch.testing.assert_close(kept.values[:, 1], kept.clean, atol=1e-5, rtol=0)
    # the last token is the same in both runs, so that heads and MLPs are all that differs
    same_end = replace(pairs, corrupted=torch.cat([pairs.corrupted[:, :-1], pairs.clean[:, -1:]], 1))
    scores = [heads_of(model, same_end), mlps_of(model, same_end)]
    kept = keep_top(model, same_end, scores, counts=[0], progress=False)
    torch.testing.assert_close(kept.values[:, 0], kept.corrupted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rank_by", ["prompt", "mean"])
def test_as_in_a_run_with_everything_else_replaced(rank_by: str):
    model, pairs = tiny_bridge("gpt2"), make_pairs()
    heads = heads_of(model, pairs)
    kept = keep_top(model, pairs, [heads], counts=[3], rank_by=rank_by, ablation="zero", progress=False)
    effects = heads.effects.flatten(1)
    chosen = (effects if rank_by == "prompt" else effects.mean(0).expand(3, -1)).abs().topk(3, -1).indices

    def silence(z: torch.Tensor, hook: Any) -> torch.Tensor:
        acts = torch.zeros(3, 8).scatter(1, chosen, 1).reshape(3, 2, 4)[:, int(hook.name.split(".")[1])]
        return z * acts[:, None, :, None]

    with torch.no_grad():
        names = [f"blocks.{layer}.attn.hook_z" for layer in (0, 1)]
        logits = model.run_with_hooks(pairs.clean, fwd_hooks=[(name, silence) for name in names])
    torch.testing.assert_close(kept.values[:, 0], logit_difference(logits, pairs), atol=1e-5, rtol=0)


def test_mean_ablation_is_the_same_at_any_budget():
    model, pairs = tiny_bridge("gpt2"), make_pairs(4)
    scores = [heads_of(model, pairs)]
    wide = keep_top(model, pairs, scores, ablation="mean", progress=False)
    narrow = keep_top(model, pairs, scores, ablation="mean", progress=False, memory=2 * 10**5)
    torch.testing.assert_close(wide.values, narrow.values, atol=1e-6, rtol=1e-5)
    assert wide.interval(2).mean == pytest.approx(float(wide.shares[2]), rel=1e-4)


def test_smallest_is_where_the_share_stays():
    shares = torch.tensor([[0.0, 1.0, 0.5, 0.95, 1.2]])
    kept = ComponentCurve((0, 1, 2, 3, 4), "prompt", shares, torch.ones(1), torch.zeros(1), torch.zeros(1))
    assert kept.smallest(0.9) == 3
    with pytest.raises(ValueError, match="count = 7: want one of 0, 1"):
        kept.interval(7)
    with pytest.raises(ValueError, match=r"counts must rise, not \[3, 1\]"):
        ComponentCurve((3, 1), "prompt", shares[:, :2], torch.ones(1), torch.zeros(1), torch.zeros(1))


def test_a_resample_whose_gap_has_the_other_sign_has_no_smallest():
    clean, nothing = torch.tensor([3.0, -1.0]), torch.zeros(2)
    kept = ComponentCurve((0, 1), "prompt", torch.stack([nothing, clean], 1), clean, nothing, nothing)
    found = kept.smallest_of(np.array([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0], [0.25, 0.75]]))
    assert found[:2].tolist() == [1, 1] and np.isnan(found[2:]).all()


@pytest.mark.parametrize("ablation", ["corrupted", "mean", "zero"])
def test_shares_are_of_what_the_ablation_leaves(ablation: str):
    model, pairs = tiny_bridge("gpt2"), make_pairs(4)
    scores = [
        patch_activations(model, pairs, site=site, ablation=ablation, progress=False) for site in ("heads", "mlps")
    ]
    every, some = (
        keep_top(model, pairs, scores, counts=counts, ablation=ablation, progress=False) for counts in (None, [10, 4])
    )
    assert some.counts == (4, 10)
    torch.testing.assert_close(some.shares, every.shares[[4, 10]])
    torch.testing.assert_close(some.ablated, every.corrupted if ablation == "corrupted" else every.values[:, 0])
    wanted = (every.values.mean(0) - some.ablated.mean()) / (every.clean.mean() - some.ablated.mean())
    torch.testing.assert_close(every.shares, wanted)
    assert every.shares[-1] == pytest.approx(1, abs=1e-4)
    if ablation != "corrupted":
        assert every.shares[0] == 0 and every.interval(0).mean == 0


def test_wrong_scores_are_refused():
    model, pairs = tiny_bridge("gpt2"), make_pairs()
    heads = heads_of(model, pairs)
    by_position = patch_heads(model, pairs, by_position=True, progress=False)
    partly = patch_activations(model, pairs, only=[(0, 0)], progress=False)
    residual = patch_activations(model, pairs, site="residual", progress=False)
    for scores, message in (
        ([], "no scores to rank by"),
        ([by_position], "over all positions"),
        ([partly], "some heads have no score"),
        ([residual], "scores of residual"),
        ([heads_of(model, make_pairs(2))], "scores of 2 prompts for 3"),
    ):
        with pytest.raises(ValueError, match=message):
            keep_top(model, pairs, scores, progress=False)
    with pytest.raises(ValueError, match="count = 9: there are 8 components"):
        keep_top(model, pairs, [heads], counts=[9], progress=False)


def test_counts_in_any_order_are_answered_alike():
    model, pairs = hand_model(), hand_pairs()
    kept = keep_top(model, pairs, [heads_of(model, pairs)], counts=[4, 0, 3, 3], progress=False)
    assert kept.counts == (0, 3, 4) and kept.values.tolist() == [[6, 16, 16]] and kept.smallest(0.9) == 3


def test_old_names_warn_and_work():
    model, pairs = hand_model(), hand_pairs()
    heads = [heads_of(model, pairs)]
    for old, new in (({"per_prompt": False}, {"rank_by": "mean"}), ({"source": "zero"}, {"ablation": "zero"})):
        with pytest.warns(DeprecationWarning, match=rf"keep_top\({next(iter(old))}=\.\.\.\) is now"):
            found = keep_top(model, pairs, heads, progress=False, **old)
        assert torch.equal(found.values, keep_top(model, pairs, heads, progress=False, **new).values)
    with pytest.raises(ValueError, match=r"no such ranking: 'best' \(want prompt, mean\)"):
        keep_top(model, pairs, heads, rank_by="best", progress=False)
