"""Converts a TransformerBridge back into the transformers model that it wraps.

A bridge wraps the transformers modules. Where query, key and value are fused in one weight it adds split copies, and
training updates the copies. Parameters keep their names apart from a prefix, so the conversion strips the prefix and
fuses the copies again. Before the result is returned, its logits are compared with those of the bridge.
"""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparselens.gates.hooked import is_hooked
from sparselens.gates.surgery import densify, is_sparse
from sparselens.models.adapters import has_adapters, merged
from sparselens.models.character_model import attend_both_ways
from sparselens.models.copies import copied
from sparselens.models.unwrapped import without_peft

_WRAPPING = "_original_component."


def to_transformers(model: nn.Module) -> PreTrainedModel:
    """The transformers model with the weights of `model`; a transformers model is returned as it is.

    A model with adapters is copied, with the adapters merged into the weights.

    Raises:
        ValueError: the model cannot be converted back (a HookedTransformer, or processed weights).
    """
    plain = without_peft(model)
    if isinstance(plain, PreTrainedModel):
        return merged(model) if has_adapters(model) else plain
    wrapped: Any = getattr(model, "original_model", None)
    if not is_hooked(model) or not isinstance(wrapped, PreTrainedModel):
        raise ValueError(
            f"a {type(model).__name__} cannot be converted to a transformers model: train a TransformerBridge or "
            "transformers model instead, or save the state_dict with safetensors"
        )
    if has_adapters(wrapped):
        raise ValueError("the model inside this bridge has adapters: merge them before making the bridge")
    fresh = _empty_like(wrapped)
    fresh.load_state_dict(_unwrapped(wrapped, set(fresh.state_dict())))
    fresh.tie_weights()
    _refuse_difference(model, fresh)
    return fresh


def _empty_like(wrapped: PreTrainedModel) -> PreTrainedModel:
    config = copy.deepcopy(wrapped.config)
    config._attn_implementation = "eager"
    fresh: Any = type(wrapped)(config)
    attend_both_ways(fresh)
    return fresh.to(device=wrapped.device, dtype=next(wrapped.parameters()).dtype).eval()


def _unwrapped(wrapped: PreTrainedModel, names: set[str]) -> dict[str, Tensor]:
    tensors = {name.replace(_WRAPPING, ""): value.detach() for name, value in wrapped.state_dict().items()}
    n_heads = wrapped.config.get_text_config().num_attention_heads
    state = {name: tensors[name].clone() for name in names}
    for name in state:
        for fused, layout in _LAYOUTS.items():
            module, found, kind = name.rpartition(f".{fused}.")
            parts = [tensors.get(f"{module}.{part}.{kind}") for part in "qkv"]
            if found and all(part is not None for part in parts):
                state[name] = layout(cast("list[Tensor]", parts), n_heads).reshape(state[name].shape)
    return state


def _columns(parts: list[Tensor], _: int) -> Tensor:
    """gpt2 stores weights as (input, output): query columns, then key, then value."""
    return torch.cat(parts, dim=0).mT if parts[0].ndim == 2 else torch.cat(parts)


def _blocks(parts: list[Tensor], _: int) -> Tensor:
    """phi3, mpt: query rows, then key, then value."""
    return torch.cat(parts)


def _interleaved(parts: list[Tensor], n_heads: int) -> Tensor:
    """neox, bloom, falcon: head by head, each with its query, key and value."""
    if parts[0].shape != parts[1].shape:  # grouped keys have other layouts; the comparison of logits rejects them
        return torch.cat(parts)
    return torch.stack([part.reshape(n_heads, -1, *part.shape[1:]) for part in parts], dim=1)


_LAYOUTS = {"c_attn": _columns, "qkv_proj": _blocks, "Wqkv": _blocks, "query_key_value": _interleaved}


def _refuse_difference(model: nn.Module, fresh: PreTrainedModel) -> None:
    """Raise a ValueError unless both models, without gates, give the same logits on a few tokens."""
    dense: Any = copied(model).eval()
    dense = densify(dense) if is_sparse(dense) else dense
    tokens = torch.arange(6, device=fresh.device)[None] % fresh.config.get_text_config().vocab_size
    with torch.no_grad():
        ours: Any = dense(tokens)
        theirs: Any = fresh(tokens).logits
    if not torch.allclose(ours.float(), theirs.float(), atol=1e-4, rtol=1e-4):
        difference = float((ours - theirs).abs().max())
        raise ValueError(
            f"the weights of this {type(fresh).__name__} bridge cannot be converted back to transformers (logits "
            f"differ by {difference:.2g}; were they processed by enable_compatibility_mode?): post-train the "
            "transformers model instead"
        )
