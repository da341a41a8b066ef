"""Evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside the block the model is in evaluation mode; afterwards every module is in the mode it was in before."""
    training = [module for module in model.modules() if module.training]
    _set(training, False)
    try:
        yield
    finally:
        _set(training, True)


def _set(modules: list[nn.Module], training: bool) -> None:
    for module in modules:
        vars(module)["training"] = training  # as an attribute it would take as long as a small layer takes to run
