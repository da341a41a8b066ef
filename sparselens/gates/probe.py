"""Proof that every gate of a TransformerLens model acts, by two small forward passes that leave no trace.

1. Hide the first key in the scores: the pattern must be the softmax of the edited scores.
2. Set every gate to NaN: whatever the attention writes must be NaN.
An attention that only shows its scores or its pattern, computed elsewhere, fails one of the two.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparselens.gates.modes import evaluating

_LENGTH = 4  # tokens


def prove_gates(model: Any, attentions: list[nn.Module]) -> None:
    """Raise ValueError, naming the layer, unless every gate acts. A model on the meta device is taken on trust.

    User hooks do not fire; modes and hooks are as before afterwards.
    """
    if next(model.parameters()).is_meta:
        return
    n_tokens = min(_LENGTH, getattr(model.cfg, "n_ctx", None) or _LENGTH)
    tokens = (torch.arange(n_tokens) % model.cfg.d_vocab)[None].to(next(model.parameters()).device)
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
    """What every token that follows adds to all scores of a dense model's heads; None where it adds nothing.

    A softmax does not see it: MPT counts its ALiBi biases from the last key. A gate would, and what comes later would
    decide which edges of earlier queries are open.
    """
    nothing: list[Tensor | None] = [None] * len(attentions)
    # a HookedTransformer counts its biases from the longest prompt so far: what one run says holds for no other
    has_biases = hasattr(model, "original_model") and getattr(model.cfg, "positional_embedding_type", None) == "alibi"
    if not has_biases or next(model.parameters()).is_meta:
        return nothing
    n_tokens = min(_LENGTH, getattr(model.cfg, "n_ctx", None) or _LENGTH)
    tokens = (torch.arange(n_tokens) % model.cfg.d_vocab)[None].to(next(model.parameters()).device)
    runs: list[list[Tensor]] = []
    with torch.no_grad(), _untouched(model):
        for length in (n_tokens - 1, n_tokens):
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


def _keep(seen: list[Tensor], _module: Any, _args: Any, scores: Tensor) -> None:
    seen.append(scores[0].detach().double())


def _drift(shorter: Float[Tensor, "head pos pos"], longer: Float[Tensor, "head pos1 pos1"]) -> Tensor | None:
    n = shorter.shape[-1]
    visible = torch.ones(n, n, dtype=torch.bool, device=shorter.device).tril()
    added = (longer[:, :n, :n] - shorter)[:, visible]
    return added.mean(-1) if bool(added.abs().max() > 1e-3) else None


def refuse_broken_weights(model: nn.Module) -> None:
    """Raise a ValueError if a weight of the model is NaN or infinite, which would be blamed on something else."""
    for name, values in model.named_parameters():
        broken = int((~values.isfinite()).sum())
        if broken:
            raise ValueError(
                f"the weights of this model are not finite: {broken} numbers of {name} are NaN or infinite"
            )


def _watch_pattern(attn: Any, layer: int, faults: dict[int, str]) -> list[Any]:
    """Hooks that hide the first key and take the layer from `faults` if the pattern follows."""
    seen: dict[str, Tensor] = {}

    def hide_first_key(_: nn.Module, __: Any, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[..., 0] = torch.finfo(scores.dtype).min
        seen["softmax"] = torch.softmax(scores.float(), dim=-1)
        return scores

    def open_all(_: nn.Module, __: Any, gate: Tensor) -> Tensor:
        return torch.ones_like(gate)

    def compare(_: nn.Module, __: Any, pattern: Tensor) -> None:
        wanted, weights = seen["softmax"][..., 1:, :], pattern[..., 1:, :].float()  # the first query sees nothing now
        shares = weights / weights.sum(-1, keepdim=True)  # an attention sink takes its part of every row
        if torch.allclose(shares, wanted, atol=2e-2):
            faults.pop(layer, None)
        else:
            faults[layer] = f"the pattern of its {type(attn).__name__} is not the softmax of hook_attn_scores"

    faults[layer] = f"its {type(attn).__name__} shows no scores and pattern while it computes"
    return [
        attn.hook_attn_scores.register_forward_hook(hide_first_key),
        attn.hook_gate.register_forward_hook(open_all),
        attn.hook_pattern.register_forward_hook(compare),
    ]


def _watch_output(attn: Any, layer: int, faults: dict[int, str]) -> list[Any]:
    """Hooks that poison the gate and take the layer from `faults` if the poison comes through."""

    def poison(_: nn.Module, __: Any, gate: Tensor) -> Tensor:
        return torch.full_like(gate, torch.nan)

    def check(_: nn.Module, __: Any, output: Any) -> Any:
        written = output[0] if isinstance(output, tuple) else output
        if written.isnan().all():
            faults.pop(layer, None)
        else:
            faults[layer] = f"what its {type(attn).__name__} writes does not depend on hook_pattern"
        clean = torch.zeros_like(written)  # so that the next layer is judged by its own gate
        return (clean, *output[1:]) if isinstance(output, tuple) else clean

    return [attn.hook_gate.register_forward_hook(poison), attn.register_forward_hook(check)]


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and silent hook points inside; everything as it was afterwards."""
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
