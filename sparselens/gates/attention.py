"""The gate as a transformers attention function: `attn_implementation="sparselens"`.

For training at scale: PEFT, accelerate, FSDP and gradient checkpointing see an ordinary transformers model. Works for
every architecture that calls transformers' attention interface; `sparselens.sparsify` raises an error for the others.
A suffix chooses the implementation (`fused.IMPLEMENTATIONS`), as in "sparselens_flex"; "sparselens" means "auto".
"""

import warnings
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from sparselens.gates.fused import IMPLEMENTATIONS, Attended, Call, fused, resolve, why_eager
from sparselens.gates.gate import (
    GatedPattern,
    GateSettings,
    Mask,
    attention_gates,
    count_open,
    finite_bias,
    gated_softmax,
)
from sparselens.gates.modes import evaluating
from sparselens.gates.noise import words_of
from sparselens.gates.spans import Spans, all_visible, blind_padding, spans_mask

IMPLEMENTATION = "sparselens"
NAMES = {which: IMPLEMENTATION if which == "auto" else f"{IMPLEMENTATION}_{which}" for which in IMPLEMENTATIONS}
_SETTINGS = "_sparselens_gate"  # attribute of a transformers attention module


def register_attention() -> None:
    """Register `attn_implementation="sparselens"` with transformers. Safe to call more than once.

    >>> sl.register_attention()
    >>> model = AutoModelForCausalLM.from_pretrained(folder)  # a folder that `sl.save` wrote
    """
    for implementation, name in NAMES.items():
        AttentionInterface.register(name, gated_attention)
        AttentionMaskInterface.register(name, partial(_mask_for, implementation))


def _mask_for(implementation: str, *sizes: Any, **options: Any) -> Spans | Tensor | None:
    """The mask in the form that the implementation takes on this device."""
    device = torch.device(options.get("device", "cpu"))
    made = (eager_mask if resolve(implementation, device) == "eager" else spans_mask)(*sizes, **options)
    return blind_padding(made, options.get("attention_mask"), int(options.get("q_offset", 0)))


def gated_attention(
    module: nn.Module,
    query: Float[Tensor, "batch head query_pos d_head"],
    key: Float[Tensor, "batch kv_head key_pos d_head"],
    value: Float[Tensor, "batch kv_head key_pos d_value"],
    attention_mask: Tensor | Spans | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Float[Tensor, " head"] | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "batch query_pos head d_value"], Float[Tensor, "batch head query_pos key_pos"] | None]:
    """Attention with a hard gate on every edge, with the signature of transformers' attention interface.

    Also returns the pattern if attention is eager, else None.

    Raises:
        ValueError: a causal layer was called without a mask (transformers passes one unless its mask function was
            replaced), the model has no gates, or its config has no `gate_bias`.
    """
    settings, keys = _settings_of(module), key.shape[2]
    if attention_mask is None and getattr(module, "is_causal", False) and query.shape[2] > 1:
        raise ValueError(f"{type(module).__name__} is causal but was called without a mask: call register_attention()")
    mask = attention_mask.cut(keys) if isinstance(attention_mask, Spans) else attention_mask
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    implementation = resolve(settings.implementation, query.device)
    if implementation != "eager":
        wanted = bool(options.get("output_attentions"))
        reason = why_eager(
            implementation, module, query, value, mask, sinks=s_aux, dropout=dropout, output_attentions=wanted
        )
        if not reason:
            spans = mask if isinstance(mask, Spans) else all_visible(query.shape[2], keys, query.device)
            call = Call(spans, scale, settings.gate_bias, settings.temperature, softcap, sinks=s_aux)
            return _fused(implementation, settings, module, query, key, value, call), None
        _note_eager(settings, implementation, reason)
    groups = query.shape[1] // key.shape[1]
    scores = query @ _per_query_head(key, groups).mT * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    pattern = _eager_pattern(settings, module, scores, mask.mask() if isinstance(mask, Spans) else mask, s_aux)
    pattern = nn.functional.dropout(pattern.to(value.dtype), dropout, module.training)
    return (pattern @ _per_query_head(value, groups)).transpose(1, 2).contiguous(), pattern


