"""Batches of rows cut from a stream of tokens, which may lie in memory or in a file."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from sparselens.gates.noise import seed_from
from sparselens.training.text.tokens import Tokens

Rows = Int[Tensor, "_batch _pos"]  # underscores: the last of a list may be shorter


def rows(tokens: Tokens, seq_len: int, batch_size: int) -> list[Rows]:
    """All whole rows of `seq_len` tokens in order, as batches; the rest of the last row is left out.

    Raises:
        ValueError: there is not one whole row, or no row in a batch.
    """
    refuse_no_rows(seq_len, batch_size)
    n = len(tokens) // seq_len
    if n == 0:
        raise ValueError(f"{len(tokens)} tokens do not fill one row of {seq_len}; give more text or a shorter seq_len")
    return list(tokens[: n * seq_len].long().view(n, seq_len).split(batch_size))


def refuse_no_rows(seq_len: int, batch_size: int) -> None:
    """Raise a ValueError for batches without rows, and for rows in which no token has one before it."""
    if batch_size < 1 or seq_len < 2:
        raise ValueError(f"want one row or more of two tokens or more in a batch, not {batch_size} x {seq_len}")


class TokenBatches:
    """Endless training batches of rows cut from a token stream: a function from the batch's index to the batch.

    Every pass over the stream cuts it at another offset and shuffles the rows, seeded by (seed, pass); so batch i is
    always the same and a resumed run needs nothing but i.
    """

    def __init__(self, tokens: Tokens, seq_len: int, batch_size: int, seed: int = 0) -> None:
        refuse_no_rows(seq_len, batch_size)
        self._tokens, self._seq_len, self._batch_size, self._seed = tokens, seq_len, batch_size, seed
        self._per_pass = (len(tokens) // seq_len - 1) // batch_size
        if self._per_pass < 1:
            raise ValueError(
                f"{len(tokens)} tokens are too few for one batch of {batch_size} x {seq_len}: give more text, or a "
                "smaller batch_size or seq_len"
            )
        self._pass = lru_cache(maxsize=1)(self._cut)

    def _cut(self, number: int) -> tuple[int, Int[Tensor, " row"]]:
        """Where the first row of a pass begins, and the order of its rows."""
        generator = torch.Generator().manual_seed(seed_from(self._seed, number))
        offset = int(torch.randint(self._seq_len, (), generator=generator))
        return offset, torch.randperm(self._per_pass * self._batch_size, generator=generator)

    def __call__(self, index: int) -> Int[Tensor, "batch pos"]:
        """Batch number `index`."""
        number, place = divmod(index, self._per_pass)
        offset, order = self._pass(number)
        table = self._tokens[offset : offset + len(order) * self._seq_len].view(len(order), self._seq_len)
        return table[order[place * self._batch_size : (place + 1) * self._batch_size]].long()


@dataclass(frozen=True)
class MixedBatches:
    """Rows of several sources in every batch."""

    sources: Sequence[TokenBatches]

    def __call__(self, index: int) -> Int[Tensor, "batch pos"]:
        """Batch `index` of every source, joined."""
        return torch.cat([source(index) for source in self.sources])


def batches_per_step(tokens: int, seq_len: int, batch_size: int, processes: int = 1) -> tuple[int, int]:
    """Rows per batch and batches per optimiser step that come to `tokens`, or less than a row per batch more.

    Args:
        batch_size: rows of a batch, at most, over all processes
        processes: the rows of a batch are split evenly over them

    Raises:
        ValueError: not one row fits in.
    """
    refuse_no_rows(seq_len, batch_size)
    wanted = tokens // seq_len
    if wanted < 1:
        raise ValueError(f"{tokens} tokens per optimiser step are less than one row of {seq_len}")
    batches = math.ceil(wanted / batch_size)
    rows_each = math.ceil(wanted / batches / processes) * processes
    return rows_each, batches
