"""The gradient of a hard gate in attribution.

gate = 1[gate_logit > 0] is flat on both sides of its step, so in evaluation mode its gradient is zero: attribution does
not see that a changed score opens or closes an edge. "straight-through" (Bengio et al. 2013, arXiv 1308.3432) uses the
gradient of training, without noise: d gate / d gate_logit = sigmoid'(gate_logit). The forward pass does not change.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sparselens.analyses.engine.partial_runs import Hook

GateGradient = Literal["none", "straight-through"]


def gate_gradient_hooks(model: Any, gate_gradient: str) -> list[Hook]:
    """Hooks that give every gate of the model this gradient; an empty list for a dense model, which has no gates."""
    if gate_gradient == "none":
        return []
    hooks: list[Hook] = []
    for layer in range(model.cfg.n_layers):
        at = f"blocks.{layer}.attn.".__add__
        if at("hook_gate") in model.hook_dict:
            slope = _Slope()
            hooks += [(at("hook_gate_logits"), slope.read), (at("hook_gate"), slope.put)]
    return hooks


def refuse_gate_gradient(gate_gradient: str, method: str) -> None:
    """Raise a ValueError if the gate gradient is unknown, or given for a method without gradients."""
    if gate_gradient not in get_args(GateGradient):
        raise ValueError(f"no such gate_gradient: {gate_gradient!r} (want {', '.join(get_args(GateGradient))})")
    if method == "exact" and gate_gradient != "none":
        raise ValueError("exact scores use no gradient: gate_gradient must be 'none'")


class _Slope:
    """Passes the gate logits of one layer on to its gates."""

    _soft: Tensor | None = None

    def read(self, logits: Tensor) -> None:
        self._soft = torch.sigmoid(logits)

    def put(self, gate: Tensor) -> Tensor:
        soft, self._soft = self._soft, None
        assert soft is not None
        return gate + (soft - soft.detach())
