"""Reads transcoder files: tensors, settings, and layer numbers in file names. Errors name the file."""

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
        suffix: ending that all tensor names in the file have, left out in `get` and `need`
    """

    def __init__(self, path: Path, suffix: str = "") -> None:
        self.path, self._suffix, self._tensors = path, suffix, read_tensors(path)

    def get(self, *names: str) -> Tensor | None:
        """The first of these tensors that the file has."""
        found = (self._tensors.get(name + self._suffix) for name in names)
        return next((values.float() for values in found if values is not None), None)

    def need(self, name: str, n_axes: int) -> Tensor:
        """A required tensor with this number of axes."""
        found = self.get(name)
        if found is None:
            there = ", ".join(sorted(self._tensors)) or "nothing"
            raise ValueError(f"{self.path} has no {name}{self._suffix}: it has {there}")
        if found.ndim != n_axes:
            raise ValueError(f"{self.path}: {name}{self._suffix} has shape {list(found.shape)}, want {n_axes} axes")
        return found


def settings_of(path: Path, reads: str) -> dict[str, Any]:
    """The settings in config.yaml, with defaults where it is silent or missing.

    The default of first_pos is 1, since circuit-tracer gives the first token no features.
    """
    import yaml

    file = path / CONFIG
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not YAML: {error}") from error
    if not isinstance(settings, Mapping):
        raise ValueError(f"{file} is not a mapping of settings")
    given = {"feature_input_hook": reads, "feature_output_hook": "hook_mlp_out", **settings}
    place = place_of_features(file, given["feature_input_hook"], given["feature_output_hook"])
    top_k, first = given.get("k") if given.get("activation") == "topk" else None, given.get("first_pos", 1)
    if not (top_k is None or isinstance(top_k, int)) or not isinstance(first, int):
        raise ValueError(f"{file}: k = {top_k!r} and first_pos = {first!r}: want integers")
    return {"reads": place, "top_k": top_k, "first_pos": first}


def place_of_features(file: Path, reads: str, writes: str) -> str:
    """The name in READS for what features read."""
    if writes != "hook_mlp_out":
        raise ValueError(f"{file}: features write to {writes!r}, want 'hook_mlp_out'")
    reads = "hook_resid_mid" if reads == "hook_mlp_in" else reads  # the latter is a copy of the stream, before the norm
    if reads not in READS:
        raise unknown(f"place for features to read, in {file}", str(reads), READS)
    return reads


def read_json(file: Path) -> dict[str, Any]:
    """The settings in a JSON file.

    Raises:
        ValueError: the file is missing, or does not hold a JSON object.
    """
    try:
        settings = json.loads(file.read_bytes())  # not strict: files of other tools may hold NaN
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {file} as JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{file} is not a JSON object")
    return settings


def layer_numbers(path: Path, pattern: str) -> list[int]:
    """The numbers of the layers that have a file; `{}` in the pattern stands for the number."""
    names = re.compile(re.escape(pattern).replace(r"\{\}", r"(\d+)"))
    found = sorted(int(match[1]) for file in path.iterdir() if (match := names.fullmatch(file.name)))
    refuse_gaps(path, found, pattern.format("N"))
    return found


def refuse_gaps(path: Path, found: list[int], what: str) -> None:
    """Raise a ValueError unless the layers found are 0, 1, 2, ... without a gap."""
    if not found or found != list(range(len(found))):
        raise ValueError(f"{path} has {what} for layers {', '.join(map(str, found))}: want every layer from 0 on")
