"""How to post-train: the settings of one run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from sparselens.geco import Geco

_FREE = ("checkpoint_every", "checkpoint_minutes", "wandb")  # may differ in a resumed run


@dataclass(frozen=True)
class PostTrainConfig:
    """How to post-train. The defaults suit a small language model."""

    steps: int = 6000
    target: float | None = None  # nats per token; None: the dense model's held-out loss plus `margin`
    margin: float = 0.01  # nats per token
    learning_rate: float = 5e-4
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
    multiplier: float = 1.0  # GECO's, at the start
    multiplier_rate: float = 0.2  # per nat of violation and step
    slack_rate: float = 0.15  # the same while the constraint holds
    violation_limit: float = 0.01  # nats; more violation, or slack, moves the multiplier as much as this
    smoothing: float = 0.95
    evaluate_every: int = 250  # steps
    patience: int = 8  # evaluations in a row that may miss the target before the run goes back to its best state
    checkpoint_every: int = 500  # steps; only with an `out` folder
    checkpoint_minutes: float = 10.0  # where steps are slow: no longer than this between two checkpoints
    seed: int = 0
    wandb: str | None = None  # name of a wandb project

    def __post_init__(self) -> None:
        if not self.learning_rate >= 0 or math.isinf(self.learning_rate):
            raise ValueError(f"learning_rate must be a finite number, 0 or more, not {self.learning_rate}")
        for name in ("steps", "accumulation", "evaluate_every", "checkpoint_every", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.checkpoint_minutes > 0:
            raise ValueError(f"checkpoint_minutes must be above 0, not {self.checkpoint_minutes}")
        if self.target is not None and not math.isfinite(self.target):
            raise ValueError(f"target must be a finite number of nats per token, not {self.target}")
        if not math.isfinite(self.margin):
            raise ValueError(f"margin must be a finite number of nats per token, not {self.margin}")
        if not self.layer_cost > 0 or math.isinf(self.layer_cost):
            raise ValueError(f"layer_cost must be a finite number above 0, not {self.layer_cost}")
        if not 0 <= self.distillation <= 1:
            raise ValueError(f"distillation must be between 0 and 1, not {self.distillation}")

    def geco(self, target: float) -> Geco:
        """The multiplier that these settings ask for."""
        return Geco(
            target,
            rate=self.multiplier_rate,
            slack_rate=self.slack_rate,
            smoothing=self.smoothing,
            limit=self.violation_limit,
            multiplier=self.multiplier,
        )

    def refuse_other(self, saved: Mapping[str, Any], path: Path) -> None:
        """A run can only go on with the settings it began with, but for those that do not change what comes out.

        Raises:
            ValueError: the saved settings differ. Says in what.
        """
        names = [field.name for field in fields(self) if field.name not in _FREE]
        differ = [name for name in names if saved.get(name) != getattr(self, name)]
        if differ:
            was = ", ".join(f"{name}={saved.get(name)!r}" for name in differ)
            raise ValueError(f"{path} was written with {was}; resume with the same settings or choose another folder")

    def learning_rate_at(self, step: int) -> float:
        """Rises from zero over `warmup` steps and falls to zero over the last `decay` of them."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        fall = min(1.0, (self.steps - step) / max(1.0, self.decay * self.steps))
        return self.learning_rate * min(rise, fall)
