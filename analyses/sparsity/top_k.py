"""The baseline of the paper's Fig. 2a: a dense model in which every query keeps its k best keys, without training.

1. Before the softmax, every score that is not among its query's k largest is set to CLOSED; the remaining weights sum
   to one.
2. The model temporarily gets open gates, which expose its scores in every model family. CLOSED shuts such a gate, but
   does not count as masked, so `record_gates` counts the k kept edges as open, out of all visible ones.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparselens.gates.gate import is_visible
from sparselens.gates.hooked import refuse_other_model
from sparselens.gates.modes import OPEN_BIAS, open_gates
from sparselens.gates.surgery import is_sparse
from sparselens.models.hooked_model import HookedModel

CLOSED = -3.2e4  # too high to count as masked in any dtype, and low enough to outweigh the bias of open gates
assert torch.finfo(torch.float16).min / 2 < CLOSED < -OPEN_BIAS

Scores = Float[Tensor, "batch head query_pos key_pos"]


@contextmanager
def top_k_attention(model: HookedModel, k: int) -> Iterator[None]:
    """Context in which every query of every head attends only to the k keys with the largest scores.

    Of equal scores, the earliest keys are kept. Queries with at most k visible keys do not change, so with k as large
    as the longest sequence this is exactly the dense model. Edges are counted as in a sparse model:

    >>> with top_k_attention(model, 4), sl.record_gates(model) as gates:
    ...     model(tokens)
    >>> gates.edges_per_query_per_head  # at most 4

    Args:
        model: a dense TransformerBridge or HookedTransformer

    Raises:
        ValueError: k is not positive, the model already has gates, or no gates can be added to it (see `sparsify`).
    """
    if k < 1:
        raise ValueError(f"k = {k}: want 1 or more keys for each query")
    refuse_other_model(model)
    network: Any = model
    if is_sparse(network):
        raise ValueError("top-k attention is a baseline for dense models, but this one has gates: densify it first")

    def close_the_rest(_: nn.Module, __: Any, scores: Scores) -> Scores:
        return scores.masked_fill(is_visible(scores) & ~largest(scores, k), CLOSED)

    with open_gates(network):
        handles = [block.attn.hook_attn_scores.register_forward_hook(close_the_rest) for block in network.blocks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def largest(scores: Scores, k: int) -> Bool[Tensor, "batch head query_pos key_pos"]:
    """A mask of every query's k largest scores; of equal ones, the earliest."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order[..., :k], value=True)
