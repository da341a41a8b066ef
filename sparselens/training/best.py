"""The best state of a run: the sparsest that met the target or, if none did, the one with the lowest loss."""

from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from sparselens.training.evaluation import Evaluation
from sparselens.training.processes import is_sharded
from sparselens.training.trained import put_trained_state, trained_state


class Best:
    """The best state so far. `state` is a plain dictionary, for checkpoints; None until one is offered."""

    def __init__(self, target: float, state: dict[str, Any] | None = None) -> None:
        self._target = target
        self.state = state

    def offer(self, model: nn.Module, evaluation: Evaluation, *, step: int, multiplier: float) -> None:
        """Keep a copy of the trained weights if this state is better; on the CPU, unless FSDP shards them."""
        if self.state is None or evaluation.rank(self._target) < self.evaluation.rank(self._target):
            weights = {name: _copy(value) for name, value in trained_state(model).items()}
            self.state = dict[str, Any](model=weights, evaluation=asdict(evaluation), step=step, multiplier=multiplier)

    def put_into(self, model: nn.Module) -> None:
        """Load the best weights into the model."""
        put_trained_state(model, self._kept["model"])

    @property
    def _kept(self) -> dict[str, Any]:
        assert self.state is not None
        return self.state

    @property
    def step(self) -> int:
        """The step after which the best state was taken."""
        return self._kept["step"]

    @property
    def multiplier(self) -> float:
        """GECO's multiplier at the best state."""
        return self._kept["multiplier"]

    @property
    def evaluation(self) -> Evaluation:
        """The held-out evaluation of the best state."""
        return Evaluation(**self._kept["evaluation"])

    @property
    def feasible(self) -> bool:
        """Whether the best state meets the target."""
        return not self.evaluation.rank(self._target).misses


def _copy(value: Tensor) -> Tensor:
    return value.clone() if is_sharded(value) else value.to("cpu", copy=True)
