"""TransformerLens' search for hook points at a small part of its cost, which was half of what it takes to wrap a model.

It asks every module for every attribute, methods included, and so twice for every model. Whether an attribute of a
class can be a hook point is known once for all modules of that class. `test_quick_hooks.py` holds it to the original.
"""

from functools import cache
from types import FunctionType
from typing import Any

from torch import nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

WRAPPED = {"original_component", "_original_component", "original_model"}
WEIGHTS = {f"{kind}_{part}" for kind in "Wb" for part in ("V", "O", "Q", "K", "in", "out")}
PASSED = {"original_component", "original_model", "OV", "QK", "W_gate", *WEIGHTS}  # without a look
searched = TransformerBridge._scan_existing_hooks


def scan_existing_hooks(bridge: Any, module: nn.Module, prefix: str = "") -> None:
    """Stands for `TransformerBridge._scan_existing_hooks`: the same names in the same order."""
    registry, seen = bridge._hook_registry, set[int]()
    named = {id(hook) for hook in registry.values() if hook.name is not None}

    def note(name: str, hook: Any) -> None:
        if id(hook) not in named:
            hook.name = name
            named.add(id(hook))
        registry[name] = hook

    def scan(module: nn.Module, path: str) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        start = f"{path}." if path else ""
        if callable(hooks := getattr(module, "get_hooks", None)):
            for name, hook in dict[str, Any](hooks()).items():  # pyright: ignore
                note(start + name, hook)
        for name in sorted(_asked(module)):
            try:
                found = getattr(module, name)
            except (AttributeError, NameError, RuntimeError, TypeError):
                continue
            if isinstance(found, HookPoint):
                note(start + name, found)
        for name, child in module.named_children():
            if name not in WRAPPED:
                scan(child, start + name)

    scan(module, prefix)


def _asked(module: nn.Module) -> set[str]:
    """Attributes that may be hook points: those that the module holds, and what its class computes."""
    held = (*module._modules.items(), *vars(module).items())
    mine = {name for name, value in held if isinstance(value, HookPoint)}
    return {name for name in mine - PASSED if name[0] not in "_0123456789"} | _computed(type(module))


@cache
def _computed(kind: type) -> frozenset[str]:
    plain = (FunctionType, classmethod, staticmethod, str, bool, int, float, dict, list, tuple, set, type(None), type)
    return frozenset(
        name
        for name in dir(kind)
        if not name.startswith("_") and name not in PASSED and not isinstance(_held(kind, name), plain)
    )


def _held(kind: type, name: str) -> Any:
    return next((vars(one)[name] for one in kind.__mro__ if name in vars(one)), None)


TransformerBridge._scan_existing_hooks = scan_existing_hooks
