"""The record of a model's origin and results in `sparselens.json` and the model card. Contains no local paths."""

import shlex
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from sparselens.gates.surgery import find_settings
from sparselens.models.places import is_local
from sparselens.models.unwrapped import transformers_config
from sparselens.training.evaluation import Evaluation
from sparselens.training.result import PostTrainResult


def record_of(
    model: nn.Module,
    base: str | None,
    result: PostTrainResult | None,
    test: tuple[Evaluation, Evaluation] | None,
    command: str | None,
) -> dict[str, Any]:
    """The content of `sparselens.json`, on which the model card is based; None for what is unknown."""
    settings = find_settings(model)
    dense, sparse = test or ((result.dense, result.sparse) if result else (None, None))
    return {
        "base_model": without_path(base),
        "gate_bias": None if settings is None else settings.gate_bias,
        "target": None if result is None else result.target,
        "feasible": None if result is None else result.feasible,
        "step": None if result is None else result.step,
        "dense": None if dense is None else asdict(dense),
        "sparse": None if sparse is None else asdict(sparse),
        "command": command or _command_line(),
        "versions": {name: version(name) for name in ("sparselens", "torch", "transformers")},
    }


def origin(model: nn.Module) -> str | None:
    """Where the model was loaded from; None if it was not loaded."""
    return getattr(transformers_config(model), "_name_or_path", None) or None


def without_path(place: str | None) -> str | None:
    """A hub id or the name of a shipped model as it is; for a local folder only its name, not its path."""
    return Path(place).name if place and is_local(place) else place


def _command_line() -> str | None:
    """The running command line if it is sparselens; None for other programs, such as a notebook's kernel."""
    program = Path(sys.argv[0])
    if program.stem != "sparselens" and program.parts[-2:] != ("sparselens", "__main__.py"):
        return None
    return shlex.join(["sparselens", *sys.argv[1:]])
