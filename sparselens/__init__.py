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
    from sparselens.circuits.circuit import Circuit as Circuit
    from sparselens.circuits.circuit import load_circuit as load_circuit
    from sparselens.circuits.graph import Graph as Graph
    from sparselens.circuits.neuronpedia import read_neuronpedia as read_neuronpedia
    from sparselens.circuits.neuronpedia import write_neuronpedia as write_neuronpedia
    from sparselens.gates.attention import register_attention as register_attention
    from sparselens.gates.statistics import GateStatistics as GateStatistics
    from sparselens.gates.statistics import record_gates as record_gates
    from sparselens.gates.surgery import densify as densify
    from sparselens.gates.surgery import is_sparse as is_sparse
    from sparselens.gates.surgery import sparsify as sparsify
    from sparselens.models.folder import load as load
    from sparselens.models.folder import push_to_hub as push_to_hub
    from sparselens.models.folder import save as save
    from sparselens.models.nanogpt import load_nanogpt as load_nanogpt
    from sparselens.prompts import metrics as metrics
    from sparselens.prompts.capability import Capability as Capability
    from sparselens.prompts.capability import evaluate as evaluate
    from sparselens.prompts.formats import read_pairs as read_pairs
    from sparselens.prompts.formats import write_pairs as write_pairs
    from sparselens.prompts.intervals import Interval as Interval
    from sparselens.prompts.intervals import mean_interval as mean_interval
    from sparselens.prompts.intervals import proportion_interval as proportion_interval
    from sparselens.prompts.intervals import ratio_interval as ratio_interval
    from sparselens.prompts.pairs import PromptPair as PromptPair
    from sparselens.prompts.pairs import pair as pair
    from sparselens.prompts.runs import answer_logits as answer_logits
    from sparselens.prompts.runs import with_reference as with_reference
    from sparselens.prompts.task import Task as Task
    from sparselens.prompts.tokenized import TokenizedPairs as TokenizedPairs
    from sparselens.prompts.tokenizing import tokenize_pairs as tokenize_pairs
    from sparselens.prompts.words import Words as Words
    from sparselens.prompts.words import spaced as spaced
    from sparselens.training import text as text
    from sparselens.training.config import PostTrainConfig as PostTrainConfig
    from sparselens.training.geco import Geco as Geco
    from sparselens.training.loop import post_train as post_train
    from sparselens.training.result import PostTrainResult as PostTrainResult

__version__ = "0.1.0"

_MODULES = {"metrics": "prompts.metrics", "text": "training.text"}  # reached as `sl.metrics`, `sl.text`

_HOMES = {
    "circuits.circuit": ("Circuit", "load_circuit"),
    "circuits.graph": ("Graph",),
    "circuits.neuronpedia": ("read_neuronpedia", "write_neuronpedia"),
    "gates.attention": ("register_attention",),
    "gates.statistics": ("GateStatistics", "record_gates"),
    "gates.surgery": ("densify", "is_sparse", "sparsify"),
    "models.folder": ("load", "push_to_hub", "save"),
    "models.nanogpt": ("load_nanogpt",),
    "prompts.capability": ("Capability", "evaluate"),
    "prompts.formats": ("read_pairs", "write_pairs"),
    "prompts.intervals": ("Interval", "mean_interval", "proportion_interval", "ratio_interval"),
    "prompts.pairs": ("PromptPair", "pair"),
    "prompts.runs": ("answer_logits", "with_reference"),
    "prompts.task": ("Task",),
    "prompts.tokenized": ("TokenizedPairs",),
    "prompts.tokenizing": ("tokenize_pairs",),
    "prompts.words": ("Words", "spaced"),
    "training.geco": ("Geco",),
    "training.config": ("PostTrainConfig",),
    "training.loop": ("post_train",),
    "training.result": ("PostTrainResult",),
}
_HOME_OF = {name: f"sparselens.{module}" for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import the module in which a public name lives, and keep what was found."""
    if name in _MODULES:
        return import_module(f"sparselens.{_MODULES[name]}")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'sparselens' has no attribute {name!r}; it has {', '.join(sorted(_HOME_OF))}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF, *_MODULES})
