"""Shrinks a comparison to a thirtieth of its size; the table, figures and viewer stay the same.

1. Of the edge scores it keeps only the largest means: those of the paper's circuit, of the faithful circuit, and as
   many as the viewer can show. The others become NaN. Statistics that need all scores or single prompts are computed
   beforehand (`summaries`).
2. Attention weights are kept as precisely as they are displayed: the strongest, which are drawn as lines, unchanged;
   the others rounded to some 500 steps that no pattern can tell apart.
Everything else is kept. Asking a slim comparison for anything that it no longer holds raises an error.
"""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float

from sparselens.analyses.attribution.attention_edges import AttentionEdges
from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.comparison.figures import prompts_across
from sparselens.analyses.comparison.model_results import CircuitRuns, ModelResults
from sparselens.analyses.comparison.plots import curves_of
from sparselens.analyses.comparison.results import SIDES, Comparison
from sparselens.analyses.comparison.summaries import EdgeSummary, PairSummary
from sparselens.analyses.comparison.table import or_none
from sparselens.analyses.figures.thinning import thinned
from sparselens.analyses.figures.token_view import DRAWN
from sparselens.analyses.figures.viewer import LISTED, TOKEN_EDGES
from sparselens.analyses.figures.viewer_edges import scored
from sparselens.analyses.figures.viewer_patterns import STEPS
from sparselens.circuits.circuit import Circuit

COLOURS = 256  # levels in a pattern figure's colour map


def slim(comparison: Comparison) -> Comparison:
    """The comparison without per-prompt scores and without the scores of most edges; returned as is if already slim."""
    if comparison.summary is not None:
        return comparison
    both = PairSummary(or_none(comparison.fewer_edges_of_mean), comparison.rank_correlation)
    across = prompts_across(comparison)
    dense, sparse = (
        _slim(getattr(comparison, side), side, name, across)
        for side, name in zip(SIDES, comparison.about.names, strict=True)
    )
    return replace(comparison, dense=dense, sparse=sparse, summary=both)


def _slim(model: ModelResults, side: str, name: str, across: int) -> ModelResults:
    curves = tuple(thinned(series, log_x=True) for series in curves_of(model, name, side))
    largest = max(len(model.circuit), model.circuits.faithful_edges or 0, LISTED)
    return replace(
        model,
        attention=_rounded(model.attention, across),
        edges=_largest(model.edges, min(largest, model.edges.graph.n_edges)),
        circuits=_without_scores(model.circuits, model.edges),
        summary=EdgeSummary(model.stability, curves),
    )


def _largest(scores: EdgeScores, n: int) -> EdgeScores:
    kept = _only_kept(scores.top(n))
    return replace(scores, mean=kept.scores, per_prompt=None, total=kept.total)


def _without_scores(runs: CircuitRuns, scores: EdgeScores) -> CircuitRuns:
    """The runs, with the pruned circuit's scores reduced to those of its own edges, some of which may be small."""
    if runs.pruned is None:
        return runs
    return replace(runs, pruned=replace(runs.pruned, circuit=_only_kept(scored(runs.pruned.circuit, scores))))


def _only_kept(circuit: Circuit) -> Circuit:
    exists, sizes = circuit.graph.exists, circuit.scores.double().abs()
    total = float(sizes[exists].sort(descending=True).values.cumsum(0)[-1])  # as the viewer adds them
    return replace(circuit, scores=circuit.scores.masked_fill(exists & ~circuit.kept, torch.nan), total=total)


def _rounded(edges: AttentionEdges, across: int) -> AttentionEdges:
    """The same edges with rounded weights, except those drawn as lines.

    Args:
        across: number of prompts in Fig. 1, which draws more lines than the viewer
    """
    weight = edges.weight.copy()
    for prompt in range(edges.n_prompts):
        (rows,) = np.nonzero(edges.prompt == prompt)
        exact, n_lines = weight[rows], DRAWN if prompt < across else TOKEN_EDGES
        faintest = np.sort(exact)[-n_lines:][:1]  # empty if there is no edge
        rounded = _stepped(exact)
        weight[rows] = np.where((exact >= faintest) | (rounded >= faintest), exact, rounded) if len(rows) else exact
    return replace(edges, weight=weight)


def _stepped(weight: Float[np.ndarray, " edge"]) -> Float[np.ndarray, " edge"]:
    """The middle of each weight's step: weights in one step have the same colour in figures and on the page."""
    ends = np.concatenate([np.arange(COLOURS + 1) / COLOURS, (np.arange(STEPS) + 0.5) / STEPS])
    ends = np.unique(ends)
    place = np.searchsorted(ends, weight, side="right")
    middles = (ends[:-1] + ends[1:]) / 2
    inside = (weight > 0) & (weight < 1)
    return np.where(inside, middles[np.clip(place - 1, 0, len(middles) - 1)], weight).astype(weight.dtype)
