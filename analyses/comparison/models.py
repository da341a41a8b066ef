"""Which models and prompts a comparison is about: refused where they do not go together, named by their numbers."""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from sparselens.analyses.comparison.results import SIDES
from sparselens.analyses.reading import read_model
from sparselens.surgery import find_settings


def refuse_unlike(dense: Any, sparse: Any) -> None:
    """Raise a ValueError unless tokens, nodes and edges of the two models are the same."""
    graphs = [read_model(model).graph for model in (dense, sparse)]
    if graphs[0] != graphs[1]:
        raise ValueError(f"the models differ in layers or heads: dense {graphs[0]}, sparse {graphs[1]}")
    sizes = [model.cfg.d_vocab for model in (dense, sparse)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"the models differ in vocabulary: dense {sizes[0]} tokens, sparse {sizes[1]}")
    words = [t.get_vocab() for t in (getattr(model, "tokenizer", None) for model in (dense, sparse)) if t is not None]
    if len(words) == len(SIDES) and words[0] != words[1]:
        differing = min(words[0].items() ^ words[1].items(), key=str)[0]
        raise ValueError(f"the models have different tokenizers: {differing!r} is not the same token in both")


def digest(model: nn.Module) -> str:
    """Names a model: its weights and its gate bias."""
    settings = find_settings(model)
    return hashed(*model.parameters(), bias=None if settings is None else settings.gate_bias)


def hashed(*tensors: Tensor, **settings: Any) -> str:
    """Names tensors by their shapes, dtypes and bytes."""
    found = hashlib.sha256(repr(settings).encode())
    for tensor in tensors:
        found.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]
