"""The gate inside one TransformerLens attention, without copying any attention code.

Every attention of TransformerLens runs
    scores  = attn.hook_attn_scores(scores)           # after scale, soft-cap, position biases and masks
    pattern = attn.hook_pattern(softmax(scores))      # then pattern @ v
so the class of these two hook points is changed in place: the first now computes the gate, the second multiplies by it.
Their identity, names, hooks and registry entries stay. If an attention runs the module that it wraps instead, the
softmax of that module is intercepted (`TappedForward`).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformer_lens.hook_points import HookPoint

from sparselens.gates.gate import GateSettings, attention_gates, count_open, is_visible
from sparselens.gates.hooked import leaves_it_to_inner

GATE_POINTS = ("hook_gate_logits", "hook_gate_probs", "hook_gate")

Pattern = Float[Tensor, "batch head query_pos key_pos"]


class LayerGate:
    """The gate of one attention, shared by its hook points: carries the gate from the scores to the pattern."""

    def __init__(
        self, attn: Any, layer: int, settings: GateSettings, tapped: bool, drift: Float[Tensor, " head"] | None
    ) -> None:
        self.attn, self.layer, self.settings, self.tapped, self.drift = attn, layer, settings, tapped, drift
        self.listening = not tapped  # a tapped attention calls its points again afterwards, too late to edit anything
        self._waiting: Tensor | None = None

    def read(self, scores: Pattern) -> None:
        """Compute the gate for these scores, passing it through the three hook points."""
        noise = None
        if self.attn.training:
            noise = self.settings.noise(self.layer, scores.shape, scores.device)
        settled = self._without_padding(self._settled(scores))
        gates = attention_gates(settled, self.settings.gate_bias, noise, self._edit, self.settings.temperature)
        if self.settings.recording:
            expected = gates.probs.sum((-2, -1))
            self.settings.record(self.layer, expected, count_open(gates.gate), is_visible(settled))
        self._waiting = gates.gate

    def _without_padding(self, scores: Pattern) -> Pattern:
        """While edges are counted, mask all keys of padding queries, which on the right would see the whole prompt."""
        real = self.settings.real
        if real is None or real.shape[1] < scores.shape[-2]:
            return scores
        return scores.masked_fill(~real[:, None, -scores.shape[-2] :, None], -torch.inf)

    def apply(self, pattern: Pattern) -> Pattern:
        """The gated pattern, which multiplies the values. Not renormalised.

        Raises:
            RuntimeError: there is no gate because no scores came first; without one the model would run as dense.
        """
        gate, self._waiting = self._waiting, None
        if gate is None:
            raise RuntimeError(f"layer {self.layer}: hook_pattern was called before hook_attn_scores: nothing to gate")
        return pattern * gate.to(pattern.dtype)

    def surplus(self, n_queries: int, n_keys: int) -> Float[Tensor, "head query"] | None:
        """The constant that ALiBi biases add to all scores of a query, beyond what depends on the distance to the key.

        A softmax ignores it, but a gate would not. MPT counts positions from the last key, so later tokens shift the
        scores; a HookedTransformer counts from the end of the longest prompt it has run, so earlier prompts do. With
        the constant subtracted, a key's bias depends on its distance only (and is 0 for the query's own position).
        """
        if self.drift is not None:
            return self.drift[:, None] * torch.arange(n_queries - 1, -1, -1, device=self.drift.device)
        biases = getattr(self.attn, "alibi", None)
        if not isinstance(biases, Tensor) or biases.shape[-1] == n_keys:
            return None
        return (biases[:, -1, 0] - biases[:, n_keys - 1, 0])[:, None].expand(-1, n_queries)

    def _settled(self, scores: Pattern) -> Pattern:
        surplus = self.surplus(*scores.shape[-2:])
        return scores if surplus is None else scores - surplus.to(scores)[..., None]

    def _edit(self, name: str, value: Tensor) -> Tensor:
        return getattr(self.attn, name)(value)


class GatedScores(HookPoint):
    """`hook_attn_scores` of a gated attention: hooks run first, so that a patched score changes its gate too."""

    gate: LayerGate

    def __call__(self, scores: Tensor) -> Tensor:
        """Run the hooks, then compute the gate from the scores that they return."""
        if not self.gate.listening:
            return scores
        scores = super().__call__(scores)
        self.gate.read(scores)
        return scores


class GatedPattern(HookPoint):
    """`hook_pattern` of a gated attention: hooks run last, so that they see and edit the pattern that is used."""

    gate: LayerGate

    def __call__(self, pattern: Tensor) -> Tensor:
        """Apply the gate, then run the hooks."""
        return super().__call__(self.gate.apply(pattern)) if self.gate.listening else pattern


class TappedForward:
    """The forward of a wrapped attention module whose own softmax passes through the hook points."""

    def __init__(self, inner: Any, gate: LayerGate) -> None:
        self._inner, self._gate = inner, gate
        self.replaced = inner.__dict__.get("forward")  # accelerate, for example, puts its own there

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the original forward with its softmax intercepted."""
        kwargs.pop("pattern_fn", None)  # would call the pattern point too, which the tap already does
        self._gate.listening = True
        try:
            with _SoftmaxTap(self._gate):
                if self.replaced is not None:
                    return self.replaced(*args, **kwargs)
                return type(self._inner).forward(self._inner, *args, **kwargs)
        finally:
            self._gate.listening = False


class _SoftmaxTap(TorchFunctionMode):
    """Passes input and output of every 4-dimensional softmax through the hook points of one attention."""

    _SOFTMAX = frozenset({torch.softmax, torch.special.softmax, Tensor.softmax, nn.functional.softmax})

    def __init__(self, gate: LayerGate) -> None:
        super().__init__()
        self._attn = gate.attn

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in self._SOFTMAX or not args or args[0].dim() != 4:
            return func(*args, **kwargs)
        scores = self._attn.hook_attn_scores(args[0])
        return self._attn.hook_pattern(func(scores, *args[1:], **kwargs))


def put_gate(
    attn: Any, layer: int, settings: GateSettings, drift: Float[Tensor, " head"] | None = None
) -> dict[str, HookPoint]:
    """Gate one attention. Returns its new hook points by name.

    Args:
        drift: what each later token adds to all scores of a head (`probe.drifts`)
    """
    gate = LayerGate(attn, layer, settings, leaves_it_to_inner(attn), drift)
    points = {name: HookPoint().train(attn.training) for name in GATE_POINTS}
    for name, point in points.items():
        point.pos_dim = -2  # the axis of query positions, for `pos_slice`
        setattr(attn, name, point)
    for name, gated in (("hook_attn_scores", GatedScores), ("hook_pattern", GatedPattern)):
        point = attn._modules[name]
        point.__class__ = gated
        point.gate = gate
    if gate.tapped:
        inner = attn.original_component
        inner.__dict__["forward"] = TappedForward(inner, gate)
    return points


def gate_of(attn: Any) -> LayerGate | None:
    """The gate of an attention; None in a dense model."""
    return getattr(attn.hook_attn_scores, "gate", None)


def take_gate(attn: Any) -> None:
    """Undo `put_gate` exactly."""
    for name in ("hook_attn_scores", "hook_pattern"):
        point = attn._modules[name]
        point.__class__ = HookPoint
        del point.gate
    if leaves_it_to_inner(attn):
        inner = attn.original_component
        tapped = inner.__dict__.pop("forward")
        if tapped.replaced is not None:
            inner.__dict__["forward"] = tapped.replaced
    for name in GATE_POINTS:
        delattr(attn, name)
        getattr(attn, "_hook_registry", {}).pop(name, None)
