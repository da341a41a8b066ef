"""Checks that every gate of a TransformerLens model acts, by two small forward passes without side effects.

1. Hide the first key in the scores: the pattern must be the softmax of the edited scores.
2. Set every gate to NaN: everything that the attention writes must be NaN.
An attention whose scores or pattern are mere copies of values that it computes elsewhere fails one of the two.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparselens.gates.modes import evaluating

_LENGTH = 4  # tokens


def prove_gates(model: Any, attentions: list[nn.Module]) -> None:
    """Raise a ValueError that names the layer unless every gate acts. A model on the meta device is not checked.

    User hooks do not run; hooks and training modes are restored afterwards.
    """
    if next(model.parameters()).is_meta:
        return
    tokens = _short_prompt(model)
    with torch.no_grad(), _untouched(model):
        for watch in (_watch_pattern, _watch_output):
            faults = {layer: f"its {type(attn).__name__} was not called" for layer, attn in enumerate(attentions)}
            handles = [h for layer, attn in enumerate(attentions) for h in watch(attn, layer, faults)]
            try:
                model(tokens, return_type=None)
            except Exception as error:
                raise ValueError(f"cannot gate this model: a small forward pass failed ({error})") from error
            finally:
                for handle in handles:
                    handle.remove()
            if faults:
                refuse_broken_weights(model)
                layer, fault = min(faults.items())
                raise ValueError(f"cannot gate layer {layer}: {fault}")


def drifts(model: Any, attentions: list[nn.Module]) -> list[Float[Tensor, " head"] | None]:
    """What each later token adds to all scores of each head of a dense model; None if nothing.

    MPT counts its ALiBi biases from the last key, so later tokens shift the scores of earlier queries. A softmax
    ignores such a shift, but it would open or close gates.
    """
    nothing: list[Tensor | None] = [None] * len(attentions)
    # bridges only: a HookedTransformer counts from the longest prompt so far, so one run does not predict the next
    has_biases = hasattr(model, "original_model") and getattr(model.cfg, "positional_embedding_type", None) == "alibi"
    if not has_biases or next(model.parameters()).is_meta:
        return nothing
    tokens = _short_prompt(model)
    runs: list[list[Tensor]] = []
    with torch.no_grad(), _untouched(model):
        for length in (tokens.shape[1] - 1, tokens.shape[1]):
            seen: list[Tensor] = []
            keep = partial(_keep, seen)
            handles = [attn.hook_attn_scores.register_forward_hook(keep) for attn in attentions]  # pyright: ignore
            try:
                model(tokens[:, :length], return_type=None)
            finally:
                for handle in handles:
                    handle.remove()
            runs.append(seen)
    return [_drift(shorter, longer) for shorter, longer in zip(*runs, strict=True)]


def _short_prompt(model: Any) -> Int[Tensor, "1 pos"]:
    n_tokens = min(_LENGTH, getattr(model.cfg, "n_ctx", None) or _LENGTH)
    return (torch.arange(n_tokens) % model.cfg.d_vocab)[None].to(next(model.parameters()).device)


def _keep(seen: list[Tensor], _module: Any, _args: Any, scores: Tensor) -> None:
    seen.append(scores[0].detach().double())


def _drift(shorter: Float[Tensor, "head pos pos"], longer: Float[Tensor, "head pos1 pos1"]) -> Tensor | None:
    n = shorter.shape[-1]
    visible = torch.ones(n, n, dtype=torch.bool, device=shorter.device).tril()
    added = (longer[:, :n, :n] - shorter)[:, visible]
    return added.mean(-1) if bool(added.abs().max() > 1e-3) else None


def refuse_broken_weights(model: nn.Module) -> None:
    """Raise a ValueError if a weight is NaN or infinite; otherwise another error would hide the cause."""
    for name, values in model.named_parameters():
        broken = int((~values.isfinite()).sum())
        if broken:
            raise ValueError(f"the weights of this model are not finite: {broken} values of {name} are NaN or infinite")


def _watch_pattern(attn: Any, layer: int, faults: dict[int, str]) -> list[Any]:
    """Hooks that hide the first key and remove the layer from `faults` if its pattern changes accordingly."""
    seen: dict[str, Tensor] = {}

    def hide_first_key(_: nn.Module, __: Any, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[..., 0] = torch.finfo(scores.dtype).min
        seen["softmax"] = torch.softmax(scores.float(), dim=-1)
        return scores

    def open_all(_: nn.Module, __: Any, gate: Tensor) -> Tensor:
        return torch.ones_like(gate)

    def compare(_: nn.Module, __: Any, pattern: Tensor) -> None:
        wanted, weights = seen["softmax"][..., 1:, :], pattern[..., 1:, :].float()  # the first query sees no key now
        shares = weights / weights.sum(-1, keepdim=True)  # an attention sink takes a share of every row
        if torch.allclose(shares, wanted, atol=2e-2):
            faults.pop(layer, None)
        else:
            faults[layer] = f"the pattern of its {type(attn).__name__} is not the softmax of hook_attn_scores"

    faults[layer] = f"its {type(attn).__name__} does not pass scores and pattern through its hook points"
    return [
        attn.hook_attn_scores.register_forward_hook(hide_first_key),
        attn.hook_gate.register_forward_hook(open_all),
        attn.hook_pattern.register_forward_hook(compare),
    ]


def _watch_output(attn: Any, layer: int, faults: dict[int, str]) -> list[Any]:
    """Hooks that set the gate to NaN and remove the layer from `faults` if its whole output becomes NaN."""

    def poison(_: nn.Module, __: Any, gate: Tensor) -> Tensor:
        return torch.full_like(gate, torch.nan)

    def check(_: nn.Module, __: Any, output: Any) -> Any:
        written = output[0] if isinstance(output, tuple) else output
        if written.isnan().all():
            faults.pop(layer, None)
        else:
            faults[layer] = f"the output of its {type(attn).__name__} does not depend on hook_pattern"
        clean = torch.zeros_like(written)  # so that this NaN does not reach the next layer
        return (clean, *output[1:]) if isinstance(output, tuple) else clean

    return [attn.hook_gate.register_forward_hook(poison), attn.register_forward_hook(check)]


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no hooks on hook points inside the block; restores both afterwards."""
    from transformer_lens.hook_points import HookPoint

    hooks: dict[Any, Any] = {}
    for module in model.modules():
        if isinstance(module, HookPoint):
            hooks[module] = module._forward_hooks
            module._forward_hooks = OrderedDict[int, Any]()
    try:
        with evaluating(model):
            yield
    finally:
        for module, own in hooks.items():
            module._forward_hooks = own
