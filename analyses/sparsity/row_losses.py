"""The loss of every row of a batch: next-token loss on text, or the loss on an answer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselens.prompts.answers import NO_ANSWER
from sparselens.prompts.metrics import end_logits
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.training.losses import Batch, Logits, TokenLoss, next_token_loss, tokens_of

Rows = Batch | Sequence[Batch] | TokenizedPairs


class RowLosses(NamedTuple):
    """The losses of a batch of rows."""

    nats: Float[Tensor, " row"]  # mean over the row's counted tokens; 0 if there is none
    tokens: Float[Tensor, " row"]  # number of counted tokens


RowLoss = Callable[[Logits, Any], RowLosses]


def text_losses(logits: Logits, batch: Batch, loss: TokenLoss = next_token_loss) -> RowLosses:
    """Mean loss per token of every row; padding and ignored labels do not count.

    Args:
        loss: `sparselens.training.losses.same_position_loss` for models that fill in blanks
    """
    rows = [_part(batch, slice(row, row + 1)) for row in range(len(logits))]
    tokens = torch.tensor([float(loss.count(row)) for row in rows], device=logits.device)
    nats = torch.stack([loss(own[None], row) for own, row in zip(logits, rows, strict=True)])
    return RowLosses(nats.masked_fill(tokens == 0, 0.0), tokens)


def answer_losses(logits: Logits, pairs: TokenizedPairs) -> RowLosses:
    """-log of the total probability of the right answers, at the answer's position; each prompt counts as one token."""
    log_probabilities = end_logits(logits, pairs).log_softmax(-1)
    answers = pairs.answers.to(logits.device)
    picked = log_probabilities.gather(-1, answers.clamp_min(0)).masked_fill(answers == NO_ANSWER, -torch.inf)
    nats = -picked.logsumexp(-1)
    return RowLosses(nats, torch.ones_like(nats))


class RowBatch(NamedTuple):
    """Some rows, as inputs of the model and of the loss."""

    rows: Int[Tensor, " row"]  # their indices among all rows
    inputs: Batch
    target: Any  # the second argument of the loss: a batch, or pairs


def row_batches(rows: Rows, size: int, device: torch.device) -> Iterator[RowBatch]:
    """Split all rows into batches of at most `size`.

    Raises:
        ValueError: the size is not positive, or there is no row.
    """
    if size < 1:
        raise ValueError(f"batch_size = {size}: want at least 1")
    if isinstance(rows, TokenizedPairs):
        for places, pairs in rows.batches(size):
            moved = pairs.to(device)
            yield RowBatch(places, moved.inputs(), moved)
        return
    n = 0
    for batch in listed(rows):
        for start in range(0, len(tokens_of(batch)), size):
            part = _part(batch, slice(start, start + size), device)
            yield RowBatch(torch.arange(n, n + len(tokens_of(part))), part, part)
            n += len(tokens_of(part))
    if n == 0:
        raise ValueError("there is no row to measure a loss on")


def listed(rows: Batch | Sequence[Batch]) -> Sequence[Batch]:
    """The batches as a sequence, even if only a single batch is given."""
    return [rows] if isinstance(rows, (Tensor, Mapping)) else rows


def _part(batch: Batch, rows: slice, device: torch.device | None = None) -> Batch:
    if isinstance(batch, Tensor):
        return batch[rows].to(device)
    return {name: value[rows].to(device) for name, value in batch.items()}


def longest(rows: Rows) -> int:
    """Number of tokens in the longest row, padding included."""
    if isinstance(rows, TokenizedPairs):
        return rows.clean.shape[1]
    return max((tokens_of(batch).shape[1] for batch in listed(rows)), default=0)
