"""How many rows run at once: a fixed number for small models, otherwise what fits a measured budget.

1. `batch_size=` is taken as it is.
2. Without `memory=`, a model that needs less than `MEMORY` for `BATCH_SIZE` prompts, by a generous estimate, gets
   `BATCH_SIZE`: a trial run would cost more time than it saves.
3. Otherwise each step is tried on one prompt, the bytes of its tensors are counted, and steps share the budget equally.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from sparselens.analyses.engine.partial_runs import peak_bytes

MEMORY = 2**30  # bytes that an analysis allocates beside the model, by default
BATCH_SIZE = 64  # rows


@dataclass(frozen=True)
class Budget:
    """`batch_size` rows at once, or as many as fit into `memory` bytes beside the model."""

    batch_size: int | None = None
    memory: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size = {self.batch_size}: want 1 or more")

    def sizes(self, model: Any, n_pos: int, *steps: Callable[[Any], Any]) -> tuple[list[int], Any]:
        """Rows of each step that can run at once, and the last step's result on one prompt (None: nothing was tried).

        Args:
            n_pos: tokens of the longest prompt
            steps: each on one prompt, given the result of the step before it

        Raises:
            ValueError: the memory is too small for one prompt.
        """
        if self.batch_size is not None:
            return [self.batch_size] * len(steps), None
        if self.memory is None and BATCH_SIZE * _most_bytes(model, n_pos) <= MEMORY:
            return [BATCH_SIZE] * len(steps), None
        memory = MEMORY if self.memory is None else self.memory
        result, costs = None, list[int]()
        for step in steps:
            result, cost = peak_bytes(partial(step, result))
            costs.append(cost)
        needed = len(steps) * max(costs)
        if needed > memory:
            raise ValueError(f"memory = {memory} bytes is too small: one prompt takes {needed}")
        return [memory // len(steps) // cost for cost in costs], result


def _most_bytes(model: Any, n_pos: int) -> int:
    """A generous bound on what one prompt takes in any analysis: all activations, writes and gradients in float64."""
    cfg = model.cfg
    d_mlp = getattr(cfg, "d_mlp", None) or 4 * cfg.d_model
    per_layer = cfg.d_model * (20 + 8 * cfg.n_heads) + 4 * d_mlp + 6 * cfg.n_heads * n_pos
    return 8 * n_pos * (cfg.n_layers * per_layer + 3 * cfg.d_vocab)
