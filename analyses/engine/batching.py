"""Runs a request in batches of prompts, with a progress bar; a log keeps finished batches."""

from collections.abc import Callable, Iterator

from jaxtyping import Int
from torch import Tensor

from sparselens.analyses.engine.processes import exchanged
from sparselens.analyses.engine.request import Request
from sparselens.analyses.engine.resume import BatchLog, Tensors
from sparselens.bars import progress_bar


def in_batches(
    request: Request, call: Callable[[Request], Tensors], label: str, log: BatchLog | None = None
) -> Iterator[tuple[Int[Tensor, " batch"], Tensors]]:
    """Yield the results of `call` on batches of prompts of equal length, each with the indices of its prompts.

    If a trial run measured the memory, its result comes first. Batches that the log holds are not run again.

    Raises:
        ValueError: the memory is too small for one prompt.
    """
    log, first = log or BatchLog(), longest(request)
    trial = request.batch(first)
    (size,), result = trial.sizes(lambda _: call(trial))
    with progress_bar(len(request), label, "prompt", request.progress) as bar:
        if result is not None:
            bar.update(1)
            yield first, result
        left = (rows if result is None else rows[rows != first] for rows in request.pairs.rows(len(request)))
        batches = (batch for rows in left if len(rows) for batch in rows.split(size))
        for rows, found in exchanged(batches, lambda rows: log.once([rows], lambda: call(request.batch(rows)))):
            yield rows, found
            bar.update(len(rows))


def longest(request: Request) -> Int[Tensor, "1"]:
    """The index of a prompt with the most tokens to run."""
    ones = [(rows[:1], some.clean.shape[1]) for rows, some in request.pairs.batches(len(request))]
    one, _ = max(ones, key=lambda one: (one[1] - request.starts.get(one[1], 0), one[1]))
    return one
