"""Select the trained parameters of a model; save and restore the state that training changes."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparselens.gates.hooked import is_hooked
from sparselens.gates.surgery import gate_settings, sparsify
from sparselens.models.unwrapped import without_peft
from sparselens.training.processes import is_sharded, sharded_like, whole

PARTS = ("attention", "qk", "all")
_OF_EACH = 4  # sampled values per frozen parameter, about
_QUERY = re.compile(r"q(uery)?(_(?!key).*)?")  # q, q_proj, query, q_norm; not query_key_value
_KEY = re.compile(r"k(ey)?(_(?!value).*)?")


def choose_trained(model: nn.Module, part: str) -> None:
    """Freeze everything except a part of a model, in place.

    Args:
        part: "attention": all attention parameters; "qk": those that compute queries and keys; "all": every parameter

    Raises:
        ValueError: the model has no such part.
    """
    refuse_unknown_part(part)
    chosen = {id(parameter) for parameter in _parameters(model, part)}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)


def refuse_unknown_part(part: str) -> None:
    """Raise a ValueError for a part that `choose_trained` does not know."""
    if part not in PARTS:
        raise ValueError(f"cannot train {part!r}: want {', '.join(PARTS)}")


def _parameters(model: nn.Module, part: str) -> list[nn.Parameter]:
    if part == "all":
        return [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    chosen: list[nn.Parameter] = []
    for name, attention in attentions(model).items():
        held = dict(attention.named_parameters())
        if part == "qk":
            for word, pattern in (("query", _QUERY), ("key", _KEY)):
                if not _matching(held, pattern):
                    raise ValueError(
                        f"cannot train queries and keys alone: {name} has no separate {word} weight, only "
                        f"{', '.join(_layers(attention))} (fused?); train the whole attention instead"
                    )
            held = _matching(held, _QUERY) | _matching(held, _KEY)
        chosen += held.values()
    return chosen


def _matching(parameters: dict[str, nn.Parameter], pattern: re.Pattern[str]) -> dict[str, nn.Parameter]:
    return {name: value for name, value in parameters.items() if any(map(pattern.fullmatch, name.split(".")))}


def attentions(model: nn.Module) -> dict[str, nn.Module]:
    """The attention modules of a TransformerLens or transformers model, one per block, by name.

    If attention modules are nested, takes the outermost: BERT's inner one lacks the output projection.

    Raises:
        ValueError: there is none.
    """
    network: Any = without_peft(model)
    if is_hooked(network):
        found = {f"blocks.{i}.attn": block.attn for i, block in enumerate(network.blocks) if hasattr(block, "attn")}
    else:
        named = {name: m for name, m in network.named_modules() if "Attention" in type(m).__name__}
        outermost = {n: m for n, m in named.items() if not any(n.startswith(f"{other}.") for other in named)}
        found = {n: m for n, m in outermost.items() if any(hasattr(inner, "layer_idx") for inner in m.modules())}
    if not found:
        raise ValueError(f"found no attention in this {type(network).__name__}: no *Attention* module with a layer_idx")
    return found


def attention_layers(model: nn.Module) -> dict[str, nn.Module]:
    """All layers with weights inside the attention modules, by full name."""
    return {f"{name}.{inner}": layer for name, m in attentions(model).items() for inner, layer in _layers(m).items()}


def _layers(attention: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in attention.named_modules() if name and module._parameters}


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters to optimise: those that are not frozen.

    Raises:
        ValueError: there is none, or one has half precision, in which most optimiser updates round to zero.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trained:
        raise ValueError("nothing to train: every parameter of the model is frozen (requires_grad is False)")
    for name, parameter in trained.items():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"{name} is in {str(parameter.dtype).removeprefix('torch.')}, too coarse for training: "
                'call model.float(), and set mixed_precision="bf16" to compute in half precision'
            )
    return list(trained.values())


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Everything that training can change: unfrozen parameters, and buffers. Not copied."""
    return {name: value.detach() for name, value in _entries(model).items() if not _is_frozen(value)}


def put_trained_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a result of `trained_state` into the same model, with any number of processes.

    Raises:
        ValueError: names or shapes differ, or other parameters are frozen.
    """
    current = trained_state(model)
    unmatched = sorted(current.keys() ^ state.keys())
    if unmatched:
        raise ValueError(f"from another model, or with other trained parameters: only one of them has {unmatched[0]}")
    for name, value in current.items():
        if value.shape != state[name].shape:
            raise ValueError(
                f"from another model: the shape of {name} is {list(value.shape)} here, {list(state[name].shape)} there"
            )
    with torch.no_grad():
        for name, value in current.items():
            value.copy_(sharded_like(value, state[name]))


def in_one_piece(model: Any, another: Callable[[], Any], keep: bool) -> Any:
    """A gated model with whole weights, which can be saved: the model itself or, if FSDP shards it, a new one.

    Args:
        another: opens the original model again
        keep: False in processes that only help to gather weights; they get the sharded model back
    """
    if not any(map(is_sharded, model.parameters())):
        return model
    state = whole(trained_state(model), keep)
    if not keep:
        return model
    fresh = sparsify(another(), gate_settings(model).gate_bias)
    put_trained_state(fresh, state)
    return fresh


def frozen_sample(model: nn.Module) -> list[float]:
    """A few values of every frozen parameter, to recognise the model by."""
    frozen = (whole(value.detach()).flatten() for value in _entries(model).values() if _is_frozen(value))
    return [float(x) for values in frozen for x in values[:: -(-len(values) // _OF_EACH)]]


def _entries(model: nn.Module) -> dict[str, Tensor]:
    return model.state_dict(keep_vars=True)


def _is_frozen(value: Tensor) -> bool:
    return isinstance(value, nn.Parameter) and not value.requires_grad
