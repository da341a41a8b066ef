# The public names and their modules: read by type checkers, and by lazy_loader when a name is first used.
from .analyses.comparison.files import load_comparison as load_comparison  # pyright: ignore[reportMissingImports]
from .circuits.circuit import Circuit as Circuit
from .circuits.circuit import load_circuit as load_circuit
from .circuits.graph import Graph as Graph
from .circuits.neuronpedia import read_neuronpedia as read_neuronpedia
from .circuits.neuronpedia import write_neuronpedia as write_neuronpedia
from .gates.attention import register_attention as register_attention
from .gates.statistics import GateStatistics as GateStatistics
from .gates.statistics import record_gates as record_gates
from .gates.surgery import densify as densify
from .gates.surgery import is_sparse as is_sparse
from .gates.surgery import sparsify as sparsify
from .models.folder import load as load
from .models.folder import save as save
from .models.hub import push_to_hub as push_to_hub
from .models.nanogpt import load_nanogpt as load_nanogpt
from .prompts import metrics as metrics
from .prompts.capability import Capability as Capability
from .prompts.capability import evaluate as evaluate
from .prompts.formats import read_pairs as read_pairs
from .prompts.formats import write_pairs as write_pairs
from .prompts.intervals import Interval as Interval
from .prompts.intervals import mean_interval as mean_interval
from .prompts.intervals import proportion_interval as proportion_interval
from .prompts.intervals import ratio_interval as ratio_interval
from .prompts.pairs import PromptPair as PromptPair
from .prompts.pairs import pair as pair
from .prompts.runs import answer_logits as answer_logits
from .prompts.runs import with_reference as with_reference
from .prompts.task import Task as Task
from .prompts.tokenized import TokenizedPairs as TokenizedPairs
from .prompts.tokenizing import tokenize_pairs as tokenize_pairs
from .prompts.words import Words as Words
from .prompts.words import spaced as spaced
from .training import text as text
from .training.config import PostTrainConfig as PostTrainConfig
from .training.geco import Geco as Geco
from .training.loop import post_train as post_train
from .training.result import PostTrainResult as PostTrainResult

__version__: str