def _eager_pattern(
    settings: GateSettings, module: nn.Module, scores: Tensor, mask: Tensor | None, sinks: Tensor | None
) -> Float[Tensor, "batch head query_pos key_pos"]:
    if mask is not None:
        scores = _masked(scores, mask[..., : scores.shape[-1]])
    gated = _gate(settings, module, scores, sinks)
    if settings.recording:
        settings.record(getattr(module, "layer_idx", 0), gated.expected, gated.opened, _mask_of(scores, mask))
    return gated.pattern


def _fused(
    implementation: str,
    settings: GateSettings,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    call: Call,
) -> Float[Tensor, "batch query_pos head d_value"]:
    layer, recording, kind = getattr(module, "layer_idx", 0), settings.recording, query.device.type
    if module.training:
        shape = torch.Size([*query.shape[:3], key.shape[2]])
        call = call._replace(words=words_of(settings.noise, layer, shape, query.device))
    mixed = torch.is_autocast_enabled(kind)  # which would cast eager matrix products one by one: cast here
    dtype, values = torch.get_autocast_dtype(kind) if mixed else query.dtype, value.dtype
    query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    attended: Attended = fused(implementation)(query, key, value, call._replace(recorded=recording))
    if recording:
        settings.record(layer, attended.expected, attended.opened, call.spans)
    output = attended.output.transpose(1, 2).contiguous()
    return output if mixed else output.to(values)


def _note_eager(settings: GateSettings, implementation: str, reason: str) -> None:
    """Remember why a call ran eagerly, and warn once per reason if the user chose another implementation."""
    if settings.implementation != "auto" and reason != settings.eager_because:
        warnings.warn(f"implementation={implementation!r} runs eagerly here: {reason}", stacklevel=3)
    settings.eager_because = reason


def _per_query_head(
    tensor: Float[Tensor, "batch kv_head pos d_head"], groups: int
) -> Float[Tensor, "batch head pos d_head"]:
    return tensor if groups == 1 else repeat(tensor, "batch kv_head pos d -> batch (kv_head group) pos d", group=groups)


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    """Masked scores; transformers makes both boolean masks (True: visible) and additive ones."""
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask


def _mask_of(scores: Tensor, mask: Tensor | None) -> Mask:
    """The mask to record. If possible the same object for all layers, so that its pairs are counted only once."""
    if mask is None:
        return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=scores.device).expand(1, 1, *scores.shape[2:])
    return mask if mask.shape[-1] == scores.shape[-1] else mask[..., : scores.shape[-1]]


def _gate(settings: GateSettings, module: nn.Module, scores: Tensor, sinks: Tensor | None) -> GatedPattern:
    noise = None
    if module.training:
        noise = settings.noise(getattr(module, "layer_idx", 0), scores.shape, scores.device)
    if sinks is None:
        return gated_softmax(scores, settings.gate_bias, noise, settings.temperature)
    # gpt-oss: each head has an extra score, an attention sink, that takes weight and writes nothing
    gates = attention_gates(scores, settings.gate_bias, noise, temperature=settings.temperature)
    sink = sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    softmax = torch.softmax(torch.cat([scores, sink], dim=-1).to(gates.gate.dtype), dim=-1)[..., :-1]
    return GatedPattern(softmax * gates.gate, gates.probs.sum((-2, -1)), count_open(gates.gate))


def _settings_of(module: nn.Module) -> GateSettings:
    settings: GateSettings | None = getattr(module, _SETTINGS, None)
    if settings is None:  # loaded with attn_implementation="sparselens", not through sparsify
        settings = settings_in_config(module)
        if settings is None:
            raise ValueError("this attention has no gates: call sparselens.sparsify(model, gate_bias=...)")
        setattr(module, _SETTINGS, settings)
    return settings


def _implementation_of(config: Any) -> str | None:
    """The gate implementation that a config names; None if its attention is not gated."""
    name = getattr(config, "_attn_implementation", None)
    return next((which for which, known in NAMES.items() if known == name), None)


