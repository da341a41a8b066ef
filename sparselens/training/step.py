"""One optimiser step. Handles gates, precision and processes, but no targets or held-out data."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from sparselens.gates.noise import RowNoise, seed_from
from sparselens.gates.statistics import record_gates
from sparselens.gates.surgery import gate_settings
from sparselens.training.batches import rows_of_process, to_device
from sparselens.training.config import PostTrainConfig
from sparselens.training.losses import Batch, Loss, logits_of, tokens_of, weight_of
from sparselens.training.processes import load_optimizer_state, whole
from sparselens.training.teacher import Teacher
from sparselens.training.trained import frozen_sample, put_trained_state, trained_parameters, trained_state

Scalar = Float[Tensor, ""]


class Objective(NamedTuple):
    """What a step minimises: combine(edges, fit(batch)[0])."""

    fit: Callable[[Batch], tuple[Scalar, Scalar]]  # the loss to minimise, and the one to report
    combine: Callable[[Scalar, Scalar], Scalar]  # of expected edges and loss, as `Geco.loss`


class StepMeans(NamedTuple):
    """Means over the batches and processes of a step."""

    fit: float  # the reported loss; nats per token if it is a task loss
    share: float  # expected open share of the visible pairs
    edges: float  # expected open edges per query and head


class NotFiniteError(ValueError):
    """A loss or a gradient is not finite."""


class Stepper:
    """Takes the optimiser steps of a gated model.

    Raises:
        ValueError: the model has no gates, nothing to train, or trained parameters in half precision.
    """

    def __init__(self, model: nn.Module, config: PostTrainConfig, loss: Loss, accelerator: Accelerator) -> None:
        trained = trained_parameters(model)
        self.settings = gate_settings(model)
        self._before = self.settings.noise, self.settings.temperature  # restored by `close`
        self._config, self._loss, self.accelerator = config, loss, accelerator
        optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.95), weight_decay=config.weight_decay)
        self.plain, self._own_forward = model, "forward" in model.__dict__
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.settings.temperature = config.noise_temperature
        self.tokens = 0  # in the batches of the last step

    def logits(self, batch: Batch) -> Tensor:
        """Logits of the model as prepared by Accelerate, for several processes and mixed precision."""
        return logits_of(self.model, batch)

    def __call__(self, batches: Iterator[Batch], step: int, rate: float, objective: Objective) -> StepMeans:
        """Take one step; noise and dropout depend only on its number and the seed.

        Raises:
            NotFiniteError: the loss or the gradient is not finite; the weights have not changed.
        """
        if not self.plain.training:  # the DDP wrapper may be in another mode
            self.model.train()
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        # for dropout, so that checkpoints need no generator state
        torch.manual_seed(seed_from(self._config.seed, step, rank))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        n = self._config.accumulation
        means = torch.zeros(3, device=self.accelerator.device)
        group = [next(batches) for _ in range(n)]
        self.tokens = sum(tokens_of(batch).numel() for batch in group)
        tokens = sum(weight_of(self._loss, batch) for batch in group)
        rows = 0
        for i, batch in enumerate(group):
            mine, first = rows_of_process(batch, rank, world)
            self.settings.noise = RowNoise(self._config.seed, step, rows + first)
            # processes exchange gradients only after the last batch of a step
            with nullcontext() if i == n - 1 else self.accelerator.no_sync(self.model):
                means += self._backward(mine, n * world * weight_of(self._loss, mine) / max(1, tokens), objective) / n
            rows += len(tokens_of(batch))
        if world > 1:
            means = cast("Tensor", self.accelerator.reduce(means, "mean"))
        result = StepMeans(*means.tolist())
        if not math.isfinite(result.fit):
            raise NotFiniteError(f"the training loss is {result.fit} at step {step + 1}: {self.cure}")
        self._move_weights(step)
        return result

    @property
    def learning_rate(self) -> float:
        """The learning rate of the last step."""
        return self.optimizer.param_groups[0]["lr"]

    @property
    def cure(self) -> str:
        """Advice for the case that a number is not finite."""
        return f"lower learning_rate (now {self.learning_rate:g}) or check the data"

    def _move_weights(self, step: int) -> None:
        norm = self.accelerator.clip_grad_norm_(self.plain.parameters(), self._config.clip_norm or math.inf)
        if self.accelerator.scaler is None and not math.isfinite(float(norm)):  # type: ignore[arg-type]
            raise NotFiniteError(f"the gradient is not finite at step {step + 1}: {self.cure}")
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _backward(self, batch: Batch, weight: float, objective: Objective) -> Float[Tensor, "3"]:
        """Backward pass of one batch; returns its `StepMeans`, the loss times `weight`.

        Args:
            weight: tokens of this batch, relative to an equal share of all tokens of the step
        """
        batch = to_device(batch, self.accelerator.device)
        with record_gates(self.plain) as gates:
            with self.accelerator.autocast():
                fit, reported = objective.fit(batch)
            cost = gates.expected_share(self._config.layer_cost).to(fit.dtype)
            if not cost.requires_grad:
                raise ValueError("the gates have no gradient: use gradient checkpointing with use_reentrant=False")
            self.accelerator.backward(objective.combine(cost, weight * fit) / self._config.accumulation)
        per_query = gates.expected.detach().sum() / gates.queries.sum()
        share = gates.expected_share().detach()
        return torch.stack([weight * reported.detach().float(), share.float(), per_query.float()])

    def forget(self) -> None:
        """Reset the optimiser: no gradients, no moments."""
        self.optimizer.zero_grad()
        self.optimizer.state.clear()

    @contextmanager
    def on_trial(self) -> Iterator[None]:
        """Undo all steps taken inside the block at its end."""
        before = [(p, p.detach().clone()) for p in self.plain.parameters() if p.requires_grad]
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in before:
                    parameter.copy_(value)
            self.forget()

    def state(self, keep: bool) -> dict[str, Any]:
        """State for a checkpoint; sharded tensors are None where `keep` is False, as in all non-writing processes."""
        scaler = self.accelerator.scaler
        tensors = {"model": trained_state(self.plain), "optimizer": self.optimizer.state_dict()}
        return {
            **whole(tensors, keep),
            "frozen": frozen_sample(self.plain),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def put_state(self, state: dict[str, Any]) -> None:
        """Restore the state returned by `state`.

        Raises:
            ValueError: it belongs to another model.
        """
        put_trained_state(self.plain, state["model"])
        if state["frozen"] != frozen_sample(self.plain):
            raise ValueError("from another model: the frozen weights differ")
        load_optimizer_state(self.optimizer, state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def close(self) -> None:
        """Remove everything that belongs to the run from the model."""
        self.optimizer.zero_grad()
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False).eval()
        if not self._own_forward:  # mixed precision has set one
            self.plain.__dict__.pop("forward", None)
        self.settings.noise, self.settings.temperature = self._before


def task_fit(stepper: Stepper, loss: Loss, teacher: Teacher | None) -> Callable[[Batch], tuple[Scalar, Scalar]]:
    """An `Objective.fit`: the task loss, blended with distillation if there is a teacher; reports the task loss."""

    def fit(batch: Batch) -> tuple[Scalar, Scalar]:
        logits = stepper.logits(batch)
        task = loss(logits, batch)
        return (teacher.blend(task, logits, batch, loss) if teacher else task), task

    return fit
