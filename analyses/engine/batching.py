"""Work in batches that fit into a memory budget, which is measured by doing a little of it and not guessed."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from sparselens.analyses.engine.partial_runs import peak_bytes
from sparselens.analyses.engine.resume import BatchLog, Tensors
from sparselens.prompts.tokenized import TokenizedPairs

MEMORY = 2**30  # bytes: what an analysis allocates beside the model


def fit(memory: int, *steps: Callable[[Any], Any]) -> tuple[list[int], Any]:
    """How much of each step can be done at once when all share the budget equally, and what the last step gave.

    Every step is tried on as little as can be, given what the step before it gave, and the bytes of the tensors that it
    takes are counted.

    Raises:
        ValueError: the budget is too small for one prompt.
    """
    result, costs = None, list[int]()
    for step in steps:
        result, cost = peak_bytes(partial(step, result))
        costs.append(cost)
    needed = len(steps) * max(costs)
    if needed > memory:
        raise ValueError(f"memory = {memory} bytes is too small: one prompt takes {needed}")
    return [memory // len(steps) // cost for cost in costs], result


def in_batches(
    pairs: TokenizedPairs,
    call: Callable[[Int[Tensor, " batch"], TokenizedPairs], Tensors],
    memory: int,
    progress: bool,
    label: str,
    log: BatchLog | None = None,
) -> Iterator[tuple[Int[Tensor, " batch"], Tensors]]:
    """Results of `call` on batches of prompts of one length, with the numbers of their prompts.

    The longest prompt comes first, and is always run. Other batches come from the log where they are in it.

    Raises:
        ValueError: the budget is too small for one prompt, or prompts differ in length within a pair.
    """
    refuse_unequal(pairs)
    first = longest(pairs)
    log = log or BatchLog()
    (size,), result = fit(memory, lambda _: call(first, pairs[first]._without_padding()))
    with tqdm(total=len(pairs), desc=label, unit="prompt", disable=not progress, dynamic_ncols=True) as bar:
        bar.update(1)
        yield first, result
        for rows in pairs.rows(len(pairs)):
            rest = rows[rows != first]
            for some in rest.split(size) if len(rest) else ():
                yield some, log.once([some], lambda: call(some, pairs[some]._without_padding()))  # noqa: B023
                bar.update(len(some))


def longest(pairs: TokenizedPairs) -> Int[Tensor, "1"]:
    """The number of a prompt that no other is longer than."""
    ones = (rows[:1] for rows in pairs.rows(len(pairs)))
    return max(ones, key=lambda one: pairs[one]._without_padding().clean.shape[1])


def refuse_unequal(pairs: TokenizedPairs) -> None:
    """Raise a ValueError if clean and corrupted prompt of some pair differ in length, or padding cannot be cut off.

    Every position needs its counterpart, and prompts of one length run without their masks.
    """
    if pairs.corrupted_mask is not None:  # else the other mask is for both
        mask = torch.ones_like(pairs.corrupted_mask) if pairs.attention_mask is None else pairs.attention_mask
        unequal = (mask != pairs.corrupted_mask).any(-1).nonzero()
        if len(unequal):
            raise ValueError(
                f"clean and corrupted prompt of pair {int(unequal[0])} differ in length ({len(unequal)} of "
                f"{len(pairs)} pairs do): every position needs its counterpart"
            )
    for rows, batch in pairs.batches(len(pairs)):
        if batch.attention_mask is not None:
            broken = int(rows[int((batch.attention_mask == 0).any(-1).nonzero()[0])])
            raise ValueError(
                f"prompt {broken} has padding inside, or on another side than prompts as long: pad all on one side"
            )


def refuse_several_lengths(pairs: TokenizedPairs, what: str) -> None:
    """Raise a ValueError unless all prompts have one length, without which a mean over prompts says nothing."""
    lengths = sorted({batch.clean.shape[1] for _, batch in pairs.batches(len(pairs))})
    if len(lengths) > 1:
        raise ValueError(f"prompts have lengths {lengths[0]} to {lengths[-1]}: {what} need one length for all")
