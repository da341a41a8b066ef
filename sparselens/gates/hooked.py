"""Gates in TransformerLens models: TransformerBridge, and HookedTransformer where it still exists.

1. Find the attention of every block; raise an error that says why if there is none that can be gated.
2. Put a gate into each (`gates.points`) and add the new hook points to the model's registry.
3. Block the weight processing that would be wrong for gates.
4. Check by small forward passes that every gate acts (`gates.probe`); if one does not, remove them all.
"""

import inspect
from collections.abc import Iterator
from typing import Any

from torch import nn

from sparselens.gates.gate import GateSettings
from sparselens.models.unwrapped import transformers_config

_SETTINGS = "_sparselens_gate"
_FOLDING = ("enable_compatibility_mode", "process_weights", "load_and_process_state_dict")


def is_hooked(model: object) -> bool:
    """Whether this is a TransformerBridge or a HookedTransformer. Does not import TransformerLens."""
    return any(
        kind.__name__ in ("TransformerBridge", "HookedTransformer") and kind.__module__.startswith("transformer_lens")
        for kind in type(model).__mro__
    )


def leaves_it_to_inner(attn: Any) -> bool:
    """Whether this bridge runs the attention module that it wraps, and calls its score and pattern hooks afterwards."""
    if not type(attn).__module__.startswith("transformer_lens.model_bridge"):
        return False
    from transformer_lens.model_bridge.generalized_components import AttentionBridge

    return isinstance(attn, AttentionBridge) and type(attn).forward is AttentionBridge.forward


def refuse_other_model(model: object) -> None:
    """Raise a ValueError unless this is a TransformerLens model, which shows its activations to hooks."""
    if not is_hooked(model):
        kind = model if isinstance(model, str) else f"a {type(model).__name__}"
        raise ValueError(
            f"want a TransformerBridge or HookedTransformer, not {kind}: sl.load(FOLDER_OR_ID) opens one, and "
            "TransformerBridge.boot_transformers(..., hf_model=model) wraps a transformers model"
        )
    refuse_lost_gates(model)


def refuse_lost_gates(model: object) -> None:
    """Raise a ValueError if a model that was saved with gates has been opened without them (not by `sl.load`)."""
    from sparselens.gates.surgery import is_sparse  # knows both kinds of gates

    network: Any = model
    gate_bias = getattr(transformers_config(network), "gate_bias", None)
    if gate_bias is not None and not is_sparse(network):
        raise ValueError(
            f"this {type(model).__name__} was saved with gates (gate_bias = {gate_bias:g} in its config) but runs "
            "without them: open it with sl.load(FOLDER_OR_ID), or add them with sl.sparsify(model); to leave them out "
            "on purpose, use sl.load(..., sparse=False)"
        )


def hooked_settings(model: nn.Module) -> GateSettings | None:
    """The settings shared by all gates of the model; None for a dense model."""
    return model.__dict__.get(_SETTINGS)


def gate_hooked(model: Any, settings: GateSettings) -> None:
    """Gate every attention of a TransformerLens model, in place.

    Adds the hook points `hook_gate_logits`, `hook_gate_probs` and `hook_gate` to every attention and sets
    `settings.n_layers`. While the model is gated, weight processing that folds value biases into the output bias
    raises an error, since it assumes that every row of the pattern sums to one.

    Raises:
        ValueError: a layer cannot be gated, or value biases have been folded already. The model is left unchanged.
            Folding can only be inferred: a processed model has output biases, and all its value biases are exactly 0.
    """
    from sparselens.gates.points import put_gate
    from sparselens.gates.probe import drifts, prove_gates

    attentions = list(_attentions(model))
    _refuse_folded(model)
    settings.n_layers, found = len(attentions), drifts(model, attentions)
    model.__dict__[_SETTINGS] = settings
    try:
        for layer, attn in enumerate(attentions):
            for name, point in put_gate(attn, layer, settings, found[layer]).items():
                _enter(model, f"blocks.{layer}.attn.{name}", point)
        for name in _FOLDING:
            if hasattr(type(model), name):
                model.__dict__[name] = _FoldGuard(model, name)
        prove_gates(model, attentions)
    except BaseException:
        ungate_hooked(model)
        raise


def ungate_hooked(model: Any) -> None:
    """Undo `gate_hooked` exactly."""
    from sparselens.gates.points import GATE_POINTS, take_gate

    del model.__dict__[_SETTINGS]
    getattr(transformers_config(model), "__dict__", {}).pop(
        "gate_bias", None
    )  # left if the folder was not opened by `sl.load`
    for layer, block in enumerate(model.blocks):
        if "hook_gate" in block.attn._modules:
            take_gate(block.attn)
        for name in GATE_POINTS:
            _forget(model, f"blocks.{layer}.attn.{name}")
    for name in _FOLDING:
        model.__dict__.pop(name, None)


