"""What the page draws of a model, as plain numbers: results without and with the cuts, side by side."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int

from sparselens.analyses.attribution.attention_edges import AttentionEdges
from sparselens.analyses.patching.cuts import CutRun

TOP = 10  # tokens whose probabilities are shown
MOST_EDGES = 10_000  # sent to the page; if there are more, the weakest are left out, and the page says so
KEPT, CUT, CLOSED, OPENED = range(4)  # fate of an edge; closed and opened are effects of cuts elsewhere

TextOf = Callable[[int], str]


def model_data(before: CutRun, after: CutRun, cut: Bool[np.ndarray, " edge"], text_of: TextOf) -> dict[str, Any]:
    """Predictions at every position and all attention edges, before and after the cuts.

    Args:
        cut: for each edge before the cuts, whether it is cut
        text_of: the text of a token
    """
    return {"answers": _answers(before, after, text_of), "edges": _edges(before.edges, after.edges, cut)}


def _answers(before: CutRun, after: CutRun, text_of: TextOf) -> list[dict[str, Any]]:
    """For every position: the likeliest token, the probabilities of the ten likeliest, and KL(before, after)."""
    first, second = before.log_probs.exp(), after.log_probs.exp()
    moved = (first * (before.log_probs - after.log_probs).nan_to_num(0.0)).sum(-1).clamp(min=0)  # KL, nats
    tokens = torch.maximum(first, second).topk(min(TOP, first.shape[1])).indices
    says = torch.stack([first.argmax(-1), second.argmax(-1)], dim=-1)
    tables = (says, moved, tokens, first.gather(1, tokens), second.gather(1, tokens))
    return [
        {
            "says": [text_of(token) for token in said],
            "moved": round(distance, 4),
            "top": [[text_of(token), round(p, 5), round(q, 5)] for token, p, q in zip(*top, strict=True)],
        }
        for said, distance, *top in zip(*(table.tolist() for table in tables), strict=True)
    ]


def _edges(before: AttentionEdges, after: AttentionEdges, cut: Bool[np.ndarray, " edge"]) -> dict[str, Any]:
    """All edges of both runs as columns; weights in thousandths, -1 if there is no edge."""
    first, second = _codes(before), _codes(after)
    codes = np.union1d(first, second)
    weights = np.full((2, len(codes)), -1.0)
    weights[0, np.searchsorted(codes, first)] = before.weight
    weights[1, np.searchsorted(codes, second)] = after.weight
    fate = np.select([weights[0] < 0, weights[1] < 0], [OPENED, CLOSED], KEPT)
    fate[np.searchsorted(codes, first[cut])] = CUT
    kept = np.sort(np.argsort(-weights.max(0), kind="stable")[:MOST_EDGES])
    layer, head, query, key = np.unravel_index(codes[kept], _shape(before))
    return {
        "before": len(before),
        "after": len(after),
        "fates": np.bincount(fate, minlength=4).tolist(),
        "left_out": len(codes) - len(kept),
        "columns": [
            column.astype(int).tolist()
            for column in (layer, head, key, query, *np.rint(1000 * weights[:, kept]).clip(min=-1), fate[kept])
        ],
    }


def _shape(edges: AttentionEdges) -> tuple[int, int, int, int]:
    return edges.n_layers, edges.n_heads, edges.n_pos, edges.n_pos


def _codes(edges: AttentionEdges) -> Int[np.ndarray, " edge"]:
    """The index of every edge among all (layer, head, query, key)."""
    return np.ravel_multi_index((edges.layer, edges.head, edges.query_pos, edges.key_pos), _shape(edges))
