"""Cut batches of rows from a stream of tokens, in memory or in a file."""

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
    """All rows of `seq_len` tokens in order, as batches; leftover tokens at the end are dropped.

    Raises:
        ValueError: the tokens do not fill one row, or `seq_len` or `batch_size` is too small.
    """
    refuse_no_rows(seq_len, batch_size)
    n = len(tokens) // seq_len
    if n == 0:
        raise ValueError(f"{len(tokens)} tokens do not fill one row of {seq_len}: use more text or a shorter seq_len")
    return list(tokens[: n * seq_len].long().view(n, seq_len).split(batch_size))


def refuse_no_rows(seq_len: int, batch_size: int) -> None:
    """Raise a ValueError for batches without rows, and for rows too short to predict a token."""
    if batch_size < 1 or seq_len < 2:
        raise ValueError(f"a batch needs at least one row of at least two tokens, not {batch_size} x {seq_len}")


class TokenBatches:
    """Endless training batches cut from a token stream: a function from the batch's index to the batch.

    Every pass over the stream cuts it at a different offset and shuffles the rows, seeded by (seed, pass). Batch i is
    therefore always the same, and a resumed run needs only i.
    """

    def __init__(self, tokens: Tokens, seq_len: int, batch_size: int, seed: int = 0) -> None:
        refuse_no_rows(seq_len, batch_size)
        self._tokens, self._seq_len, self._batch_size, self._seed = tokens, seq_len, batch_size, seed
        self._per_pass = (len(tokens) // seq_len - 1) // batch_size
        if self._per_pass < 1:
            raise ValueError(
                f"{len(tokens)} tokens are too few for one batch of {batch_size} x {seq_len}: use more text, or a "
                "smaller batch_size or seq_len"
            )
        self._pass = lru_cache(maxsize=1)(self._cut)

    def _cut(self, number: int) -> tuple[int, Int[Tensor, " row"]]:
        """The offset of the first row of a pass, and the order of its rows."""
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
    """Batches that combine rows of several sources."""

    sources: Sequence[TokenBatches]

    def __call__(self, index: int) -> Int[Tensor, "batch pos"]:
        """Batch number `index` of every source, concatenated."""
        return torch.cat([source(index) for source in self.sources])


def batches_per_step(tokens: int, seq_len: int, batch_size: int, processes: int = 1) -> tuple[int, int]:
    """Rows per batch and batches per optimiser step that amount to about `tokens` per step.

    Rows are rounded up, so that all batches have the same size and split evenly over processes.

    Args:
        batch_size: maximum rows per batch, over all processes

    Raises:
        ValueError: `tokens` is less than one row.
    """
    refuse_no_rows(seq_len, batch_size)
    wanted = tokens // seq_len
    if wanted < 1:
        raise ValueError(f"{tokens} tokens per optimiser step are less than one row of {seq_len}")
    batches = math.ceil(wanted / batch_size)
    rows_each = math.ceil(wanted / batches / processes) * processes
    return rows_each, batches
