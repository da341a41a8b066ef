"""Feed batches to the model: an endless stream, each process's share of rows, moved to the device."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sparselens.training.losses import Batch, tokens_of

Batches = Callable[[int], Batch] | Iterable[Batch]


def refuse_text(*given: Any) -> None:
    """Raise a ValueError if `given` holds text, or anything else but batches, instead of sequences of batches."""
    for batches in given:
        if isinstance(batches, Sequence) and len(batches):
            first: Any = batches if isinstance(batches, str) else batches[0]
            tokens_of(first)


def stream(batches: Batches, start: int) -> Iterator[Batch]:
    """An endless stream of batches, starting at number `start`.

    Raises:
        ValueError: an iterable is empty, or can be iterated over only once.
    """
    if callable(batches):
        return map(batches, itertools.count(start))
    return itertools.islice(_cycle(batches), start, None)


def _cycle(batches: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        batch = None
        for batch in batches:
            yield batch
        if batch is None:
            raise ValueError("there are no training batches (or they are an iterator, which can be used only once)")


def rows_of_process(batch: Batch, rank: int, world: int) -> tuple[Batch, int]:
    """This process's rows of the global batch, and the index of the first of them.

    Raises:
        ValueError: the rows cannot be split evenly over the `world` processes.
    """
    rows = len(tokens_of(batch))
    if rows == 0 or rows % world:
        raise ValueError(f"a batch of {rows} rows cannot be split evenly over {world} process(es)")
    mine = slice(rank * rows // world, (rank + 1) * rows // world)
    taken = batch[mine] if isinstance(batch, Tensor) else {name: value[mine] for name, value in batch.items()}
    return taken, mine.start


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch on another device."""
    return batch.to(device) if isinstance(batch, Tensor) else {name: value.to(device) for name, value in batch.items()}
