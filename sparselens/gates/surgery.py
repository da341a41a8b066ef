"""Gates a dense model in place, and removes the gates again: one entry point for TransformerLens and transformers."""

from typing import Any, TypeVar

from torch import nn

from sparselens.gates import hooked
from sparselens.gates.fused import Implementation
from sparselens.gates.gate import GateSettings, finite_bias
from sparselens.models.unwrapped import without_peft

Model = TypeVar("Model", bound=nn.Module)

DEFAULT_GATE_BIAS = 0.0  # the rule of the authors' released kernel: an edge is open where its score is positive


def sparsify(model: Model, gate_bias: float | None = None, *, implementation: Implementation | None = None) -> Model:
    """Put a hard 0/1 gate on every attention edge of `model`, in place, and return it.

    No parameter is added. With a large `gate_bias` all gates are open and the model computes what it computed before;
    post-training (`post_train`) then closes them. On a model that already carries gates only what is given is changed.
    A TransformerLens model (TransformerBridge, HookedTransformer) gets the hook points `hook_gate_logits`,
    `hook_gate_probs` and `hook_gate` in every attention; a transformers model gets `attn_implementation="sparselens"`,
    also inside a PeftModel.

    >>> model = sl.sparsify(sl.load("gpt2"), gate_bias=3e4)  # every gate open: GPT-2 as it was

    Args:
        gate_bias: added to the attention scores in the gate only. Default: the model's own (`config.gate_bias`, as
            `save` writes it), else 0.
        implementation: how the gates of a transformers model run: "eager" makes a tensor of all query-key pairs, in
            which TransformerLens models show them to hooks; "flex" (FlexAttention, long evaluation) and "triton" (our
            kernel, training and evaluation on an NVIDIA GPU) need memory only in proportion to the length. Default:
            "auto", which is "triton" where it can run, else "eager".

    Raises:
        ValueError: a layer cannot be gated. The message says which and why, and the model is left as it was.
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
        gate_bias = getattr(getattr(model if network is None else network, "config", None), "gate_bias", None)
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
    """Take the gates out again, in place: the exact inverse of `sparsify`.

    >>> sl.densify(sl.load("addition-sparse"))  # the weights of the sparse model with dense attention

    Raises:
        ValueError: the model carries no gates.
    """
    gate_settings(model)
    network = _of_transformers(model)
    if network is not None:
        _attention().ungate_transformers(network)
    else:
        hooked.ungate_hooked(model)
    return model


def is_sparse(model: nn.Module) -> bool:
    """Does the model carry gates? Changes nothing.

    >>> sl.is_sparse(sl.load("addition-sparse"))
    True
    """
    return find_settings(model) is not None


def gate_settings(model: nn.Module) -> GateSettings:
    """The settings that all gates of the model share, through which gates can be changed and recorded.

    A transformers model loaded with `attn_implementation="sparselens"` is gated first: until then its layers share
    nothing.

    Raises:
        ValueError: the model carries no gates.
    """
    settings = _installed(model)
    if settings is None:
        raise ValueError(
            f"this {type(model).__name__} carries no gates: call sparselens.sparsify(model, gate_bias=...)"
        )
    return settings


def find_settings(model: nn.Module) -> GateSettings | None:
    """The settings with which the model runs, to read; None for a dense model. Changes nothing."""
    if hooked.is_hooked(model):
        return hooked.hooked_settings(model)
    attention = _attention()
    return attention.transformers_settings(model) or attention.settings_in_config(without_peft(model))


def _installed(model: nn.Module) -> GateSettings | None:
    """As `find_settings`, but a model that only asks for gates is given them."""
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
            f"a {type(model).__name__} shows its gates to hooks, so it runs eagerly: implementation={implementation!r} "
            "is for transformers models (want 'auto' or 'eager')"
        )
    else:
        settings.implementation = "eager"


def _tell_config(model: nn.Module, gate_bias: float) -> None:
    network = _of_transformers(model)
    if network is not None:
        network.config.gate_bias = network.config.get_text_config().gate_bias = gate_bias


def _of_transformers(model: nn.Module) -> Any:
    """The transformers model that this is, or that peft has wrapped; None of TransformerLens' models and others."""
    if hooked.is_hooked(model):
        return None
    from transformers import PreTrainedModel

    network = without_peft(model)
    return network if isinstance(network, PreTrainedModel) else None


def _attention() -> Any:
    """The gates of transformers models. Loading transformers takes seconds, which results can do without."""
    from sparselens.gates import attention

    return attention