def _enter(model: Any, name: str, point: Any) -> None:
    point.name = name
    for registry in _registries(model):
        registry[name] = point


def _forget(model: Any, name: str) -> None:
    for registry in _registries(model):
        registry.pop(name, None)


def _registries(model: Any) -> list[dict[str, Any]]:
    """The dictionaries of the model's hook points: a bridge has one, a HookedTransformer two."""
    return [model.__dict__[name] for name in ("_hook_registry", "hook_dict", "mod_dict") if name in model.__dict__]


def _attentions(model: Any) -> Iterator[nn.Module]:
    """The attention of every block, in order; raises a ValueError if one of them cannot be gated."""
    blocks = model._modules.get("blocks")
    if blocks is None or len(blocks) == 0:
        raise ValueError(
            f"cannot gate this {_kind(model)}: it has no `blocks` (encoder-decoders and models without transformer "
            "blocks are not supported)"
        )
    points: set[int] = set()
    for layer, block in enumerate(blocks):
        attn = block._modules.get("attn")
        reason = _unfit(model, block, attn)
        if attn is None or reason is not None:
            raise ValueError(f"cannot gate layer {layer} of this {_kind(model)}: {reason}")
        points.add(id(attn.hook_pattern))
        yield attn
    for name, module in model.named_modules():
        if name.split(".")[-1] == "hook_pattern" and id(module) not in points:
            raise ValueError(f"cannot gate this {_kind(model)}: {name} is part of an attention outside blocks.*.attn")


def _unfit(model: Any, block: nn.Module, attn: nn.Module | None) -> str | None:
    """Why this attention cannot take a gate; None if it can."""
    from transformer_lens.hook_points import HookPoint

    from sparselens.gates.points import GATE_POINTS

    if attn is None:
        found = ", ".join(name for name in block._modules if not name.startswith(("hook_", "_"))) or "nothing"
        return f"it has no attention, only {found} (is it a state-space, recurrent or linear layer?)"
    for name in ("hook_attn_scores", "hook_pattern"):
        if type(attn._modules.get(name)) is not HookPoint:
            return f"its {type(attn).__name__} has no hook point {name}, and thus no attention pattern to gate"
    taken = [name for name in GATE_POINTS if name in attn._modules]
    if taken:
        return f"its {type(attn).__name__} already has a hook point {taken[0]}"
    implementation = getattr(transformers_config(model), "_attn_implementation", None)
    if leaves_it_to_inner(attn) and implementation not in (None, "eager"):
        return (
            f"it runs transformers' {implementation!r} attention, which does not return the pattern: load the model "
            'with attn_implementation="eager"'
        )
    return None


def _kind(model: Any) -> str:
    """The model's architecture, if it has one, or class: its name in error messages."""
    return str(getattr(model.cfg, "architecture", None) or type(model).__name__)


class _FoldGuard:
    """Replaces a method of a gated model that can fold value biases: calls that would do so raise an error.

    An object rather than a closure, so that a deep copy of the model guards the copy.
    """

    def __init__(self, model: Any, name: str) -> None:
        self._model, self._name = model, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        method = getattr(type(self._model), self._name).__get__(self._model)
        call = inspect.signature(method).bind(*args, **kwargs)
        call.apply_defaults()
        if not call.arguments.get("no_processing"):
            for option in ("fold_value_biases", "refactor_factored_attn_matrices"):
                if call.arguments.get(option):
                    raise ValueError(
                        f"{self._name}({option}=True) is wrong for a gated model, whose pattern rows do not sum to "
                        f"one: call {self._name}({option}=False)"
                    )
        return method(*args, **kwargs)


def _refuse_folded(model: Any) -> None:
    """Raise if weight processing has moved the value biases into the output bias."""
    processed = getattr(model, "compatibility_mode", False) or str(model.cfg.normalization_type).endswith("Pre")
    if not processed:
        return
    value, output = ([_bias(block.attn, name) for block in model.blocks] for name in ("b_V", "b_O"))
    have_values = all(bias is not None for bias in value)
    if have_values and not any(bias.any() for bias in value) and any(b is not None and b.any() for b in output):
        raise ValueError(
            "cannot gate a model whose value biases are folded into the output bias, since a closed gate must also "
            "remove the value bias. Load it again with fold_value_biases=False (a bridge: call sparsify first, then "
            "enable_compatibility_mode(fold_value_biases=False); a HookedTransformer: from_pretrained_no_processing)"
        )


def _bias(attn: Any, name: str) -> Any:
    """A bias of the attention; None if there is none or it cannot be read, as in quantised models."""
    try:
        return getattr(attn, name)
    except (AttributeError, ValueError, RuntimeError):
        return None
