"""Task losses on logits small enough to work out by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from sparselens.training import losses
from sparselens.training.losses import (
    IGNORED,
    TokenLoss,
    distillation_loss,
    distilled,
    logits_of,
    next_token_loss,
    same_position_loss,
    weight_of,
)

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


def test_padding_on_the_left_predicts_nothing():
    batch = {"input_ids": TOKENS, "attention_mask": torch.tensor([[0, 1, 1]])}
    assert next_token_loss.count(batch) == 1 and next_token_loss.counted(batch).tolist() == [[False, True, False]]
    wrong_at_first = sure_of(torch.tensor([[0, 1, 0]]))
    assert float(next_token_loss(wrong_at_first, batch)) == pytest.approx(-math.log(0.75))


def test_same_position_loss_does_not_shift():
    batch = {"input_ids": TOKENS, "labels": torch.tensor([[IGNORED, 0, 1]])}
    assert float(same_position_loss(sure_of(torch.tensor([[1, 0, 1]])), batch)) == pytest.approx(-math.log(0.75))


def test_half_precision_logits_are_summed_in_float32():
    logits = sure_of(torch.tensor([[1, 1, 0]])).bfloat16()
    assert next_token_loss(logits, TOKENS).dtype == torch.float32


def test_distillation_is_the_divergence_per_token():
    teacher, model = sure_of(torch.tensor([[0, 0]])), torch.zeros(1, 2, 2)
    one = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(distillation_loss(model, teacher)) == pytest.approx(one, abs=1e-6)
    assert float(distillation_loss(teacher, teacher)) == pytest.approx(0, abs=1e-6)


def test_distillation_leaves_out_what_does_not_count():
    teacher, model = sure_of(torch.tensor([[0, 0]])), torch.zeros(1, 2, 2)
    teacher[0, 1] *= 5
    counted = torch.tensor([[True, False]])
    one = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(distillation_loss(model, teacher, counted)) == pytest.approx(one, abs=1e-6)


def test_distillation_looks_where_the_loss_looks():
    padded = {"input_ids": TOKENS, "attention_mask": torch.tensor([[1, 1, 0]])}
    labelled = {"input_ids": TOKENS, "labels": torch.tensor([[IGNORED, IGNORED, 1]])}
    assert distilled(next_token_loss, TOKENS) is None  # everywhere
    assert distilled(next_token_loss, padded).tolist() == [[True, False, False]]
    assert distilled(next_token_loss, labelled).tolist() == [[False, True, False]]
    assert distilled(same_position_loss, labelled).tolist() == [[False, False, True]]
    assert distilled(lambda *_: torch.zeros(()), padded).tolist() == [[True, True, False]]


@pytest.mark.parametrize("loss", [next_token_loss, same_position_loss])
def test_weight_is_the_number_of_tokens_in_the_mean(loss: TokenLoss):
    labels = torch.tensor([[0, IGNORED, 1], [1, 1, 1]])
    batch = {"input_ids": torch.zeros_like(labels), "labels": labels}
    logits = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0))
    rows = [{name: value[i : i + 1] for name, value in batch.items()} for i in range(2)]
    nats = sum(weight_of(loss, row) * loss(logits[i : i + 1], row) for i, row in enumerate(rows))
    assert weight_of(loss, batch) == sum(weight_of(loss, row) for row in rows)
    assert float(loss(logits, batch)) == pytest.approx(float(nats) / weight_of(loss, batch))
    assert weight_of(lambda *_: torch.zeros(()), batch) == 2  # a loss that cannot count: rows


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


@pytest.mark.parametrize("kind", ["tokens", "labels"])
def test_many_tokens_are_summed_some_at_a_time(monkeypatch: pytest.MonkeyPatch, kind: str):
    logits, teacher = torch.randn(2, 3, 5, 7)
    labels = torch.randint(7, (3, 5)).masked_fill(torch.rand(3, 5) < 0.3, losses.IGNORED)
    batch = {"input_ids": labels.clamp_min(0), "labels": labels} if kind == "labels" else labels.clamp_min(0)
    counted = losses.distilled(next_token_loss, batch)

    def both() -> list[torch.Tensor]:
        mine = logits.clone().requires_grad_()
        loss = next_token_loss(mine, batch) + losses.distillation_loss(mine, teacher, counted)
        loss.backward()
        assert mine.grad is not None
        return [loss.detach(), mine.grad]

    at_once = both()
    monkeypatch.setattr(losses, "_AT_ONCE", 2 * 7)
    torch.testing.assert_close(both(), at_once)


def test_memory_of_a_large_vocabulary_does_not_grow_with_the_tokens():
    def held(tokens: int) -> int:
        """Bytes that the backward pass of a distilled loss keeps beside the logits themselves."""
        logits, kept = torch.randn(1, tokens, 2**15, requires_grad=True), 0
        given = {logits.untyped_storage().data_ptr()}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in given:
                given.add(storage.data_ptr())
                kept += storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            (next_token_loss(logits, torch.zeros(1, tokens, dtype=torch.long))).backward()
        return kept

    assert held(2**12 + 1) < held(2**11)
