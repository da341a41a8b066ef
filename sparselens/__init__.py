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
    from sparselens import metrics as metrics
    from sparselens.attention import register_attention as register_attention
    from sparselens.capability import Capability as Capability
    from sparselens.capability import evaluate as evaluate
    from sparselens.circuit import Circuit as Circuit
    from sparselens.circuit import load_circuit as load_circuit
    from sparselens.folder import load as load
    from sparselens.folder import push_to_hub as push_to_hub
    from sparselens.folder import save as save
    from sparselens.formats import read_pairs as read_pairs
    from sparselens.formats import write_pairs as write_pairs
    from sparselens.geco import Geco as Geco
    from sparselens.graph import Graph as Graph
    from sparselens.intervals import Interval as Interval
    from sparselens.intervals import mean_interval as mean_interval
    from sparselens.intervals import ratio_interval as ratio_interval
    from sparselens.nanogpt import load_nanogpt as load_nanogpt
    from sparselens.neuronpedia import read_neuronpedia as read_neuronpedia
    from sparselens.neuronpedia import write_neuronpedia as write_neuronpedia
    from sparselens.prompts import PromptPair as PromptPair
    from sparselens.prompts import pair as pair
    from sparselens.runs import answer_logits as answer_logits
    from sparselens.runs import with_reference as with_reference
    from sparselens.statistics import GateStatistics as GateStatistics
    from sparselens.statistics import record_gates as record_gates
    from sparselens.surgery import densify as densify
    from sparselens.surgery import is_sparse as is_sparse
    from sparselens.surgery import sparsify as sparsify
    from sparselens.task import Task as Task
    from sparselens.tokenized import TokenizedPairs as TokenizedPairs
    from sparselens.tokenizing import tokenize_pairs as tokenize_pairs
    from sparselens.training import PostTrainConfig as PostTrainConfig
    from sparselens.training import PostTrainResult as PostTrainResult
    from sparselens.training import post_train as post_train
    from sparselens.words import Words as Words
    from sparselens.words import spaced as spaced

__version__ = "0.1.0"

_MODULES = ("metrics",)  # reached as `sl.metrics`

_HOMES = {
    "attention": ("register_attention",),
    "capability": ("Capability", "evaluate"),
    "circuit": ("Circuit", "load_circuit"),
    "folder": ("load", "push_to_hub", "save"),
    "formats": ("read_pairs", "write_pairs"),
    "geco": ("Geco",),
    "graph": ("Graph",),
    "intervals": ("Interval", "mean_interval", "ratio_interval"),
    "nanogpt": ("load_nanogpt",),
    "neuronpedia": ("read_neuronpedia", "write_neuronpedia"),
    "prompts": ("PromptPair", "pair"),
    "runs": ("answer_logits", "with_reference"),
    "statistics": ("GateStatistics", "record_gates"),
    "surgery": ("densify", "is_sparse", "sparsify"),
    "task": ("Task",),
    "tokenized": ("TokenizedPairs",),
    "tokenizing": ("tokenize_pairs",),
    "training": ("PostTrainConfig", "PostTrainResult", "post_train"),
    "words": ("Words", "spaced"),
}
_HOME_OF = {name: f"sparselens.{module}" for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import the module in which a public name lives, and keep what was found."""
    if name in _MODULES:
        return import_module(f"sparselens.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'sparselens' has no attribute {name!r}; it has {', '.join(sorted(_HOME_OF))}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF, *_MODULES})
