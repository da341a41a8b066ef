"""GECO: minimise the number of attention edges subject to task loss <= target.

    loss            = edges / edges_before + multiplier * (task_loss - target)
    ema            <- smoothing * ema + (1 - smoothing) * (task_loss - target - allowance)
    log multiplier += rate * clip(ema / limit, -1, 1)          clamped at both ends
Rezende & Viola 2018, "Taming VAEs", section 4, as implemented in public code. We add the limit, the allowance (by which
a run may temporarily miss its target) and edges_before (the number of edges at the last evaluation). edges_before = 1
has the same optimum, but the multiplier at the optimum then falls with the number of edges: from 1 at 30 % of them to
0.06 at 0.7 %, in one run on stories260k. With edges counted relative to those that are left, the multiplier sets how
many nats a given relative reduction may cost, and hardly changes.
"""

import math
from typing import TypedDict

from jaxtyping import Float
from torch import Tensor

_FEW = 1e-5  # lower bound of edges_before


class GecoState(TypedDict):
    """The contents of `Geco.state_dict`."""

    multiplier: float
    ema: float | None
    edges: float


class Geco:
    """The Lagrange multiplier of a constrained run.

    >>> geco = Geco(target=3.2)
    >>> loss = geco.loss(expected_edges, task_loss)  # to be minimised
    >>> geco.update(float(task_loss))

    Args:
        target: upper limit of the task loss  # nats per token
        rate: largest change of the log multiplier in one call of `update`
        smoothing: of the exponential moving average of the violation; 0 if the loss is measured without noise
        limit: violation (or slack) at which the multiplier moves by the largest step  # nats
        bounds: lower and upper bound of the multiplier
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
        self.ema: float | None = None  # nats; starts at the first measured violation
        self.edges = 1.0  # edges_before

    def loss(self, edges: Float[Tensor, ""], task_loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The Lagrangian divided by (1 + multiplier), so that the size of its gradients stays the same."""
        return (edges / self.edges + self.multiplier * (task_loss - self.target)) / (1 + self.multiplier)

    def update(self, task_loss: float, allowance: float = 0.0) -> None:
        """Update the multiplier after a measurement of the task loss, which may exceed the target by `allowance`.

        Raises:
            ValueError: the loss is not a finite number.
        """
        if not math.isfinite(task_loss):
            raise ValueError(f"the task loss is {task_loss}; the multiplier stays at {self.multiplier:g}")
        violation = task_loss - self.target - allowance
        self.ema = violation if self.ema is None else self.smoothing * self.ema + (1 - self.smoothing) * violation
        step = self.rate * max(-1.0, min(1.0, self.ema / self.limit))
        self.multiplier = min(max(self.multiplier * math.exp(step), self.bounds[0]), self.bounds[1])

    def relative_to(self, edges: float) -> None:
        """Count edges relative to this number, that of the last evaluation (edges_before)."""
        self.edges = max(edges, _FEW)

    def restart(self, multiplier: float) -> None:
        """Continue from another state of the model: set the multiplier and reset the average."""
        self.multiplier, self.ema = min(max(multiplier, self.bounds[0]), self.bounds[1]), None

    def state_dict(self) -> GecoState:
        """The state that a resumed run needs in addition to the settings."""
        return {"multiplier": self.multiplier, "ema": self.ema, "edges": self.edges}

    def load_state_dict(self, state: GecoState) -> None:
        """Restore the state returned by `state_dict`."""
        self.multiplier, self.ema, self.edges = state["multiplier"], state["ema"], state["edges"]
