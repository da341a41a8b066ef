"""Task losses on logits small enough to work out by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from sparselens.losses import IGNORED, distillation_loss, logits_of, next_token_loss, same_position_loss

TOKENS = torch.tensor([[0, 1, 1]])


def sure_of(tokens: Tensor, strength: float = math.log(3)) -> Tensor:
    """Two-token logits that give `tokens` three quarters of the probability."""
    return strength * nn.functional.one_hot(tokens, 2).float()


def test_next_token_loss_looks_one_ahead():
    right = sure_of(torch.tensor([[1, 1, 0]]))  # the last position has no next token
    assert float(next_token_loss(right, TOKENS)) == pytest.approx(-math.log(0.75))
    half = sure_of(torch.tensor([[1, 0, 0]]))
    assert float(next_token_loss(half, TOKENS)) == pytest.approx((-math.log(0.75) - math.log(0.25)) / 2)


def test_padding_and_ignored_labels_do_not_count():
    half = sure_of(torch.tensor([[1, 0, 0]]))  # wrong about the last token
    padded = {"input_ids": TOKENS, "attention_mask": torch.tensor([[1, 1, 0]])}
    labelled = {"input_ids": TOKENS, "labels": torch.tensor([[0, 1, IGNORED]])}
    for batch in (padded, labelled):
        assert float(next_token_loss(half, batch)) == pytest.approx(-math.log(0.75))


def test_same_position_loss_does_not_shift():
    batch = {"input_ids": TOKENS, "labels": torch.tensor([[IGNORED, 0, 1]])}
    assert float(same_position_loss(sure_of(torch.tensor([[1, 0, 1]])), batch)) == pytest.approx(-math.log(0.75))


def test_half_precision_logits_are_summed_in_float32():
    logits = sure_of(torch.tensor([[1, 1, 0]])).bfloat16()
    assert next_token_loss(logits, TOKENS).dtype == torch.float32


def test_distillation_is_the_divergence_per_token():
    teacher, model = sure_of(torch.tensor([[0, 0]])), torch.zeros(1, 2, 2)
    one = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(distillation_loss(model, teacher, torch.zeros(1, 2, dtype=torch.long))) == pytest.approx(one, abs=1e-6)
    assert float(distillation_loss(teacher, teacher, torch.zeros(1, 2, dtype=torch.long))) == pytest.approx(0, abs=1e-6)


def test_distillation_leaves_padding_out():
    teacher, model = sure_of(torch.tensor([[0, 0]])), torch.zeros(1, 2, 2)
    teacher[0, 1] *= 5
    batch = {"input_ids": torch.zeros(1, 2, dtype=torch.long), "attention_mask": torch.tensor([[1, 0]])}
    one = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(distillation_loss(model, teacher, batch)) == pytest.approx(one, abs=1e-6)


class Echo(nn.Module):
    """Answers with what it was called with."""

    def __init__(self, wrapped: bool) -> None:
        super().__init__()
        self.wrapped = wrapped

    def forward(self, tokens: Tensor, **more: Tensor) -> object:
        self.more = more
        logits = sure_of(tokens)
        return SimpleNamespace(logits=logits) if self.wrapped else logits


@pytest.mark.parametrize("wrapped", [False, True])
def test_both_kinds_of_model_are_run_on_both_kinds_of_batch(wrapped: bool):
    model = Echo(wrapped)
    assert torch.equal(logits_of(model, TOKENS), sure_of(TOKENS))
    mask = torch.ones_like(TOKENS)
    batch = {"input_ids": TOKENS, "attention_mask": mask, "labels": TOKENS}
    assert torch.equal(logits_of(model, batch), sure_of(TOKENS))
    assert model.more.keys() == {"attention_mask"}  # labels would make transformers compute its own loss too
