"""Reads the files of transcoders: tensors, settings, and layer numbers in names. Errors name the file."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sparselens.analyses.features.transcoders import READS
from sparselens.models.weights import read_tensors
from sparselens.names import unknown

CONFIG = "config.yaml"


class TensorFile:
    """The tensors of one safetensors file, in single precision.

    Args:
        suffix: what its names end with
    """

    def __init__(self, path: Path, suffix: str = "") -> None:
        self.path, self._suffix, self._tensors = path, suffix, read_tensors(path)

    def get(self, *names: str) -> Tensor | None:
        """The first of these that is there."""
        found = (self._tensors.get(name + self._suffix) for name in names)
        return next((values.float() for values in found if values is not None), None)

    def need(self, name: str, n_axes: int) -> Tensor:
        """A tensor that every transcoder has, with so many axes."""
        found = self.get(name)
        if found is None:
            there = ", ".join(sorted(self._tensors)) or "nothing"
            raise ValueError(f"{self.path} has no {name}{self._suffix}: it has {there}")
        if found.ndim != n_axes:
            raise ValueError(f"{self.path}: {name}{self._suffix} has shape {list(found.shape)}, want {n_axes} axes")
        return found


def settings_of(path: Path, reads: str) -> dict[str, Any]:
    """What config.yaml says, where there is one. circuit-tracer gives the first token no features."""
    import yaml

    file = path / CONFIG
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not YAML: {error}") from error
    if not isinstance(settings, Mapping):
        raise ValueError(f"{file} is not a list of settings")
    given = {"feature_input_hook": reads, "feature_output_hook": "hook_mlp_out", **settings}
    place = place_of_features(file, given["feature_input_hook"], given["feature_output_hook"])
    top_k, first = given.get("k") if given.get("activation") == "topk" else None, given.get("first_pos", 1)
    if not (top_k is None or isinstance(top_k, int)) or not isinstance(first, int):
        raise ValueError(f"{file}: k = {top_k!r} and first_pos = {first!r}: want whole numbers")
    return {"reads": place, "top_k": top_k, "first_pos": first}


def place_of_features(file: Path, reads: str, writes: str) -> str:
    """What features read, by one of our names for it."""
    if writes != "hook_mlp_out":
        raise ValueError(f"{file}: features write to {writes!r}, want 'hook_mlp_out'")
    reads = "hook_resid_mid" if reads == "hook_mlp_in" else reads  # a copy of the stream, before the norm
    if reads not in READS:
        raise unknown(f"place for features to read, in {file}", str(reads), READS)
    return reads


def read_json(file: Path) -> dict[str, Any]:
    """The settings in a file of JSON."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is not there, or not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} is not a list of settings")
    settings: dict[str, Any] = found
    return settings


def layer_numbers(path: Path, pattern: str) -> list[int]:
    """The numbers of the layers that have a file."""
    names = re.compile(re.escape(pattern).replace(r"\{\}", r"(\d+)"))
    found = sorted(int(match[1]) for file in path.iterdir() if (match := names.fullmatch(file.name)))
    refuse_gaps(path, found, pattern.format("N"))
    return found


def refuse_gaps(path: Path, found: list[int], what: str) -> None:
    """Raise a ValueError unless there is something for every layer."""
    if not found or found != list(range(len(found))):
        raise ValueError(f"{path} has {what} for layers {', '.join(map(str, found))}: want every layer from 0 on")
