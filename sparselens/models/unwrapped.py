"""Finds the transformers model inside wrappers, without importing transformers or peft, which take seconds to load."""

from typing import Any

from torch import nn


def without_peft(model: nn.Module) -> nn.Module:
    """The transformers model inside a PeftModel; any other model as it is."""
    wrapped = any(kind.__name__ == "PeftModel" and kind.__module__.startswith("peft") for kind in type(model).__mro__)
    return model.get_base_model() if wrapped else model  # type: ignore[operator]


def transformers_config(model: nn.Module) -> Any:
    """The config of the transformers model that this is, or that a bridge or PeftModel wraps; None if there is none."""
    network: Any = without_peft(model)
    return getattr(getattr(network, "original_model", network), "config", None)
