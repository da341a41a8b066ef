"""Names of models and prompts by what they hold: two questions are the same only if every number in them is."""

import hashlib
import numbers
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from sparselens.surgery import find_settings
from sparselens.tokenized import TokenizedPairs


def of_model(model: nn.Module) -> str:
    """Names a model: its weights and buffers, the settings that a forward reads, and its gate bias."""
    settings = find_settings(model)
    config = getattr(model, "cfg", None)
    # where a setting of the wrapped transformers model has no copy in TransformerLens' own, it is still in there
    own = getattr(getattr(model, "original_model", None), "config", None)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    plain = [sorted(_plain(vars(values)).items()) for values in (config, own) if values is not None]
    return of_tensors(tensors, bias=None if settings is None else settings.gate_bias, config=plain)


def of_pairs(pairs: TokenizedPairs) -> str:
    """Names prompt pairs: all that a run or a metric can read of them."""
    tensors = {f.name: value for f in fields(pairs) if isinstance(value := getattr(pairs, f.name), Tensor)}
    return of_tensors({**tensors, **{f"position {name}": where for name, where in pairs.positions.items()}})


def of_tensors(tensors: Mapping[str, Tensor], **settings: Any) -> str:
    """Names tensors by their names, shapes, dtypes and bytes."""
    found = hashlib.sha256(repr(settings).encode())
    for name, tensor in tensors.items():
        found.update(repr((name, tuple(tensor.shape), str(tensor.dtype))).encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def _plain(values: Mapping[Any, Any]) -> dict[str, Any]:
    """The numbers, and mappings of numbers, among a configuration's values."""
    named = {name: value for name, value in values.items() if isinstance(name, str)}
    inside = {name: sorted(_plain(value).items()) for name, value in named.items() if isinstance(value, Mapping)}
    return inside | {name: value for name, value in named.items() if isinstance(value, numbers.Number)}
