"""Context managers that put a model into evaluation mode or open all its gates."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from sparselens.gates.surgery import densify, gate_settings, is_sparse, sparsify

OPEN_BIAS = 3e4  # opens every gate, except on masked pairs, even if the mask is half precision's minimum (-65504)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode inside the block; restore every module's own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    _set(training, False)
    try:
        yield
    finally:
        _set(training, True)


def _set(modules: list[nn.Module], training: bool) -> None:
    for module in modules:
        vars(module)["training"] = training  # nn.Module's attribute setter costs as much as running a small layer


@contextmanager
def open_gates(model: nn.Module) -> Iterator[None]:
    """Inside the block the model computes what its weights compute with dense attention, and edges can be counted.

    A dense model gets gates inside the block only.
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
