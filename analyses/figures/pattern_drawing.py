"""Attention patterns of one or two models on one prompt (the paper's Fig. 2b): queries in rows, keys in columns.

All heads: one grid per model, first layer at the bottom. Chosen heads: dense above sparse, a column per head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from sparselens.analyses.attribution.attention_edges import AttentionEdges
from sparselens.analyses.engine.renamed import renamed_argument
from sparselens.analyses.figures.given import model_names, refuse_others
from sparselens.analyses.figures.paper import Drawing
from sparselens.analyses.figures.pattern_grid import all_heads, chosen_heads, draw_bands

Heads = Sequence[tuple[int, int]]  # (layer, head)


@dataclass(frozen=True, eq=False)
class PatternFigure(Drawing):
    """A figure of attention patterns; see `pattern_figure`."""

    patterns: tuple[Float[np.ndarray, "layer head query_pos key_pos"], ...] = field(repr=False)  # one per model
    tokens: tuple[str, ...]
    heads: tuple[tuple[int, int], ...]  # empty: all heads
    names: tuple[str, ...]

    def draw(self, width: float = 6.75) -> Any:
        """The matplotlib Figure."""
        bands = (
            chosen_heads(self.patterns, self.heads, self.names) if self.heads else all_heads(self.patterns, self.names)
        )
        return draw_bands(bands, self.tokens, width)


@renamed_argument("dense", "edges")
@renamed_argument("sparse", "other")
def pattern_figure(
    edges: AttentionEdges,
    other: AttentionEdges | None = None,
    tokens: Sequence[Sequence[str]] = (),
    prompt: int = 0,
    heads: Heads | None = None,
    names: Sequence[str] | None = None,
) -> PatternFigure:
    """Draw the attention patterns of a model on one prompt, or of a dense and a sparse one next to each other.

    >>> edges = attention_edges(model, pairs.clean)
    >>> pattern_figure(edges, tokens=tokens, heads=[(0, 1)]).save("patterns.pdf")

    Args:
        other: attention edges of a second model, drawn next to the first.
        tokens: the token strings of every prompt, as for `token_view`.
        heads: (layer, head) pairs to draw large; default: all heads, small.
        names: names of the models; default: model, or dense and sparse.

    Raises:
        ValueError: edges and tokens do not match, or there is no such prompt or head.
    """
    refuse_others(AttentionEdges, edges, other)
    patterns = tuple(pattern_of(one, tokens, prompt) for one in (edges, other) if one is not None)
    if patterns[0].shape != patterns[-1].shape:
        raise ValueError(
            f"dense and sparse differ in (layers, heads, queries, keys): {patterns[0].shape}, {patterns[1].shape}"
        )
    for layer, head in heads or ():
        check_head(edges, layer, head)
    return PatternFigure(patterns, tuple(tokens[prompt]), tuple(heads or ()), model_names(names, len(patterns)))


def pattern_of(
    edges: AttentionEdges, tokens: Sequence[Sequence[str]], prompt: int
) -> Float[np.ndarray, "layer head query_pos key_pos"]:
    """Attention weights of all heads on one prompt, 0 where there is no edge.

    Raises:
        ValueError: there is no such prompt, or tokens and positions differ in number.
    """
    one = edges.of_prompt(prompt)
    if len(tokens) != edges.n_prompts or len(tokens[prompt]) != edges.n_pos:
        lengths = sorted({len(some) for some in tokens})
        raise ValueError(
            f"tokens of {len(tokens)} prompts with lengths {lengths}: "
            f"want {edges.n_prompts} prompts of {edges.n_pos} tokens"
        )
    pattern = np.zeros((edges.n_layers, edges.n_heads, edges.n_pos, edges.n_pos), np.float32)
    pattern[one.layer, one.head, one.query_pos, one.key_pos] = one.weight
    return pattern


def check_head(edges: AttentionEdges, layer: int, head: int) -> None:
    """Refuse a head that the model does not have.

    Raises:
        ValueError: there is no such head.
    """
    if not (0 <= layer < edges.n_layers and 0 <= head < edges.n_heads):
        raise ValueError(f"no head a{layer}.h{head}: want layers below {edges.n_layers}, heads below {edges.n_heads}")
