"""Memory does not grow with the number of prompts, except for a few numbers per prompt."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import sparselens as sl
from sparselens.analyses import attribute_edges, faithfulness, patch_edges
from sparselens.analyses.engine.partial_runs import peak_bytes
from sparselens.prompts.metrics import logit_difference
from tests.analyses.small_models import tiny_pairs
from tests.tiny_models import tiny_bridge

BUDGET = 2 * 10**5
OWN = 64  # bytes of a prompt that stay: its number, length and metrics. Its tokens take 144, its scores 1,276


def edges(model: Any, pairs: sl.TokenizedPairs, method: str) -> Any:
    return attribute_edges(
        model, pairs, logit_difference, method, steps=2, per_prompt=False, memory=BUDGET, progress=False
    )


def circuit(model: Any, pairs: sl.TokenizedPairs, ablation: str) -> Any:
    best = edges(model, pairs[:2], "eap").top(20)
    return faithfulness(model, best, pairs, logit_difference, ablation, memory=BUDGET, progress=False)


@pytest.mark.parametrize(
    ("call", "option"),
    [(edges, "eap"), (edges, "eap-ig"), (circuit, "corrupted"), (circuit, "mean")],
)
def test_peak_is_the_same_for_few_and_many_prompts(call: Callable[..., Any], option: str):
    model, pairs = tiny_bridge("gpt2"), tiny_pairs(12)
    few, many = (pairs[torch.arange(n) % 12] for n in (24, 72))
    peaks = [peak_bytes(lambda some=some: call(model, some, option))[1] for some in (few, many)]
    assert peaks[1] - peaks[0] <= OWN * (len(many) - len(few))
    assert BUDGET / 2 < peaks[0] < 1.25 * BUDGET  # the mean writes or scores come on top


def test_exact_scores_grow_by_themselves_alone():
    model, pairs = tiny_bridge("gpt2"), tiny_pairs(12)
    named = ["input->logits", "m0->m1", "a0.h1->a1.h2<q>"]
    few, many = (pairs[torch.arange(n) % 12] for n in (24, 72))
    (scores, small), (_, large) = (
        peak_bytes(lambda some=some: patch_edges(model, some, logit_difference, named, memory=BUDGET, progress=False))
        for some in (few, many)
    )
    own = 4 * scores.exists.numel() + OWN
    assert large - small <= 2 * own * (len(many) - len(few))  # NaN is put in through a copy
