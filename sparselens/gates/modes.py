"""What holds of a model for a while: evaluation mode, all gates open."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from sparselens.gates.surgery import densify, gate_settings, is_sparse, sparsify

OPEN_BIAS = 3e4  # opens every gate but those that a mask hides, also a mask of half precision (-65504)


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


@contextmanager
def open_gates(model: nn.Module) -> Iterator[None]:
    """Inside the block a model computes what the dense model with its weights computes, and its edges can be counted.

    A model without gates gets them for the block only.
    """
    if not is_sparse(model):
        sparsify(model, OPEN_BIAS)
        try:
            yield
        finally:
            densify(model)
        return
    settings = gate_settings(model)
    gate_bias, settings.gate_bias = settings.gate_bias, OPEN_BIAS
    try:
        yield
    finally:
        settings.gate_bias = gate_bias
