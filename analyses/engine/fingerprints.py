"""Digests that identify models and prompts: two are equal only if every number in them is."""

import hashlib
import numbers
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from sparselens.gates.surgery import find_settings
from sparselens.prompts.tokenized import TokenizedPairs

# Settings that record where a model comes from or where it is, and do not affect what it computes.
_ORIGIN = {
    "_name_or_path",
    "device",
    "init_mode",
    "model_name",
    "name_or_path",
    "tokenizer_name",
    "transformers_version",
}


def of_model(model: nn.Module) -> str:
    """A digest of a model: its weights and buffers, the settings that a forward pass reads, and its gate bias."""
    settings = find_settings(model)
    config = getattr(model, "cfg", None)
    # the config of the wrapped transformers model, for settings that TransformerLens does not copy
    own = getattr(getattr(model, "original_model", None), "config", None)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    plain = [sorted(_plain(vars(values)).items()) for values in (config, own) if values is not None]
    return of_tensors(tensors, bias=None if settings is None else settings.gate_bias, config=plain)


def of_pairs(pairs: TokenizedPairs) -> str:
    """A digest of prompt pairs: everything in them that a run or a metric can read."""
    tensors = {f.name: value for f in fields(pairs) if isinstance(value := getattr(pairs, f.name), Tensor)}
    return of_tensors({**tensors, **{f"position {name}": where for name, where in pairs.positions.items()}})


def of_tensors(tensors: Mapping[str, Tensor], **settings: Any) -> str:
    """A digest of tensors: their names, shapes, dtypes and bytes."""
    found = hashlib.sha256(repr(settings).encode())
    for name, tensor in tensors.items():
        found.update(repr((name, tuple(tensor.shape), str(tensor.dtype))).encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def _plain(values: Mapping[Any, Any]) -> dict[str, Any]:
    """The settings that a forward pass may read: numbers and strings, and lists and mappings of them."""
    named = {name: value for name, value in values.items() if isinstance(name, str) and name not in _ORIGIN}
    found = {name: _plain_value(value) for name, value in named.items()}
    return {name: value for name, value in found.items() if value is not None}


def _plain_value(value: Any) -> Any:
    """The value in a form whose `repr` is reproducible; None for other objects."""
    if isinstance(value, Mapping):
        return sorted(_plain(value).items())
    if isinstance(value, (list, tuple)):
        return [_plain_value(item) for item in value]
    return value if isinstance(value, (str, numbers.Number)) else None
