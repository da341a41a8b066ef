"""How to post-train: the settings of one run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from sparselens.training.geco import Geco

_FREE = ("checkpoint_every", "checkpoint_minutes", "wandb")  # may differ in a resumed run


@dataclass(frozen=True)
class PostTrainConfig:
    """How to post-train. RESULTS.md, "What was tried", has the runs that decided each default.

    >>> PostTrainConfig(steps=500, margin=0.02, learning_rate=1e-4)
    """

    steps: int = 3000
    target: float | None = None  # nats per token; None: the dense model's held-out loss plus `margin`
    margin: float = 0.0  # nats per token
    learning_rate: float | Literal["auto"] = "auto"  # auto: the largest that the dense control holds, see control.py
    control_steps: int = 50  # of the dense control, at most a tenth of `steps`; 0: none, for a rate that is known
    warmup: int = 100  # steps of linear rise
    decay: float = 0.7  # share of the steps, at the end, over which the rate falls linearly to zero
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    accumulation: int = 1  # batches per step
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    layer_cost: float = 1.0  # an edge in layer l counts as layer_cost**l edges; 1, the paper's: all alike
    # Share of the dense model's own distribution in the labels, 0 to 1. None for tasks with one right answer; a half in
    # `sparselens post-train`: text has many, and a small corpus is soon learnt by heart.
    distillation: float = 0.0
    # Steps, at the start, in which each attention learns to give what the dense model's gives, see layerwise.py
    layerwise_steps: int = 0
    layerwise_multiplier: float = 300.0  # of the relative error that gates make in the residual stream, in those steps
    noise_temperature: float = 0.3  # of the gates' noise; the paper's is 1, whose noise costs more loss than the gates
    multiplier: float = 10.0  # GECO's, at the start: half of the edges may cost 0.07 nats
    multiplier_range: float = 1000.0  # the factor by which the multiplier can rise or fall over a whole run
    violation_limit: float = 0.02  # nats; more violation, or slack, moves the multiplier as much as this
    # Nats above the target that count as met at the full learning rate; falls to zero with the rate. Most of the loss
    # comes back by itself as the rate falls, and a multiplier that rises before that opens edges again.
    allowance: float = 0.05
    reserve: float = 0.005  # nats below the target that are aimed at in the end, since slow steering ends above its aim
    evaluate_every: int = 50  # steps; the multiplier moves after each evaluation
    checkpoint_every: int = 500  # steps; only with an `out` folder
    checkpoint_minutes: float = 10.0  # where steps are slow: no longer than this between two checkpoints
    seed: int = 0
    wandb: str | None = None  # name of a wandb project

    def __post_init__(self) -> None:
        rate = self.learning_rate
        if rate != "auto" and not 0 <= rate < math.inf:
            raise ValueError(f'learning_rate must be "auto" or a finite number, 0 or more, not {rate!r}')
        for name in ("steps", "accumulation", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.checkpoint_minutes > 0:
            raise ValueError(f"checkpoint_minutes must be above 0, not {self.checkpoint_minutes}")
        if self.target is not None and not math.isfinite(self.target):
            raise ValueError(f"target must be a finite number of nats per token, not {self.target}")
        if not math.isfinite(self.margin):
            raise ValueError(f"margin must be a finite number of nats per token, not {self.margin}")
        if not 0 <= self.layerwise_steps <= self.steps:
            raise ValueError(f"layerwise_steps must be between 0 and steps={self.steps}, not {self.layerwise_steps}")
        for name in ("layer_cost", "layerwise_multiplier", "noise_temperature", "violation_limit"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number above 0, not {getattr(self, name)}")
        if not 1 <= self.multiplier_range < math.inf:
            raise ValueError(f"multiplier_range must be a finite factor of at least 1, not {self.multiplier_range}")
        for name in ("allowance", "reserve"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number of nats, 0 or more, not {getattr(self, name)}")
        if self.control_steps < 0:
            raise ValueError(f"control_steps must be 0 or more, not {self.control_steps}")
        if not 0 <= self.distillation <= 1:
            raise ValueError(f"distillation must be between 0 and 1, not {self.distillation}")

    def geco(self, target: float) -> Geco:
        """The multiplier that these settings ask for."""
        evaluations = max(1, self.steps // self.evaluate_every)
        return Geco(
            target,
            rate=math.log(self.multiplier_range) / evaluations,
            limit=self.violation_limit,
            multiplier=self.multiplier,
        )

    def refuse_other(self, saved: Mapping[str, Any], path: Path, finish: bool) -> None:
        """A run can only go on with the settings it began with, but for those that do not change what comes out.

        Args:
            finish: it only ends where it is, with the target that is asked for now

        Raises:
            ValueError: the saved settings differ. Says in what.
        """
        free = (*_FREE, "target", "margin") if finish else _FREE
        names = [field.name for field in fields(self) if field.name not in free]
        differ = [name for name in names if saved.get(name) != getattr(self, name)]
        if differ:
            was = ", ".join(f"{name}={saved.get(name)!r}" for name in differ)
            raise ValueError(f"{path} was written with {was}; resume with the same settings or choose another folder")

    def rise_at(self, step: int) -> float:
        """The share of the learning rate that the warm-up has reached: 1 after `warmup` steps."""
        return min(1.0, (step + 1) / max(1, self.warmup))

    def fall_at(self, step: int) -> float:
        """The share of the learning rate that the decay has left: from 1 to 0 over the last `decay` of the steps."""
        return min(1.0, (self.steps - step) / max(1.0, self.decay * self.steps))

    def allowance_at(self, step: int) -> float:
        """By how many nats the target may be missed for now: from `allowance` to minus `reserve`, as the rate falls."""
        fall = self.fall_at(step)
        return self.allowance * fall - self.reserve * (1 - fall)
