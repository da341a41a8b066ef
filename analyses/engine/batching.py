"""Results batch by batch, under a progress bar; finished batches are kept in a log."""

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
    """The results of `call` on batches of prompts of one length, with the indices of those prompts.

    If memory was measured by a trial run, its result comes first. Batches that the log holds are not run again.

    Raises:
        ValueError: the memory is too small for one prompt.
    """
    log, first = log or BatchLog(), longest(request)
    one = request.batch(first)
    (size,), result = one.sizes(lambda _: call(one))
    with progress_bar(len(request), label, "prompt", request.progress) as bar:
        if result is not None:
            bar.update(1)
            yield first, result
        left = (rows if result is None else rows[rows != first] for rows in request.pairs.rows(len(request)))
        batches = (some for rows in left if len(rows) for some in rows.split(size))
        for some, found in exchanged(batches, lambda some: log.once([some], lambda: call(request.batch(some)))):
            yield some, found
            bar.update(len(some))


def longest(request: Request) -> Int[Tensor, "1"]:
    """The index of a prompt with the most tokens to run."""
    ones = [(rows[:1], some.clean.shape[1]) for rows, some in request.pairs.batches(len(request))]
    one, _ = max(ones, key=lambda one: (one[1] - request.starts.get(one[1], 0), one[1]))
    return one
