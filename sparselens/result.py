"""What a post-training run came to."""

from dataclasses import dataclass, field
from typing import Any

from sparselens.control import Control
from sparselens.evaluation import Evaluation


@dataclass(frozen=True)
class PostTrainResult:
    """What a run came to. The model itself now holds the weights of `step`."""

    dense: Evaluation  # the dense model on the held-out batches
    sparse: Evaluation  # the returned state on the same batches
    step: int  # after which the returned state was taken
    feasible: bool  # did it meet the target? If not, it is the state with the lowest loss
    target: float  # nats per token
    history: list[dict[str, Any]]  # one record per evaluation
    controls: list[Control] = field(default_factory=list[Control])  # learning rates tried with every gate open
