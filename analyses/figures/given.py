"""Checks of what is passed to a figure: a wrong type, often a model, gives an error that names the right function."""

from collections.abc import Sequence
from typing import Any

from sparselens.analyses.attribution.attention_edges import AttentionEdges
from sparselens.analyses.attribution.edge_scores import EdgeScores

MADE_BY = {
    AttentionEdges: "analyses.attention_edges(model, pairs)",
    EdgeScores: "analyses.attribute_edges(model, pairs)",
}


def refuse_others(kind: type, *given: Any) -> None:
    """Refuse arguments of another type; None, for an argument that was left out, is fine.

    Raises:
        ValueError: an argument has another type.
    """
    for value in given:
        if value is not None and not isinstance(value, kind):
            shown = repr(value) if isinstance(value, str) else f"a {type(value).__name__}"
            raise ValueError(f"want {kind.__name__}, as returned by {MADE_BY[kind]}, not {shown}")


def model_names(given: Sequence[str] | None, n_models: int) -> tuple[str, ...]:
    """The given names of the models; by default "model", or "dense" and "sparse"."""
    return tuple(given) if given else (("model",) if n_models == 1 else ("dense", "sparse"))
