"""Analyses of a (dense, sparse) pair of models, and figures of their results.

Importing this package is cheap: a module is imported only when one of its names is first used (`__init__.pyi` lists
them), and models are passed as arguments.
"""

import warnings
from typing import Any

import lazy_loader

_RENAMED = {"Curve": "FaithfulnessCurve", "Kept": "ComponentCurve", "Patched": "PatchingResult"}  # until 0.2
_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        message = f"analyses.{name} is now analyses.{_RENAMED[name]}; sparselens 0.2 will remove the old name"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return _load(_RENAMED[name])
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return _load(name)
