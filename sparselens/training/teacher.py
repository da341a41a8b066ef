"""Distillation: the dense model, frozen, as the teacher of the sparse one."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparselens.gates.modes import evaluating
from sparselens.gates.surgery import densify, find_settings, is_sparse
from sparselens.models.adapters import adapters_off, has_adapters, trained_besides_adapters
from sparselens.training.evaluation import open_gates
from sparselens.training.losses import Batch, Logits, Loss, distillation_loss, distilled, logits_of


class Teacher:
    """The dense model as it was before training: a frozen copy.

    Where only adapters train it is no copy but the model itself, with its adapters off and its gates open.
    """

    def __init__(self, model: nn.Module, weight: float) -> None:
        self._weight = weight
        self._shared = has_adapters(model) and not trained_besides_adapters(model)
        if self._shared:
            self._model = model
            return
        dense = copy.deepcopy(model)
        self._model = (densify(dense) if is_sparse(dense) else dense).eval().requires_grad_(False)

    def blend(self, task: Float[Tensor, ""], logits: Logits, batch: Batch, loss: Loss) -> Float[Tensor, ""]:
        """(1 - weight) * task loss + weight * KL(dense || sparse), in nats per token."""
        with torch.no_grad(), adapters_off(self._model):
            if self._shared:
                with _as_teacher(self._model):
                    dense = logits_of(self._model, batch)
            else:
                dense = logits_of(self._model, batch)
        return (1 - self._weight) * task + self._weight * distillation_loss(logits, dense, distilled(loss, batch))


@contextmanager
def _as_teacher(model: nn.Module) -> Iterator[None]:
    """The student's gates open, without noise, and unseen by those who record the student."""
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
