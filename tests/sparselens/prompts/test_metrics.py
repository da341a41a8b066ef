"""Every metric against numbers worked out by hand, and on a real run."""

import math

import pytest
import torch

import sparselens as sl
from sparselens.prompts.metrics import METRICS, find_metric
from tests.tiny_models import tiny_bridge, tiny_tokens

# two prompts of two tokens, four words; the answer is read at the last position
AT_END = torch.tensor([[0.0, math.log(2.0), math.log(4.0), math.log(1.0)], [0.0, 0.0, 0.0, math.log(5.0)]])
LOGITS = torch.stack([torch.full((2, 4), 9.0), AT_END], dim=1)
TOKENS = torch.tensor([[0, 1], [2, 3]])


def pairs(answer: list, wrong: list, **more) -> sl.TokenizedPairs:
    return sl.TokenizedPairs(TOKENS, TOKENS.flip(0), torch.tensor(answer), torch.tensor(wrong), **more)


@pytest.mark.parametrize(
    ("metric", "values"),
    [
        # softmax of the first prompt: 1/8, 2/8, 4/8, 1/8; of the second: 1/8, 1/8, 1/8, 5/8
        ("logit_difference", [math.log(2.0), -math.log(5.0)]),
        ("probability_difference", [2 / 8, -4 / 8]),
        ("answer_probability", [4 / 8, 1 / 8]),
        ("rank", [1.0, 2.0]),
        ("accuracy", [1.0, 0.0]),
    ],
)
def test_one_answer(metric: str, values: list[float]):
    found = METRICS[metric](LOGITS, pairs([2, 0], [1, 3]))
    assert found.tolist() == pytest.approx(values)


@pytest.mark.parametrize(
    ("metric", "values"),
    [
        ("logit_difference", [(math.log(4.0) + math.log(2.0)) / 2, math.log(5.0)]),
        ("probability_difference", [6 / 8 - 2 / 8, 5 / 8 - 1 / 8]),
        ("answer_probability", [6 / 8, 5 / 8]),
        ("rank", [1.0, 1.0]),
        ("accuracy", [1.0, 1.0]),
    ],
)
def test_several_answers_some_missing(metric: str, values: list[float]):
    found = METRICS[metric](LOGITS, pairs([[1, 2], [3, -1]], [[0, 3], [-1, 0]]))
    assert found.tolist() == pytest.approx(values)


def test_a_tie_is_not_accurate():
    assert METRICS["accuracy"](LOGITS, pairs([0, 0], [3, 1])).tolist() == [0.0, 0.0]


def test_divergence_from_the_clean_run():
    reference = torch.full((2, 4), 0.25).log()
    found = METRICS["kl_divergence"](LOGITS, pairs([2, 0], [1, 3], reference=reference))
    by_hand = [
        sum(math.log(0.25 / p) for p in row) / 4 for row in ((1 / 8, 2 / 8, 4 / 8, 1 / 8), (1 / 8,) * 3 + (5 / 8,))
    ]
    assert found.tolist() == pytest.approx(by_hand)
    with pytest.raises(ValueError, match="with_reference"):
        METRICS["kl_divergence"](LOGITS, pairs([2, 0], [1, 3]))


def test_half_precision_is_reduced_in_single():
    assert METRICS["probability_difference"](LOGITS.bfloat16(), pairs([2, 0], [1, 3])).dtype == torch.float32
    assert METRICS["logit_difference"](LOGITS.double(), pairs([2, 0], [1, 3])).dtype == torch.float64


def test_an_unknown_metric_is_named():
    with pytest.raises(ValueError, match=r"'logit_diff', did you mean 'logit_difference'\? \(want logit_difference, "):
        find_metric("logit_diff")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_answer_logits_do_not_depend_on_padding_or_batch(family: str):
    model = tiny_bridge(family)
    clean, corrupted = tiny_tokens(5, 7), tiny_tokens(5, 7, seed=1)
    mask = torch.ones_like(clean)
    mask[0, :3] = mask[3, :2] = 0
    padded = sl.TokenizedPairs(clean, corrupted, torch.arange(1, 6), torch.arange(6, 11), mask)
    found = sl.answer_logits(model, padded, batch_size=2)
    with torch.no_grad():
        alone = [model(row[keep.bool()][None])[0, -1] for row, keep in zip(clean, mask, strict=True)]
    assert torch.allclose(found, torch.stack(alone), atol=1e-5)
    other = sl.answer_logits(model, padded, corrupted=True, batch_size=5)
    assert not torch.allclose(found, other)
    held = sl.with_reference(model, padded)
    clean_run = held[torch.tensor([1])]
    assert sl.metrics.kl_divergence(model(clean_run.clean), clean_run).tolist() == pytest.approx([0.0], abs=1e-6)


def test_a_logit_that_is_not_finite_is_named():
    model = tiny_bridge("gpt2")
    with torch.no_grad():
        model.unembed.W_U[0, 0] = torch.nan
    tokens = tiny_tokens(2, 4)
    with pytest.raises(ValueError, match="not finite in prompt 0"):
        sl.answer_logits(model, sl.TokenizedPairs(tokens, tokens, torch.tensor([1, 2]), torch.tensor([3, 4])))


def test_a_metric_of_your_own_sees_all_logits_and_its_pairs():
    model, tokens = tiny_bridge("llama"), tiny_tokens(5)
    given = sl.TokenizedPairs(tokens, tokens % 30 + 1, torch.arange(5) + 1, torch.arange(5) + 11)
    with torch.no_grad():
        logits = model(tokens)
    metrics = {
        "at the first position": lambda logits, _: logits[:, 0, 1],
        "of the prompt's own token": lambda logits, pairs: logits[:, -1].gather(-1, pairs.clean[:, :1])[:, 0],
        "over positions": lambda logits, _: logits[..., 3].mean(1),
    }
    for metric in metrics.values():
        found = sl.evaluate(model, given, metric=metric, batch_size=2, progress=False)
        torch.testing.assert_close(found.values, metric(logits, given))
