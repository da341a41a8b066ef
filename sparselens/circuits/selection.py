"""Selects the edges of a circuit by their scores.

1. smallest: the fewest edges whose |score| sums to a share of the total (the paper's rule, on the scores given).
2. top: the n edges of largest |score|.
3. greedy: starting at the logits, repeatedly the best edge into the circuit so far (EAP-IG, Hanna et al. 2024).
Scores are signed. Absolute values are taken here, after any averaging over prompts.
"""

import heapq

import torch
from jaxtyping import Float
from torch import Tensor

from sparselens.circuits.circuit import Circuit, Mask, Scores, sizes_of
from sparselens.circuits.graph import LOGITS, Graph


def smallest(
    graph: Graph, scores: Scores, share: float = 0.9, among: Mask | None = None, total: float | None = None
) -> Circuit:
    """The fewest edges that reach a share of the sum of |score|: min n with sum of the n largest >= share * total.

    Args:
        among: the edges to choose from and to sum over; default: all whose score is known
        total: the sum of |score|, if only the largest scores are known

    Raises:
        ValueError: the share is not above 0 and at most 1, or the known scores do not reach it.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, not {share}")
    among = _known(graph, scores, total) if among is None else among
    n = edges_to_reach(sizes_of(graph, scores, total)[among], share, total)
    return top(graph, scores, n, among, total=total)


def edges_to_reach(scores: Float[Tensor, " edge"], share: float, total: float | None = None) -> int:
    """How many of the largest |score| reach a share of their sum, or of `total`; 0 if all are zero.

    Raises:
        ValueError: all of them together do not reach this share of the total.
    """
    sizes = scores.detach().double().abs().sort(descending=True).values
    reached = sizes.cumsum(0)
    whole = float(reached[-1]) if total is None else total
    goal = share * whole * (1 - 1e-12)  # so that a share of 1 is reached whatever the order of summation
    if not whole > 0:
        return 0
    n = int((reached < goal).sum()) + 1
    if n > len(reached):
        raise ValueError(f"only the {len(reached):,} largest scores are known, which do not reach a share of {share}")
    return n


def top(
    graph: Graph,
    scores: Scores,
    n: int,
    among: Mask | None = None,
    signed: bool = False,
    total: float | None = None,
) -> Circuit:
    """The `n` edges of largest |score|.

    Args:
        among: the edges to choose from; default: all whose score is known
        signed: choose the highest scores instead, so that negative ones come last
        total: the sum of |score| over all edges, if only the largest scores are known

    Raises:
        ValueError: there are fewer than `n` edges to choose from.
    """
    among = _known(graph, scores, total) if among is None else among
    _refuse_too_many(graph, n, among)
    sizes = sizes_of(graph, scores, total)
    sizes = sizes.copysign(scores.detach().cpu()) if signed else sizes
    ranked = sizes.masked_fill(~among, -torch.inf).flatten().argsort(descending=True, stable=True)
    kept = torch.zeros_like(graph.exists)
    kept.view(-1)[ranked[:n]] = True
    return Circuit(graph, kept, scores.cpu(), total)


def greedy(graph: Graph, scores: Scores, n: int, among: Mask | None = None) -> Circuit:
    """Starting at the logits, add `n` times the edge of largest |score| into a node of the circuit.

    Args:
        among: the edges to choose from; default: all

    Raises:
        ValueError: fewer than `n` of these edges lie on a path to the logits.
    """
    among = graph.exists if among is None else among
    _refuse_too_many(graph, n, among)
    sizes, kept = sizes_of(graph, scores).masked_fill(~among, -1.0), torch.zeros_like(graph.exists)
    frontier: list[tuple[float, int, int]] = []
    _reach(frontier, graph, sizes, [graph.destination(LOGITS)])
    seen: set[int] = set()
    for found in range(n):
        if not frontier:
            raise ValueError(f"n = {n}: only {found} of the edges to choose from are on a path of them to the logits")
        _, source, destination = heapq.heappop(frontier)
        kept[source, destination] = True
        if source not in seen:
            seen.add(source)
            _reach(frontier, graph, sizes, graph.receivers[source].nonzero()[:, 0].tolist())
    return Circuit(graph, kept, scores.cpu())


def _reach(frontier: list[tuple[float, int, int]], graph: Graph, sizes: Tensor, destinations: list[int]) -> None:
    """Add the edges into these destinations to the frontier, except those of negative size, which are excluded."""
    for destination in destinations:
        for source in range(int(graph.reads[destination])):
            if sizes[source, destination] >= 0:
                heapq.heappush(frontier, (-float(sizes[source, destination]), source, destination))


def _known(graph: Graph, scores: Scores, total: float | None) -> Mask:
    """All edges; with a `total`, those with a score, since the others are NaN."""
    if total is None or scores.shape != graph.exists.shape:  # the latter is refused by `sizes_of`
        return graph.exists
    return graph.exists & scores.isfinite().cpu()


def _refuse_too_many(graph: Graph, n: int, among: Mask) -> None:
    there = int(among.sum())
    if not 0 <= n <= there:
        scored = "" if there == graph.n_edges else f", of which {there} have a score"
        raise ValueError(f"n = {n}: the graph has {graph.n_edges} edges{scored}")
