"""A dense transformer goes in, a sparse-attention transformer with the same loss comes out.

    import sparselens as sl
    sl.sparsify(model)                                      # every attention edge gets a gate; in place
    result = sl.post_train(model, batches, sl.PostTrainConfig(...))
    sl.save(model, "folder")

Names are looked up when first used, so that `import sparselens` loads neither torch nor TransformerLens.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names as in _HOMES, for type checkers and completion
    from sparselens.attention import register_attention as register_attention
    from sparselens.folder import load as load
    from sparselens.folder import push_to_hub as push_to_hub
    from sparselens.folder import save as save
    from sparselens.geco import Geco as Geco
    from sparselens.nanogpt import load_nanogpt as load_nanogpt
    from sparselens.statistics import GateStatistics as GateStatistics
    from sparselens.statistics import record_gates as record_gates
    from sparselens.surgery import densify as densify
    from sparselens.surgery import is_sparse as is_sparse
    from sparselens.surgery import sparsify as sparsify
    from sparselens.training import PostTrainConfig as PostTrainConfig
    from sparselens.training import PostTrainResult as PostTrainResult
    from sparselens.training import post_train as post_train

__version__ = "0.1.0"

_HOMES = {
    "attention": ("register_attention",),
    "folder": ("load", "push_to_hub", "save"),
    "geco": ("Geco",),
    "nanogpt": ("load_nanogpt",),
    "statistics": ("GateStatistics", "record_gates"),
    "surgery": ("densify", "is_sparse", "sparsify"),
    "training": ("PostTrainConfig", "PostTrainResult", "post_train"),
}
_HOME_OF = {name: f"sparselens.{module}" for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import the module in which a public name lives, and keep what was found."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'sparselens' has no attribute {name!r}; it has {', '.join(sorted(_HOME_OF))}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
