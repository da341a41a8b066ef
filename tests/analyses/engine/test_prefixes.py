"""Runs that skip what the two prompts of a pair share at the start give what whole runs give, in every family."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import sparselens as sl
from sparselens import analyses
from sparselens.analyses.engine.request import OpenModel, Request, open_request
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.tasks import TASKS
from tests.analyses.small_models import shipped
from tests.tiny_models import FAMILIES, KINDS_OF_BLOCKS, tiny_bridge, tiny_tokens

QUIET: Any = {"progress": False}


def pairs_from(*starts: int) -> TokenizedPairs:
    """Pairs that differ from these positions on."""
    clean, corrupted = tiny_tokens(len(starts)), tiny_tokens(len(starts))
    for row, start in enumerate(starts):
        corrupted[row, start] = clean[row, start] % 30 + 1
        corrupted[row, start + 1 :] = tiny_tokens(len(starts), seed=5)[row, start + 1 :]
    answers = torch.arange(1, len(starts) + 1)
    return TokenizedPairs(clean, corrupted, answers, answers + 10)


@pytest.fixture
def whole_prompts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes all runs begin at the first token."""
    return lambda: monkeypatch.setattr(Request, "sharing", lambda request: request)


@pytest.mark.parametrize("gate_bias", [None, 0.0])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_causal_family_gives_the_same(family: str, gate_bias: float | None, whole_prompts: Any):
    model, pairs = tiny_bridge(family), pairs_from(6, 4, 7)
    if gate_bias is not None:
        sl.sparsify(model, gate_bias)
    with open_request(model, pairs, "logit_difference") as request:
        assert request.sharing().starts == ({} if family == "bert" else {9: 4})  # which is not causal

    def results() -> list[torch.Tensor]:
        found = [analyses.patch_heads(model, pairs, **QUIET).values]
        if family in KINDS_OF_BLOCKS:
            scores = analyses.attribute_edges(model, pairs, **QUIET)
            assert scores.per_prompt is not None
            found += [scores.per_prompt, analyses.faithfulness(model, scores.top(9), pairs, **QUIET).circuit]
        return found

    behind = results()
    whole_prompts()
    for one, other in zip(behind, results(), strict=True):
        torch.testing.assert_close(one, other, atol=3e-5, rtol=1e-4)


