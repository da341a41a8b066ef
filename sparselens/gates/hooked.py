"""Gates in TransformerLens models: TransformerBridge, and HookedTransformer where it still exists.

1. Find the attention of every block, or say why there is none to gate.
2. Put a gate into each (`gate_points`) and enter the new hook points into the model's registry.
3. Guard the weight processing that is wrong for gates.
4. Prove by small forward passes that every gate acts (`gate_probe`); if one does not, take all out again.
"""

import inspect
from collections.abc import Iterator
from typing import Any

from torch import nn

from sparselens.gates.gate import GateSettings

_SETTINGS = "_sparselens_gate"
_FOLDING = ("enable_compatibility_mode", "process_weights", "load_and_process_state_dict")


def is_hooked(model: object) -> bool:
    """Is this a TransformerBridge or a HookedTransformer? Does not import TransformerLens."""
    return any(
        kind.__name__ in ("TransformerBridge", "HookedTransformer") and kind.__module__.startswith("transformer_lens")
        for kind in type(model).__mro__
    )


def leaves_it_to_inner(attn: Any) -> bool:
    """Does this bridge call the attention module it wraps, and show scores and pattern only afterwards?"""
    if not type(attn).__module__.startswith("transformer_lens.model_bridge"):
        return False
    from transformer_lens.model_bridge.generalized_components import AttentionBridge

    return isinstance(attn, AttentionBridge) and type(attn).forward is AttentionBridge.forward


def refuse_other_model(model: object) -> None:
    """Raise a ValueError unless this is a model that shows its activations to hooks."""
    if not is_hooked(model):
        kind = model if isinstance(model, str) else f"a {type(model).__name__}"
        raise ValueError(
            f"want a TransformerBridge or HookedTransformer, not {kind}: sl.load(FOLDER_OR_ID) opens one, and "
            "TransformerBridge.boot_transformers(..., hf_model=model) wraps a transformers model"
        )
    refuse_lost_gates(model)


def refuse_lost_gates(model: object) -> None:
    """Raise a ValueError if a model was saved with gates and opened, by other means than `sl.load`, without them."""
    from sparselens.gates.surgery import is_sparse  # knows both kinds of gates

    network: Any = model
    gate_bias = getattr(_config(network), "gate_bias", None)
    if gate_bias is not None and not is_sparse(network):
        raise ValueError(
            f"this {type(model).__name__} was saved with gates (gate_bias = {gate_bias:g} in its config) and runs "
            "without: sl.load(FOLDER_OR_ID) opens it with them, sl.sparsify(model) puts them in, and "
            "sl.load(..., sparse=False) leaves them out on purpose"
        )


def _config(model: Any) -> Any:
    """The transformers configuration of a model, or of what it wraps."""
    return getattr(getattr(model, "original_model", model), "config", None)


def hooked_settings(model: nn.Module) -> GateSettings | None:
    """What all gates of the model share; None for a dense model."""
    return model.__dict__.get(_SETTINGS)


def gate_hooked(model: Any, settings: GateSettings) -> None:
    """Gate every attention of a TransformerLens model, in place.

    Adds the hook points `hook_gate_logits`, `hook_gate_probs` and `hook_gate` to every attention and sets
    `settings.n_layers`. While the model is gated, weight processing that folds value biases into the output bias
    raises: it takes every row of the pattern to sum to one.

    Raises:
        ValueError: a layer cannot be gated, or value biases are folded already. The model is left as it was. A fold
            can only be recognised by all value biases being exactly zero in a processed model with output biases.
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
    """The exact inverse of `gate_hooked`, bit for bit."""
    from sparselens.gates.points import GATE_POINTS, take_gate

    del model.__dict__[_SETTINGS]
    getattr(_config(model), "__dict__", {}).pop("gate_bias", None)  # of a folder that was not opened by `sl.load`
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
    """Where the model keeps its hook points: a bridge in one dictionary, a HookedTransformer in two."""
    return [model.__dict__[name] for name in ("_hook_registry", "hook_dict", "mod_dict") if name in model.__dict__]


def _attentions(model: Any) -> Iterator[nn.Module]:
    """The attention of every block, in order, each found fit for a gate."""
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
            raise ValueError(f"cannot gate this {_kind(model)}: {name} belongs to an attention outside blocks.*.attn")


def _unfit(model: Any, block: nn.Module, attn: nn.Module | None) -> str | None:
    """Why this attention cannot take a gate; None if it can."""
    from transformer_lens.hook_points import HookPoint

    from sparselens.gates.points import GATE_POINTS

    if attn is None:
        found = ", ".join(name for name in block._modules if not name.startswith(("hook_", "_"))) or "nothing"
        return f"it has no attention (state-space, recurrent or linear layer?), only {found}"
    for name in ("hook_attn_scores", "hook_pattern"):
        if type(attn._modules.get(name)) is not HookPoint:
            return f"its {type(attn).__name__} has no hook point {name}, so it shows no attention pattern to gate"
    taken = [name for name in GATE_POINTS if name in attn._modules]
    if taken:
        return f"its {type(attn).__name__} already has a {taken[0]} of its own"
    config = getattr(getattr(model, "original_model", None), "config", None)
    implementation = getattr(config, "_attn_implementation", None)
    if leaves_it_to_inner(attn) and implementation not in (None, "eager"):
        return (
            f"it leaves attention to transformers' {implementation!r} implementation, which shows no pattern: "
            'load the model with attn_implementation="eager"'
        )
    return None


def _kind(model: Any) -> str:
    """What the model is called in a message: its architecture where it has one."""
    return str(getattr(model.cfg, "architecture", None) or type(model).__name__)


class _FoldGuard:
    """A method of the model that may fold value biases, and refuses to on a gated model.

    An object rather than a function, so that a deep copy of the model guards the copy.
    """

    def __init__(self, model: Any, name: str) -> None:
        self._model, self._name = model, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        method = getattr(type(self._model), self._name).__get__(self._model)
        call = inspect.signature(method).bind(*args, **kwargs)
        call.apply_defaults()
        asked = call.arguments
        if not asked.get("no_processing"):
            for option in ("fold_value_biases", "refactor_factored_attn_matrices"):
                if asked.get(option):
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
            "cannot gate a model whose value biases are folded into the output bias: a closed gate must silence a "
            "head's value bias too. Load it again with fold_value_biases=False (a bridge: call sparsify first, then "
            "enable_compatibility_mode(fold_value_biases=False); a HookedTransformer: from_pretrained_no_processing)"
        )


def _bias(attn: Any, name: str) -> Any:
    """A bias of the attention; None where there is none or it cannot be read, as in quantised models."""
    try:
        return getattr(attn, name)
    except (AttributeError, ValueError, RuntimeError):
        return None
