"""Attention patterns in few bytes: which edges there are as gaps between their numbers, and a weight of one byte each.

An edge's number counts (layer, head, query, key); a gap is one byte, and 255 means: 255 further, and no edge yet.
Weights are kept in 255ths. A dense model has an edge for every pair that its mask leaves visible, so those below half
of one step are left out; a sparse model's open gates are all kept. Of a single model the number of edges says which it
is.
"""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from sparselens.analyses.attribution.attention_edges import AttentionEdges
from sparselens.analyses.figures.token_layout import printable

STEPS = 255


def patterns_data(
    attention: Sequence[AttentionEdges], tokens: Sequence[Sequence[str]], titles: Sequence[str]
) -> dict[str, Any]:
    """What the page reads: the shape, the tokens (positions where none are given), and for each model every prompt."""
    dense = attention[0]
    lossy = [True, False] if len(attention) == 2 else [_is_dense(dense)]
    known = tokens or [[str(i) for i in range(dense.n_pos)]] * dense.n_prompts
    return {
        "layers": dense.n_layers,
        "heads": dense.n_heads,
        "pos": dense.n_pos,
        "tokens": [[printable(token) for token in prompt] for prompt in known],
        "titles": [printable(title) or f"prompt {i}" for i, title in enumerate(titles or [""] * dense.n_prompts)],
        "models": [
            [packed(edges.of_prompt(prompt), fades) for prompt in range(edges.n_prompts)]
            for edges, fades in zip(attention, lossy, strict=True)
        ],
        "lossy": lossy,
    }


def _is_dense(edges: AttentionEdges) -> bool:
    """Is every pair up to the query an edge, or nearly so?"""
    pairs = edges.n_prompts * edges.n_layers * edges.n_heads * edges.n_pos * (edges.n_pos + 1) / 2
    return len(edges) > 0.5 * pairs


def packed(edges: AttentionEdges, lossy: bool) -> dict[str, str]:
    """The gaps and the weights of one prompt, as base64."""
    weight = np.rint(STEPS * edges.weight.astype(float)).astype(np.uint8)
    kept = edges.take(weight > 0) if lossy else edges
    cell = ((kept.layer * kept.n_heads + kept.head) * kept.n_pos + kept.query_pos) * kept.n_pos + kept.key_pos
    order = np.argsort(cell)
    weights = weight[weight > 0] if lossy else weight
    return {"gaps": in_base64(gaps(cell[order])), "weights": in_base64(weights[order])}


def gaps(numbers: Int[np.ndarray, " edge"]) -> UInt8[np.ndarray, " byte"]:
    """Ascending numbers as the distances between them, starting at -1."""
    far, near = np.divmod(np.diff(numbers, prepend=-1), STEPS)
    steps = np.full(int(far.sum()) + len(numbers), STEPS, dtype=np.uint8)
    steps[np.cumsum(far + 1) - 1] = near
    return steps


def in_base64(values: Shaped[np.ndarray, " value"]) -> str:
    """The bytes of an array, the least significant first."""
    return base64.b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode()
