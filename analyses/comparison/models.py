"""Which models a comparison can be about: refused where they do not go together."""

from typing import Any

from sparselens.analyses.comparison.results import SIDES
from sparselens.analyses.engine.residual_stream import read_model
from sparselens.gates.surgery import is_sparse


def refuse_unlike(dense: Any, sparse: Any) -> None:
    """Raise a ValueError unless tokens, nodes and edges of the two models are the same."""
    if is_sparse(dense) and not is_sparse(sparse):
        raise ValueError("the dense model has gates and the sparse one has none: swap them")
    graphs = [read_model(model).graph for model in (dense, sparse)]
    if graphs[0] != graphs[1]:
        raise ValueError(f"the models differ in layers or heads: dense {graphs[0]}, sparse {graphs[1]}")
    sizes = [model.cfg.d_vocab for model in (dense, sparse)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"the models differ in vocabulary: dense {sizes[0]} tokens, sparse {sizes[1]}")
    words = [t.get_vocab() for t in (getattr(model, "tokenizer", None) for model in (dense, sparse)) if t is not None]
    if len(words) == len(SIDES) and words[0] != words[1]:
        differing = min(words[0].items() ^ words[1].items(), key=str)[0]
        raise ValueError(f"the models have different tokenizers: {differing!r} is not the same token in both")
