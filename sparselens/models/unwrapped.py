"""Unwraps peft models without importing peft or transformers, which take seconds to load."""

from torch import nn


def without_peft(model: nn.Module) -> nn.Module:
    """The transformers model inside a PeftModel; any other model as it is."""
    wrapped = any(kind.__name__ == "PeftModel" and kind.__module__.startswith("peft") for kind in type(model).__mro__)
    return model.get_base_model() if wrapped else model  # type: ignore[operator]
