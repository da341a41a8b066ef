"""Batch size: a fixed number of rows for small models, otherwise as many as fit into a memory budget.

1. `batch_size=` is used as given.
2. Without `memory=`, `BATCH_SIZE` rows run at once if a generous estimate says that so many prompts need less than
   `MEMORY`: a trial run would cost more time than it saves.
3. Otherwise each step runs on one prompt, the bytes of its tensors are counted, and the steps share the budget equally.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from sparselens.analyses.engine.partial_runs import peak_bytes

MEMORY = 2**30  # default: bytes that an analysis may allocate in addition to the model
BATCH_SIZE = 64  # rows


@dataclass(frozen=True)
class Budget:
    """Run `batch_size` rows at once, or as many as fit into `memory` bytes in addition to the model."""

    batch_size: int | None = None
    memory: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size = {self.batch_size}: want 1 or more")

    def sizes(self, model: Any, n_pos: int, *steps: Callable[[Any], Any]) -> tuple[list[int], Any]:
        """Rows of each step that can run at once, and the last step's result on one prompt (None without a trial run).

        Args:
            n_pos: tokens of the longest prompt
            steps: each runs on one prompt, and receives the result of the previous step

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
    """A generous bound on the bytes per prompt in any analysis: all activations, writes and gradients in float64."""
    cfg = model.cfg
    d_mlp = getattr(cfg, "d_mlp", None) or 4 * cfg.d_model
    per_layer = cfg.d_model * (20 + 8 * cfg.n_heads) + 4 * d_mlp + 6 * cfg.n_heads * n_pos
    return 8 * n_pos * (cfg.n_layers * per_layer + 3 * cfg.d_vocab)
