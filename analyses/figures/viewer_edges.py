"""The edges of a model sorted by decreasing |score|, as columns, so that every threshold selects a prefix.

The smallest circuit with a share of |score|, the top n (without edges of score 0) and all edges with |score| >= t are
all prefixes of this list. Ties are in the order of the graph, as in `selection.smallest` and `selection.top`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.circuits.circuit import Circuit


@dataclass(frozen=True, eq=False)
class RankedEdges:
    """The first edges of a model's ranking, and totals over its whole graph."""

    source: Int[np.ndarray, " edge"]
    destination: Int[np.ndarray, " edge"]
    score: Float[np.ndarray, " edge"]  # float64 only if the scores are
    n_edges: int  # of the whole graph
    total: float  # sum of |score| over the whole graph, added from the largest down

    def __len__(self) -> int:
        return len(self.score)


def ranked_edges(scores: EdgeScores, max_edges: int) -> RankedEdges:
    """The edges of largest |mean score|, at most `max_edges`, without unmeasured ones and those of score 0."""
    scored = scores.measured & (scores.mean.detach().cpu() != 0)
    return _ranked(scores.mean, scored, max_edges, scores.graph.n_edges, scores.total)


def edges_of(circuit: Circuit) -> RankedEdges:
    """The edges of a circuit, ranked by its own scores."""
    return _ranked(circuit.scores, circuit.kept.cpu(), len(circuit), circuit.graph.n_edges, circuit.total)


def scored(circuit: Circuit, scores: EdgeScores) -> Circuit:
    """The circuit with these scores, or its own for edges that were not measured."""
    mean = scores.mean.detach().cpu()
    own = circuit.scores.detach().cpu().to(mean.dtype)
    return Circuit(circuit.graph, circuit.kept.cpu(), torch.where(scores.measured, mean, own), scores.total)


def _ranked(
    scores: Float[torch.Tensor, "source destination"],
    among: Bool[torch.Tensor, "source destination"],
    most: int,
    n_edges: int,
    total: float | None,
) -> RankedEdges:
    mean = scores.detach().cpu()
    source, destination = (axis.numpy() for axis in among.nonzero(as_tuple=True))
    flat = mean[among]
    sizes, order = flat.double().abs().sort(descending=True, stable=True)
    kept = order[:most].numpy()
    exact = torch.float64 if mean.dtype == torch.float64 else torch.float32
    values = flat.to(exact).numpy()[kept]
    return RankedEdges(source[kept], destination[kept], values, n_edges, _sum(sizes) if total is None else total)


def _sum(sizes: Float[torch.Tensor, " edge"]) -> float:
    return float(sizes.cumsum(0)[-1]) if len(sizes) else 0.0
