"""The edges of a model from the largest |score| down, as columns: the order in which any threshold takes them.

The smallest circuit of a share, the top n and all |score| >= t are then the first edges of the list, as many as the
running sum, n or t say. Equal scores stand in the order of the graph, as in `selection.smallest` and `selection.top`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from sparselens.analyses.attribution.edge_scores import EdgeScores


@dataclass(frozen=True, eq=False)
class RankedEdges:
    """The first edges of a model's ranking, and what there is beyond them."""

    source: Int[np.ndarray, " edge"]
    destination: Int[np.ndarray, " edge"]
    score: Float[np.ndarray, " edge"]  # float32 where that holds the scores exactly
    n_edges: int  # of the whole graph
    total: float  # sum of |score| over the whole graph, added from the largest down

    def __len__(self) -> int:
        return len(self.score)


def ranked_edges(scores: EdgeScores, max_edges: int) -> RankedEdges:
    """At most `max_edges` of those that were measured, the largest; mean scores are taken as they are."""
    mean = scores.mean.detach().cpu()
    source, destination = (axis.numpy() for axis in scores.measured.nonzero(as_tuple=True))
    flat = mean[scores.measured]
    sizes, order = flat.double().abs().sort(descending=True, stable=True)
    kept = order[:max_edges].numpy()
    exact = torch.float64 if mean.dtype == torch.float64 else torch.float32
    return RankedEdges(
        source[kept],
        destination[kept],
        flat.to(exact).numpy()[kept],
        n_edges=scores.graph.n_edges,
        total=_sum(sizes) if scores.total is None else scores.total,
    )


def _sum(sizes: Float[torch.Tensor, " edge"]) -> float:
    return float(sizes.cumsum(0)[-1]) if len(sizes) else 0.0
