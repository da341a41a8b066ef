"""Adds gates to a dense model in place and removes them again, for TransformerLens and transformers models alike."""

from typing import Any, TypeVar

from torch import nn

from sparselens.gates import hooked
from sparselens.gates.fused import Implementation
from sparselens.gates.gate import GateSettings, finite_bias
from sparselens.models.unwrapped import transformers_config, without_peft

Model = TypeVar("Model", bound=nn.Module)

DEFAULT_GATE_BIAS = 0.0  # as in the authors' released kernel: an edge is open if its score is positive


def sparsify(model: Model, gate_bias: float | None = None, *, implementation: Implementation | None = None) -> Model:
    """Put a hard 0/1 gate on every attention edge of `model`, in place, and return it.

    No parameter is added. With a large `gate_bias` all gates are open and the model's output is unchanged;
    post-training (`post_train`) then closes gates. On a model that already has gates, only the arguments that are given
    take effect. A TransformerLens model (TransformerBridge, HookedTransformer) gets the hook points `hook_gate_logits`,
    `hook_gate_probs` and `hook_gate` in every attention; a transformers model, also inside a PeftModel, gets
    `attn_implementation="sparselens"`.

    >>> model = sl.sparsify(sl.load("gpt2"), gate_bias=3e4)  # every gate open: computes the same as GPT-2

    Args:
        gate_bias: added to the attention scores in the gate only. Default: the model's own (`config.gate_bias`, written
            by `save`), else 0.
        implementation: how the gates of a transformers model run. "eager" makes a tensor of all query-key pairs (always
            used by TransformerLens models, whose hooks need it); "flex" (FlexAttention, for evaluation on long texts)
            and "triton" (our kernel, for training and evaluation on an NVIDIA GPU) need memory in proportion to the
            length only. Default: "auto", which is "triton" where it can run, else "eager".

    Raises:
        ValueError: a layer cannot be gated. The message says which and why; the model is left unchanged.
    """
    settings = _installed(model)
    if settings is not None:
        if implementation is not None:
            _choose(model, settings, implementation)
        settings.gate_bias = settings.gate_bias if gate_bias is None else finite_bias(gate_bias)
        _tell_config(model, settings.gate_bias)
        return model
    network = _of_transformers(model)
    if gate_bias is None:
        gate_bias = getattr(transformers_config(model), "gate_bias", None)
    settings = GateSettings(finite_bias(DEFAULT_GATE_BIAS if gate_bias is None else gate_bias))
    if network is not None:
        settings.implementation = implementation or "auto"
        _attention().gate_transformers(network, settings)
    elif hooked.is_hooked(model):
        _choose(model, settings, implementation or "auto")
        hooked.gate_hooked(model, settings)
    else:
        raise ValueError(
            f"cannot gate a {type(model).__name__}: want a TransformerBridge, HookedTransformer or transformers model"
        )
    return model


def densify(model: Model) -> Model:
    """Remove the gates, in place: the exact inverse of `sparsify`.

    >>> sl.densify(sl.load("addition-sparse"))  # the sparse model's weights with dense attention

    Raises:
        ValueError: the model has no gates.
    """
    gate_settings(model)
    network = _of_transformers(model)
    if network is not None:
        _attention().ungate_transformers(network)
    else:
        hooked.ungate_hooked(model)
    return model


def is_sparse(model: nn.Module) -> bool:
    """Whether the model has gates. Does not change the model.

    >>> sl.is_sparse(sl.load("addition-sparse"))
    True
    """
    return find_settings(model) is not None


def gate_settings(model: nn.Module) -> GateSettings:
    """The settings shared by all gates of the model; use them to change or record the gates.

    A transformers model loaded with `attn_implementation="sparselens"` is gated first, since its layers do not share
    their settings until then.

    Raises:
        ValueError: the model has no gates.
    """
    settings = _installed(model)
    if settings is None:
        raise ValueError(f"this {type(model).__name__} has no gates: call sparselens.sparsify(model, gate_bias=...)")
    return settings


def find_settings(model: nn.Module) -> GateSettings | None:
    """The model's gate settings, for reading; None for a dense model. Does not change the model."""
    if hooked.is_hooked(model):
        return hooked.hooked_settings(model)
    attention = _attention()
    return attention.transformers_settings(model) or attention.settings_in_config(without_peft(model))


def _installed(model: nn.Module) -> GateSettings | None:
    """As `find_settings`, but gates a model whose config asks for gates and that has not been gated yet."""
    settings, network = find_settings(model), _of_transformers(model)
    if settings is not None and network is not None and not settings.n_layers:
        _attention().gate_transformers(network, settings)
    return settings


def _choose(model: nn.Module, settings: GateSettings, implementation: Implementation) -> None:
    network = _of_transformers(model)
    if network is not None:
        _attention().choose_implementation(network, settings, implementation)
    elif implementation not in ("auto", "eager"):
        raise ValueError(
            f"implementation={implementation!r} is for transformers models: a {type(model).__name__} shows its gates "
            "to hooks, so it runs eagerly (want 'auto' or 'eager')"
        )
    else:
        settings.implementation = "eager"


def _tell_config(model: nn.Module, gate_bias: float) -> None:
    network = _of_transformers(model)
    if network is not None:
        network.config.gate_bias = network.config.get_text_config().gate_bias = gate_bias


def _of_transformers(model: nn.Module) -> Any:
    """The transformers model itself, or inside a PeftModel; None for any other model (such as TransformerLens')."""
    if hooked.is_hooked(model):
        return None
    from transformers import PreTrainedModel

    network = without_peft(model)
    return network if isinstance(network, PreTrainedModel) else None


def _attention() -> Any:
    """The module that gates transformers models, imported late because transformers takes seconds to load."""
    from sparselens.gates import attention

    return attention
