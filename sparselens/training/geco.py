"""GECO: minimise the number of attention edges subject to task loss <= target.

    loss            = edges / edges_before + multiplier * (task_loss - target)
    ema            <- smoothing * ema + (1 - smoothing) * (task_loss - target - allowance)
    log multiplier += rate * clip(ema / limit, -1, 1)          clamped at both ends
Rezende & Viola 2018, "Taming VAEs", section 4, in the form public code uses. The limit, the allowance, by which a run
may miss its target for now, and edges_before, the edges that were measured last, are ours. With edges_before = 1 the
same model is the best one, but the multiplier that belongs to it falls with the edges: from 1 at 30 % of them to 0.06
at 0.7 % in one run on stories260k. Relative to what is left, it says how many nats a share of that may cost, and hardly
moves.
"""

import math
from typing import TypedDict

from jaxtyping import Float
from torch import Tensor

_FEW = 1e-5  # fewest edges, in whatever unit, that others are counted relative to


class GecoState(TypedDict):
    """What `Geco.state_dict` holds; plain numbers."""

    multiplier: float
    ema: float | None
    edges: float


class Geco:
    """The Lagrange multiplier of one constrained run.

    >>> geco = Geco(target=3.2)
    >>> loss = geco.loss(expected_edges, task_loss)  # to be minimised
    >>> geco.update(float(task_loss))

    Args:
        target: the task loss that may not be exceeded  # nats per token
        rate: the largest step of log multiplier in one call of `update`
        smoothing: of the exponential moving average of the violation; 0 for a loss measured without noise
        limit: violation or slack of this size, or more, moves the multiplier by the largest step  # nats
        bounds: the multiplier stays within these
    """

    def __init__(
        self,
        target: float,
        rate: float = 0.1,
        smoothing: float = 0.0,
        limit: float = 0.02,
        bounds: tuple[float, float] = (1e-4, 1e4),
        multiplier: float = 1.0,
    ) -> None:
        if not math.isfinite(target):
            raise ValueError(f"target must be a finite number of nats per token, not {target}")
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), not {smoothing}")
        if not 0 < limit < math.inf:
            raise ValueError(f"limit must be a finite number of nats above 0, not {limit}")
        if not 0 < bounds[0] <= multiplier <= bounds[1]:
            raise ValueError(f"want 0 < lower <= multiplier <= upper, not {bounds[0]}, {multiplier}, {bounds[1]}")
        self.target = target
        self.rate = rate
        self.smoothing = smoothing
        self.limit = limit
        self.bounds = bounds
        self.multiplier = multiplier
        self.ema: float | None = None  # nats; starts at the first violation seen
        self.edges = 1.0  # edges_before

    def loss(self, edges: Float[Tensor, ""], task_loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The Lagrangian divided by (1 + multiplier): the same direction, with gradients of one size throughout."""
        return (edges / self.edges + self.multiplier * (task_loss - self.target)) / (1 + self.multiplier)

    def update(self, task_loss: float, allowance: float = 0.0) -> None:
        """One step of the multiplier after a measured task loss, which may exceed the target by `allowance` for now.

        Raises:
            ValueError: the loss is not a finite number.
        """
        if not math.isfinite(task_loss):
            raise ValueError(f"the task loss is {task_loss}; the multiplier was left at {self.multiplier:g}")
        violation = task_loss - self.target - allowance
        self.ema = violation if self.ema is None else self.smoothing * self.ema + (1 - self.smoothing) * violation
        step = self.rate * max(-1.0, min(1.0, self.ema / self.limit))
        self.multiplier = min(max(self.multiplier * math.exp(step), self.bounds[0]), self.bounds[1])

    def relative_to(self, edges: float) -> None:
        """Weigh edges, from now on, as multiples of so many: those that were measured last."""
        self.edges = max(edges, _FEW)

    def restart(self, multiplier: float) -> None:
        """Go on from another state of the model, with the average forgotten."""
        self.multiplier, self.ema = min(max(multiplier, self.bounds[0]), self.bounds[1]), None

    def state_dict(self) -> GecoState:
        """What a resumed run needs besides the settings."""
        return {"multiplier": self.multiplier, "ema": self.ema, "edges": self.edges}

    def load_state_dict(self, state: GecoState) -> None:
        """Go on from what `state_dict` gave."""
        self.multiplier, self.ema, self.edges = state["multiplier"], state["ema"], state["edges"]
