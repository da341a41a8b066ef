"""Splits the prompts of one call over several processes, each of which gets the results of all.

1. `over_processes()` declares that all processes run the same program. Without it nothing is split, so an analysis may
   be called in only one process of a training run.
2. Batches are dealt out in turn. Each process computes its own and receives the results of the others (`exchanged`), or
   it fills its own rows of a tensor of zeros, and these tensors are summed over processes (`mine`, `summed`).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.utils._pytree import tree_map

Job = TypeVar("Job")
Result = TypeVar("Result")
_SHARED: ContextVar[tuple[int, int, Any]] = ContextVar("shared", default=(0, 1, None))  # rank, processes, device


@contextmanager
def over_processes() -> Iterator[bool]:
    """Inside, analyses split their prompts over the processes launched by accelerate or torchrun.

    >>> with analyses.over_processes() as is_main:  # in a program run by `accelerate launch`
    ...     scores = analyses.attribute_edges(model, pairs, progress=is_main)

    All processes must make the same calls, on the same model and pairs, and all get the result that a single process
    would get. Yields whether this is the main process, which alone should print and write. With `out=` each process
    keeps the batches that it finished in a file of its own.

    Scope: attribution, exact edge patching, faithfulness, and the circuit search and pruning built on it. Other
    analyses run in full in every process.
    """
    from accelerate import PartialState

    state = PartialState(cpu=not torch.accelerator.is_available())
    token = _SHARED.set((state.process_index, state.num_processes, state.device))
    try:
        yield state.is_main_process
    finally:
        _SHARED.reset(token)


def rank() -> int:
    """The rank of this process among those that share the prompts."""
    return _SHARED.get()[0]


def place() -> dict[str, Any]:
    """Options for `sparselens.load` that put a model on this process's own GPU; empty without such a GPU."""
    device = _SHARED.get()[2]
    return {} if device is None or device.type == "cpu" else {"device_map": device}


def mine(jobs: Iterable[Job]) -> Iterator[Job]:
    """This process's share of the jobs."""
    number, processes, _ = _SHARED.get()
    return islice(jobs, number, None, processes)


def summed(value: Tensor) -> Tensor:
    """The sum over processes."""
    _, processes, device = _SHARED.get()
    if processes == 1:
        return value
    there = value.to(device, copy=True)
    distributed.all_reduce(there)
    return there.to(value.device)


def exchanged(jobs: Iterable[Job], call: Callable[[Job], Result]) -> Iterator[tuple[Job, Result]]:
    """All jobs in order with their results, including those computed by other processes."""
    number, processes, device = _SHARED.get()
    if processes == 1:
        yield from ((job, call(job)) for job in jobs)
        return
    left = iter(jobs)
    while group := list(islice(left, processes)):
        own = call(group[number]) if number < len(group) else None
        results: list[Any] = [None] * processes
        distributed.all_gather_object(results, own)
        results = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, results)  # from its sender's GPU
        yield from zip(group, results)  # noqa: B905  # the last group may have fewer jobs than processes
