"""A dense transformer goes in, a sparse-attention transformer with the same loss comes out.

    import sparselens as sl
    sl.sparsify(model)                                      # every attention edge gets a gate; in place
    result = sl.post_train(model, batches, sl.PostTrainConfig(...))
    sl.save(model, "folder")

Modules are imported when one of their names (listed in `__init__.pyi`) is first used, so `import sparselens` loads
neither torch nor TransformerLens.
"""

from importlib import import_module
from typing import Any

import lazy_loader

__version__ = "0.1.0"

_MODULES = {"metrics": "prompts.metrics", "text": "training.text"}  # available as `sl.metrics`, `sl.text`
_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"sparselens.{_MODULES[name]}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return _load(name)
