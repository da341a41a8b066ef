"""Packs attention patterns into few bytes: the gaps between the edges' numbers, and one byte of weight per edge.

An edge's number is its index among all (layer, head, query, key). A gap is one byte; 255 means "255 further, no edge
yet". Weights are rounded to 255ths. A dense model has an edge for every visible pair, so edges whose weight rounds to 0
are dropped; for a sparse model all open gates are kept. A single model counts as dense if it has more than half of all
possible edges.
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
    """The page's data: shape, tokens (default: position numbers), and for each model its packed prompts."""
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
            [packed(edges.of_prompt(prompt), drops_weak) for prompt in range(edges.n_prompts)]
            for edges, drops_weak in zip(attention, lossy, strict=True)
        ],
        "lossy": lossy,
    }


def _is_dense(edges: AttentionEdges) -> bool:
    """Whether more than half of all causally visible pairs are edges."""
    pairs = edges.n_prompts * edges.n_layers * edges.n_heads * edges.n_pos * (edges.n_pos + 1) / 2
    return len(edges) > 0.5 * pairs


def packed(edges: AttentionEdges, lossy: bool) -> dict[str, str]:
    """Gaps and weights of one prompt, in base64."""
    weight = np.rint(STEPS * edges.weight.astype(float)).astype(np.uint8)
    kept = edges.take(weight > 0) if lossy else edges
    cell = ((kept.layer * kept.n_heads + kept.head) * kept.n_pos + kept.query_pos) * kept.n_pos + kept.key_pos
    order = np.argsort(cell)
    weights = weight[weight > 0] if lossy else weight
    return {"gaps": in_base64(gaps(cell[order])), "weights": in_base64(weights[order])}


def gaps(numbers: Int[np.ndarray, " edge"]) -> UInt8[np.ndarray, " byte"]:
    """Encode ascending numbers as the distances between them, starting from -1."""
    far, near = np.divmod(np.diff(numbers, prepend=-1), STEPS)
    steps = np.full(int(far.sum()) + len(numbers), STEPS, dtype=np.uint8)
    steps[np.cumsum(far + 1) - 1] = near
    return steps


def in_base64(values: Shaped[np.ndarray, " value"]) -> str:
    """The bytes of an array, little-endian, in base64."""
    return base64.b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode()
