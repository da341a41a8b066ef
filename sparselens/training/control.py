"""The dense control: what the optimiser alone does to the held-out loss while every gate is held open.

1. Train for a few steps with open gates, at full learning rate, as the run itself would.
2. Measure the held-out loss half-way and at the end; put the weights back.
3. A rate *holds* if the loss has risen by no more than `TOLERANCE`. "auto" takes the largest rate that holds.
A rate that does not hold wrecks a converged model whatever the gates do, so that nothing can be said about gates.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparselens.training.config import PostTrainConfig

RATES = (2e-3, 1e-3, 5e-4, 2e-4, 1e-4, 5e-5, 2e-5, 1e-5)  # what "auto" tries, in this order
TOLERANCE = 0.03  # nats per token above the dense model
GAIN = 0.05  # nats per token below the dense model: fine-tuning alone, without any gate, gains so much


@dataclass(frozen=True)
class Control:
    """One learning rate with every gate open."""

    learning_rate: float
    losses: dict[int, float]  # held-out nats per token after so many steps
    holds: bool

    def __str__(self) -> str:
        curve = ", ".join(f"{loss:.4f} after {step} steps" for step, loss in self.losses.items())
        return f"learning rate {self.learning_rate:g}: {curve}"


def control(learning_rate: float, dense_loss: float, steps: int, train: Callable[[int], float]) -> Control:
    """Train twice half of `steps` steps and judge the held-out losses, which `train(steps)` returns after training.

    Stops half-way where the loss is already three tolerances too high; a loss that is not finite does not hold.
    """
    losses: dict[int, float] = {}
    for until in sorted({max(1, steps // 2), steps}):
        losses[until] = train(until - max(losses, default=0))
        if not losses[until] <= dense_loss + 3 * TOLERANCE:
            break
    return Control(learning_rate, losses, holds=list(losses.values())[-1] <= dense_loss + TOLERANCE)


def gain_of(controls: Sequence[Control], dense_loss: float) -> str | None:
    """A warning if fine-tuning alone gains so much that a target at the dense loss is easy to meet; else None."""
    losses = {loss: step for control in controls if control.holds for step, loss in control.losses.items()}
    if not losses or min(losses) >= dense_loss - GAIN:
        return None
    loss = min(losses)
    return (
        f"with every gate open {losses[loss]} steps of training alone bring the held-out loss to {loss:.4f}, "
        f"{dense_loss - loss:.4f} below the dense model's: a target near the dense loss lets gates cost that much. "
        "Set a lower target, or distillation=1, which keeps to the dense model's predictions"
    )


def largest_that_holds(try_rate: Callable[[float], Control]) -> list[Control]:
    """The rates that were tried, from above; the last one holds.

    Raises:
        ValueError: not even the smallest holds. Shows what was measured.
    """
    tried: list[Control] = []
    for rate in RATES:
        tried.append(try_rate(rate))
        if tried[-1].holds:
            return tried
    raise ValueError(
        "with every gate open no learning rate holds the dense model's held-out loss: check that the data is what the "
        "model was trained for, or pass learning_rate. Tried: " + "; ".join(map(str, tried))
    )


def choose_learning_rate(
    config: PostTrainConfig, dense_loss: float, try_rate: Callable[[float, int], Control]
) -> tuple[float, list[Control]]:
    """The learning rate of a run at its peak, and the controls that decided it or warn of it.

    Args:
        try_rate: trains at a rate for a number of steps with every gate open, and puts the weights back

    Raises:
        ValueError: it was to be found, and not even the smallest holds.
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
            f"the optimiser alone, with every gate open, wrecks the model: {found}, where the dense model has "
            f'{dense_loss:.4f}; lower learning_rate or make it "auto"',
            stacklevel=6,
        )
    return rate, [found]
