"""Distillation: the dense model, frozen, as the teacher of the sparse one."""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparselens.losses import Batch, Logits, Loss, distillation_loss, distilled, logits_of
from sparselens.surgery import densify, is_sparse


class Teacher:
    """A frozen dense copy of a model, made before training changes the weights."""

    def __init__(self, model: nn.Module, weight: float) -> None:
        self._weight = weight
        dense = copy.deepcopy(model)
        self._model = (densify(dense) if is_sparse(dense) else dense).eval().requires_grad_(False)

    def blend(self, task: Float[Tensor, ""], logits: Logits, batch: Batch, loss: Loss) -> Float[Tensor, ""]:
        """(1 - weight) * task loss + weight * KL(dense || sparse), in nats per token."""
        with torch.no_grad():
            dense = logits_of(self._model, batch)
        return (1 - self._weight) * task + self._weight * distillation_loss(logits, dense, distilled(loss, batch))