def gate_transformers(model: PreTrainedModel, settings: GateSettings) -> None:
    """Switch a transformers model to gated attention, in place.

    Raises:
        ValueError: a layer does not call transformers' attention interface, or `settings.implementation` cannot run on
            the model's device. The model is left unchanged.
    """
    register_attention()
    resolve(settings.implementation, model.device)
    name = NAMES[settings.implementation]
    config = model.config.get_text_config()
    settings.n_layers = config.num_hidden_layers
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        if model.config._attn_implementation != name:
            raise ValueError(f"{type(model).__name__} does not use transformers' attention interface in any layer")
        _adopt(model, settings)
    except Exception:
        ungate_transformers(model, before)
        raise
    model.config.sparselens_dense_implementation = "eager" if before in NAMES.values() else before
    model.config.gate_bias = config.gate_bias = settings.gate_bias


def _adopt(model: PreTrainedModel, settings: GateSettings) -> None:
    """Give every attention module the shared settings, and check by a small forward pass that every layer uses them."""
    candidates = [m for m in model.modules() if hasattr(m, "layer_idx") and "Attention" in type(m).__name__]
    for module in candidates:
        setattr(module, _SETTINGS, settings)
    seen: set[int] = set()
    recorder = SimpleNamespace(add=lambda layer, *_: seen.add(layer))
    settings.recorders.append(recorder)
    implementation, settings.implementation = settings.implementation, "eager"  # compile nothing for this check
    try:
        with torch.no_grad(), evaluating(model):
            model(torch.zeros(1, 2, dtype=torch.long, device=model.device))
    finally:
        settings.recorders.remove(recorder)
        settings.implementation = implementation
    missing = sorted(set(range(settings.n_layers)) - seen)
    if missing:
        raise ValueError(
            f"{type(model).__name__}: layers {missing} cannot be gated (they have no attention, or do not call "
            "transformers' attention interface); gate the model through TransformerLens: sparsify(TransformerBridge...)"
        )


def choose_implementation(model: PreTrainedModel, settings: GateSettings, implementation: str) -> None:
    """Switch a gated model to another implementation.

    Raises:
        ValueError: it cannot run on the model's device. The model is left unchanged.
    """
    resolve(implementation, model.device)
    model.set_attn_implementation(NAMES[implementation])
    settings.implementation, settings.eager_because = implementation, ""


def ungate_transformers(model: PreTrainedModel, implementation: str | None = None) -> None:
    """The exact inverse of `gate_transformers`."""
    before = implementation or getattr(model.config, "sparselens_dense_implementation", None) or "eager"
    model.set_attn_implementation(before)
    for module in model.modules():
        module.__dict__.pop(_SETTINGS, None)
    for config in (model.config, model.config.get_text_config()):
        config.__dict__.pop("gate_bias", None)
        config.__dict__.pop("sparselens_dense_implementation", None)


def recompute_activations(model: PreTrainedModel) -> None:
    """Turn on gradient checkpointing: activations within a layer are recomputed in the backward pass, not stored.

    Costs one more forward pass; memory hardly grows with depth. Gates get the same noise again, and are counted once.
    """
    # transformers renamed the method between 5.20 and 5.23
    enable: Any = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def transformers_settings(model: nn.Module) -> GateSettings | None:
    """The settings shared by the layers of a gated transformers model; None if it was not sparsified."""
    for module in model.modules():
        settings = module.__dict__.get(_SETTINGS)
        if settings is not None and settings.n_layers:
            return settings
    return None


def settings_in_config(model: nn.Module) -> GateSettings | None:
    """The settings of a model that was loaded with `attn_implementation="sparselens"`; else None.

    Raises:
        ValueError: its config has no valid `gate_bias`.
    """
    config: Any = getattr(model, "config", None)
    implementation = _implementation_of(config)
    if implementation is None:
        return None
    gate_bias = getattr(config, "gate_bias", None)
    if gate_bias is None:
        raise ValueError(
            f"loaded with attn_implementation={NAMES[implementation]!r}, but config.gate_bias is missing: set it, or "
            "call sparselens.sparsify(model, gate_bias=...)"
        )
    return GateSettings(finite_bias(gate_bias), implementation=implementation)
