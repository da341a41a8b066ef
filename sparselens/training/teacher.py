"""Distillation from the frozen dense model into the sparse one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparselens.gates.modes import OPEN_BIAS, evaluating, open_gates
from sparselens.gates.surgery import densify, find_settings, is_sparse, sparsify
from sparselens.models.adapters import adapters_off, has_adapters, trained_besides_adapters
from sparselens.models.copies import copied
from sparselens.training.losses import Batch, Logits, Loss, distillation_loss, distilled, logits_of


class Teacher:
    """The dense model before training, as a frozen copy.

    If only adapters are trained, no copy is made: the teacher is the model itself, with adapters off and gates open.

    Args:
        weight: weight of the dense model's predictions in the labels, 0 to 1
        gated: keep the gated attention, with every gate open, so that inputs of its layers can be passed to the
            student's layers
    """

    def __init__(self, model: nn.Module, weight: float, gated: bool = False) -> None:
        self._weight = weight
        self._shared = has_adapters(model) and not trained_besides_adapters(model)
        if self._shared:
            self._model = model
            return
        dense = copied(model)
        if gated:
            sparsify(dense, OPEN_BIAS)
        elif is_sparse(dense):
            densify(dense)
        self._model = dense.eval().requires_grad_(False)

    @contextmanager
    def at_work(self) -> Iterator[nn.Module]:
        """The dense model, to be run only inside the block."""
        if not self._shared:
            yield self._model
            return
        with adapters_off(self._model), _as_teacher(self._model):
            yield self._model

    def blend(self, task: Float[Tensor, ""], logits: Logits, batch: Batch, loss: Loss) -> Float[Tensor, ""]:
        """(1 - weight) * task loss + weight * KL(dense || sparse), in nats per token."""
        if not self._weight:
            return task
        with torch.no_grad(), self.at_work() as model:
            dense = logits_of(model, batch)
        divergence = distillation_loss(logits, dense, distilled(loss, batch))
        if self._weight == 1:  # no backward pass through the task loss, which would be multiplied by zero
            return divergence
        return (1 - self._weight) * task + self._weight * divergence


@contextmanager
def _as_teacher(model: nn.Module) -> Iterator[None]:
    """Open the student's gates, without noise, and pause all recording of gates."""
    settings = find_settings(model)
    recorders = [] if settings is None else settings.recorders[:]
    with evaluating(model), open_gates(model):
        if settings is not None:
            settings.recorders.clear()
        try:
            yield
        finally:
            if settings is not None:
                settings.recorders.extend(recorders)
