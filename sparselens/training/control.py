"""The dense control: how a learning rate changes the held-out loss while every gate is held open.

1. Train for a few steps with all gates open, at the full learning rate, as the run itself would.
2. Measure the held-out loss half-way and at the end; restore the weights.
3. A rate *holds* if the loss has risen by at most `TOLERANCE`. "auto" takes the largest rate that holds.
A rate that does not hold damages a converged model no matter what the gates do.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparselens.training.config import PostTrainConfig

RATES = (2e-3, 1e-3, 5e-4, 2e-4, 1e-4, 5e-5, 2e-5, 1e-5)  # what "auto" tries, in this order
TOLERANCE = 0.03  # nats per token above the dense model
GAIN = 0.05  # nats per token below the dense model, gained by fine-tuning with open gates, that deserve a warning


@dataclass(frozen=True)
class Control:
    """The trial of one learning rate with every gate open."""

    learning_rate: float
    losses: dict[int, float]  # number of steps -> held-out loss in nats per token
    holds: bool

    def __str__(self) -> str:
        curve = ", ".join(f"{loss:.4f} after {step} steps" for step, loss in self.losses.items())
        return f"learning rate {self.learning_rate:g}: {curve}"


def control(learning_rate: float, dense_loss: float, steps: int, train: Callable[[int], float]) -> Control:
    """Train for `steps` steps and judge the held-out losses half-way and at the end.

    Stops half-way if the loss is already three tolerances too high; a loss that is not finite does not hold.

    Args:
        train: trains for a number of steps and returns the held-out loss
    """
    losses: dict[int, float] = {}
    for until in sorted({max(1, steps // 2), steps}):
        losses[until] = train(until - max(losses, default=0))
        if not losses[until] <= dense_loss + 3 * TOLERANCE:
            break
    return Control(learning_rate, losses, holds=list(losses.values())[-1] <= dense_loss + TOLERANCE)


def rate_text(config: PostTrainConfig, rate: float, controls: Sequence[Control]) -> str:
    """What the history says of the chosen learning rate."""
    source = ", from the dense control" if controls else ""
    short = f", not reached: the warm-up takes {config.warmup} steps" if config.warmup > config.steps else ""
    return f"learning rate {rate:g}{source}{short}"


def gain_of(controls: Sequence[Control], dense_loss: float) -> str | None:
    """A warning if fine-tuning alone makes a target at the dense loss easy to meet; None otherwise."""
    losses = {loss: step for control in controls if control.holds for step, loss in control.losses.items()}
    if not losses or min(losses) >= dense_loss - GAIN:
        return None
    loss = min(losses)
    return (
        f"with every gate open, {losses[loss]} steps of training alone lower the held-out loss to {loss:.4f}, "
        f"{dense_loss - loss:.4f} below the dense model: at a target near the dense loss, gates may cost that much. "
        "Set a lower target, or distillation=1 (--distillation 1) to stay close to the dense model's predictions"
    )


def largest_that_holds(try_rate: Callable[[float], Control]) -> list[Control]:
    """Try learning rates in decreasing order until one holds; returns all trials.

    Raises:
        ValueError: not even the smallest rate holds. Shows all measured losses.
    """
    tried: list[Control] = []
    for rate in RATES:
        tried.append(try_rate(rate))
        if tried[-1].holds:
            return tried
    raise ValueError(
        "even with every gate open, all learning rates raise the held-out loss: check that the data suits the model, "
        "or pass learning_rate. Tried: " + "; ".join(map(str, tried))
    )


def choose_learning_rate(
    config: PostTrainConfig, dense_loss: float, try_rate: Callable[[float, int], Control]
) -> tuple[float, list[Control]]:
    """The peak learning rate of a run, and the control trials made to choose or check it.

    Warns if a given rate does not hold.

    Args:
        try_rate: trains at a rate for a number of steps with every gate open, then restores the weights

    Raises:
        ValueError: the rate is "auto", and not even the smallest holds.
    """
    tenth = config.steps // 10
    if config.learning_rate == "auto":
        steps = min(config.control_steps, max(10, tenth))
        controls = largest_that_holds(lambda rate: try_rate(rate, steps))
        return controls[-1].learning_rate, controls
    rate = float(config.learning_rate)
    steps = min(config.control_steps, tenth)
    if not rate or not steps:
        return rate, []
    found = try_rate(rate, steps)
    if not found.holds:
        warnings.warn(
            f"the learning rate damages the model even with every gate open: {found}; the dense model has "
            f'{dense_loss:.4f}. Lower learning_rate, or set it to "auto"',
            stacklevel=4,
        )
    return rate, [found]
