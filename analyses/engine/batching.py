"""How many rows run at once: a fixed number where a small model leaves no doubt, else what fits a measured budget.

1. `batch_size=` is taken as it is.
2. Without `memory=`, a model that surely needs less than `MEMORY` for `BATCH_SIZE` prompts gets `BATCH_SIZE`. A trial
   run would take longer than it saves.
3. Else each step is tried on one prompt, the bytes of its tensors are counted, and the steps share the budget equally.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from sparselens.analyses.engine.partial_runs import peak_bytes
from sparselens.analyses.engine.request import Budget, Request
from sparselens.analyses.engine.resume import BatchLog, Tensors
from sparselens.prompts.tokenized import TokenizedPairs

MEMORY = 2**30  # bytes that an analysis allocates beside the model, unless told otherwise
BATCH_SIZE = 64  # rows


def batch_sizes(budget: Budget, model: Any, n_pos: int, *steps: Callable[[Any], Any]) -> tuple[list[int], Any]:
    """Rows of each step that can run at once, and the last step's result on one prompt (None if nothing was tried).

    Args:
        n_pos: tokens of the longest prompt
        steps: each on one prompt, given the result of the step before it

    Raises:
        ValueError: the memory is too small for one prompt.
    """
    if budget.batch_size is not None:
        return [budget.batch_size] * len(steps), None
    if budget.memory is None and BATCH_SIZE * _most_bytes(model, n_pos) <= MEMORY:
        return [BATCH_SIZE] * len(steps), None
    memory = MEMORY if budget.memory is None else budget.memory
    result, costs = None, list[int]()
    for step in steps:
        result, cost = peak_bytes(partial(step, result))
        costs.append(cost)
    needed = len(steps) * max(costs)
    if needed > memory:
        raise ValueError(f"memory = {memory} bytes is too small: one prompt takes {needed}")
    return [memory // len(steps) // cost for cost in costs], result


def _most_bytes(model: Any, n_pos: int) -> int:
    """A generous bound on what one prompt takes in any analysis: all activations, writes and gradients in float64."""
    cfg = model.cfg
    d_mlp = getattr(cfg, "d_mlp", None) or 4 * cfg.d_model
    per_layer = cfg.d_model * (20 + 8 * cfg.n_heads) + 4 * d_mlp + 6 * cfg.n_heads * n_pos
    return 8 * n_pos * (cfg.n_layers * per_layer + 3 * cfg.d_vocab)


def in_batches(
    request: Request, call: Callable[[Request], Tensors], label: str, log: BatchLog | None = None
) -> Iterator[tuple[Int[Tensor, " batch"], Tensors]]:
    """Results of `call` on batches of prompts of one length, with the numbers of their prompts.

    Where a trial run is measured, its result is used, and comes first. Other batches come from the log if it has them.

    Raises:
        ValueError: the memory is too small for one prompt.
    """
    log, first = log or BatchLog(), longest(request.pairs)
    one = request.batch(first)
    (size,), result = batch_sizes(request.budget, request.model, one.pairs.clean.shape[1], lambda _: call(one))
    with progress_bar(len(request), label, "prompt", request.progress) as bar:
        if result is not None:
            bar.update(1)
            yield first, result
        for rows in request.pairs.rows(len(request)):
            rest = rows if result is None else rows[rows != first]
            for some in rest.split(size) if len(rest) else ():
                yield some, log.once([some], lambda: call(request.batch(some)))  # noqa: B023
                bar.update(len(some))


def progress_bar(total: int, label: str, unit: str, shown: bool, delay: float = 0.0) -> "tqdm[Any]":
    """A bar with the time left, on standard error; it appears after `delay` seconds."""
    return tqdm(total=total, desc=label, unit=unit, disable=not shown, delay=delay, dynamic_ncols=True)


def longest(pairs: TokenizedPairs) -> Int[Tensor, "1"]:
    """The number of a prompt that no other is longer than."""
    ones = (rows[:1] for rows in pairs.rows(len(pairs)))
    return max(ones, key=lambda one: pairs[one]._without_padding().clean.shape[1])
