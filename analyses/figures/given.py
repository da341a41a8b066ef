"""What the figures draw, or an error that says how it is made: a model or a string is what people hand over first."""

from typing import Any

from sparselens.analyses.attribution.attention_edges import AttentionEdges
from sparselens.analyses.attribution.edge_scores import EdgeScores

MADE_BY = {
    AttentionEdges: "analyses.attention_edges(model, pairs)",
    EdgeScores: "analyses.attribute_edges(model, pairs)",
}


def refuse_others(kind: type, *given: Any) -> None:
    """Refuse what is not of the kind; None, for what was left out, is fine.

    Raises:
        ValueError: one is something else.
    """
    for one in given:
        if one is not None and not isinstance(one, kind):
            shown = repr(one) if isinstance(one, str) else f"a {type(one).__name__}"
            raise ValueError(f"want {kind.__name__}, as {MADE_BY[kind]} gives them, not {shown}")
