"""Settings of a post-training run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from sparselens.training.geco import Geco

_FREE = ("checkpoint_every", "checkpoint_minutes", "wandb")  # may change when a run is resumed


@dataclass(frozen=True)
class PostTrainConfig:
    """Settings of a post-training run. RESULTS.md, "What was tried", has the experiments behind each default.

    >>> PostTrainConfig(steps=500, margin=0.02, learning_rate=1e-4)
    """

    steps: int = 3000
    target: float | None = None  # nats per token; None: the dense model's held-out loss plus `margin`
    margin: float = 0.0  # nats per token
    learning_rate: float | Literal["auto"] = "auto"  # auto: the largest that passes the dense control, see control.py
    control_steps: int = 50  # of the dense control, at most a tenth of `steps`; 0 skips it if the rate is given
    warmup: int = 100  # steps of linear warm-up
    decay: float = 0.7  # final share of the steps, over which the rate decays linearly to zero
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    accumulation: int = 1  # batches per step
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    layer_cost: float = 1.0  # an edge in layer l counts as layer_cost**l edges; 1, as in the paper: all count the same
    # Weight of the dense model's predictions in the labels, 0 to 1. Zero suits tasks with one right answer; for text,
    # which has many plausible continuations and is soon memorised if it is short, `sparselens post-train` uses 0.5.
    distillation: float = 0.0
    # Initial steps in which each attention layer learns to reproduce the dense model's output, see layerwise.py
    layerwise_steps: int = 0
    layerwise_multiplier: float = 300.0  # weight, in these steps, of the gates' relative error in the residual stream
    noise_temperature: float = 0.3  # of the gates' noise; at the paper's 1, noise costs more loss than the gates do
    multiplier: float = 10.0  # GECO's initial multiplier: halving the number of edges may cost 0.07 nats
    multiplier_range: float = 1000.0  # largest factor by which the multiplier can rise or fall over a whole run
    violation_limit: float = 0.02  # nats; larger violations (or slack) move the multiplier no faster than this
    # Nats by which the loss may exceed the target at full learning rate; decays to zero with the rate. Most of the loss
    # recovers by itself as the rate decays, and a multiplier that rises before then reopens edges.
    allowance: float = 0.05
    reserve: float = 0.005  # nats below the target to aim for at the end, since slow steering ends above its aim
    evaluate_every: int = 50  # steps; the multiplier is updated after each evaluation
    checkpoint_every: int = 500  # steps; only with an `out` folder
    checkpoint_minutes: float = 10.0  # maximum time between two checkpoints, if steps are slow
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
        """A GECO multiplier with these settings."""
        evaluations = max(1, self.steps // self.evaluate_every)
        return Geco(
            target,
            rate=math.log(self.multiplier_range) / evaluations,
            limit=self.violation_limit,
            multiplier=self.multiplier,
        )

    def refuse_other(self, saved: Mapping[str, Any], path: Path, finish: bool) -> None:
        """Raise a ValueError if a run saved with other settings is resumed with these.

        Settings that do not change the result may differ.

        Args:
            finish: the run ends at its current step, so the target may differ, too
        """
        free = (*_FREE, "target", "margin") if finish else _FREE
        names = [field.name for field in fields(self) if field.name not in free]
        differ = [name for name in names if saved.get(name) != getattr(self, name)]
        if differ:
            was = ", ".join(f"{name}={saved.get(name)!r}" for name in differ)
            raise ValueError(f"{path} was written with {was}: resume with the same settings, or choose another folder")

    def rise_at(self, step: int) -> float:
        """Warm-up factor of the learning rate: from 0 to 1 over the first `warmup` steps."""
        return min(1.0, (step + 1) / max(1, self.warmup))

    def fall_at(self, step: int) -> float:
        """Decay factor of the learning rate: from 1 to 0 over the last share `decay` of the steps."""
        return min(1.0, (self.steps - step) / max(1.0, self.decay * self.steps))

    def allowance_at(self, step: int) -> float:
        """Nats by which the loss may exceed the target: from `allowance` to -`reserve` as the learning rate decays."""
        fall = self.fall_at(step)
        return self.allowance * fall - self.reserve * (1 - fall)