def test_what_each_analysis_says_is_the_same(whole_prompts: Any):
    model = shipped("stories260k-sparse")
    pairs = TASKS["gendered_pronoun"].tokenize(model.tokenizer, 3, seed=1)
    assert len([*pairs.batches(3)]) > 1, "several lengths"

    def results() -> list[torch.Tensor]:
        heads = analyses.patch_heads(model, pairs, base="corrupted", ablation="clean", **QUIET)
        mlps = analyses.patch_activations(model, pairs, site="mlps", **QUIET)
        residual = analyses.patch_activations(model, pairs, site="residual", **QUIET)
        by_position = analyses.patch_activations(model, pairs, site="residual", by_position=True, **QUIET)
        kept = analyses.keep_top(model, pairs, [analyses.patch_heads(model, pairs, **QUIET), mlps], **QUIET)
        exact = analyses.patch_edges(model, pairs, edges=["a0.h0->m2", "a1.h3->a3.h1<k>", "m4->logits"], **QUIET)
        paths = analyses.patch_paths(model, pairs, "a3.h1", senders=["m0", "a1.h2"], **QUIET)
        nodes = analyses.attribute_nodes(model, pairs, gate_gradient="straight-through", **QUIET)
        means = analyses.patch_heads(model, pairs.of_one_length(), ablation="mean", **QUIET)
        zeros = analyses.patch_heads(model, pairs, ablation="zero", **QUIET)
        found = [x.values for x in (heads, mlps, residual, by_position, kept, means, zeros)]
        return [*found, exact.mean.nan_to_num(0), paths.per_prompt, nodes.per_prompt]

    behind = results()
    whole_prompts()
    for one, other in zip(behind, results(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_fewer_positions_run():
    model, pairs, seen = tiny_bridge("llama"), pairs_from(6, 4, 7), list[int]()
    with open_request(model, pairs, "logit_difference") as request:
        batch = request.sharing().batch(torch.arange(3))
        batch.measure([("blocks.0.hook_resid_pre", lambda x: seen.append(x.shape[1]))])
        repeated = batch.rows(torch.tensor([2, 0, 2]))
        torch.testing.assert_close(repeated.measure(), request.measure()[[2, 0, 2]], atol=1e-5, rtol=0)
    assert seen == [5]


def test_prompts_begin_where_any_of_their_length_differs():
    model, pairs = tiny_bridge("gpt2"), pairs_from(6, 4, 7, 8)
    mask = torch.ones_like(pairs.clean)
    mask[3, 0] = 0  # a prompt of 8 tokens whose last differs
    with open_request(model, replace(pairs, attention_mask=mask), "logit_difference") as request:
        assert request.sharing().starts == {9: 4, 8: 7}
    with open_request(model, pairs_from(6, 1, 7), "logit_difference") as request:
        assert request.sharing().starts == {}  # one token is not worth it
    with open_request(model, replace(pairs, positions={"END": torch.tensor([8, 8, 3, 8])}), "accuracy") as request:
        assert request.sharing().starts == {9: 3}  # the answer's position is before the first difference


def test_a_model_is_tried_once_for_each_length_and_beginning(monkeypatch: pytest.MonkeyPatch):
    tried, alike = list[bool](), [True]
    monkeypatch.setattr(f"{Request.__module__}.agrees", lambda *_: tried.append(alike[0]) or alike[0])
    opened = OpenModel(tiny_bridge("gpt2"))

    def starts(*differ: int) -> dict[int, int]:
        with open_request(opened, pairs_from(*differ), "logit_difference") as request:
            return dict(request.sharing().starts)

    assert starts(4, 7) == starts(7, 4) == {9: 4} and tried == [True]
    alike[0] = False
    assert starts(7) == starts(7) == {} and starts(4) == {9: 4} and tried == [True, False]


def test_metrics_of_your_own_see_every_position():
    model, pairs = tiny_bridge("gpt2"), pairs_from(6, 4, 7)
    with open_request(model, pairs, lambda logits, pairs: logits[:, 2, 0]) as request:
        assert request.sharing() is request


def test_a_model_that_forgets_its_cache_runs_whole_prompts(monkeypatch: pytest.MonkeyPatch):
    from transformers.cache_utils import DynamicLayer

    monkeypatch.setattr(DynamicLayer, "update", lambda self, keys, values, *_, **__: (keys, values))
    model, pairs = tiny_bridge("gpt2"), pairs_from(6, 4, 7)
    with open_request(model, pairs, "logit_difference") as request:
        assert request.sharing() is request


def test_encodings_that_depend_on_the_length_are_not_shared():
    """Phi-3's long rotary factors begin at 16 tokens: a prefix of 6 tokens has the short ones."""
    factors = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.0], "long_factor": [3.0, 9.0]}
    scaling = factors | {"original_max_position_embeddings": 16}
    model = tiny_bridge("phi3", rope_parameters=scaling, original_max_position_embeddings=16)
    tokens, mask = tiny_tokens(4, 24), torch.ones(4, 24, dtype=torch.long)
    mask[:2, :12] = (
        0  # the first two prompts have 12 tokens, and differ from the ninth on; the others from the sixth on
    )
    corrupted = tokens.clone()
    corrupted[:2, 21:], corrupted[2:, 6:] = tokens[:2, 21:] % 30 + 1, tokens[2:, 6:] % 30 + 1
    answers = torch.arange(1, 5)
    pairs = TokenizedPairs(tokens * mask, corrupted * mask, answers, answers + 10, attention_mask=mask)
    both, alone = (analyses.attribute_edges(model, some, **QUIET) for some in (pairs, pairs[2:]))
    torch.testing.assert_close(both.clean[2:], sl.evaluate(model, pairs, **QUIET).values[2:], atol=1e-5, rtol=1e-5)
    assert both.per_prompt is not None and alone.per_prompt is not None
    torch.testing.assert_close(both.per_prompt[2:], alone.per_prompt, atol=1e-5, rtol=1e-4)
