"""Baselines that a circuit must beat: edges drawn at random, and edges of the sources whose writes differ most."""

import torch
from torch import Tensor

from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.engine.batching import in_batches
from sparselens.analyses.engine.edge_products import differences
from sparselens.analyses.engine.gradients import written
from sparselens.analyses.engine.request import PerPrompt, Request, open_request
from sparselens.circuits.circuit import Circuit
from sparselens.circuits.graph import Graph
from sparselens.models.hooked_model import HookedModel
from sparselens.prompts.metrics import Metric, logit_difference
from sparselens.prompts.tokenized import TokenizedPairs


def random_circuit(graph: Graph, n: int, seed: int = 0) -> Circuit:
    """`n` edges drawn uniformly at random; all scores are zero.

    >>> len(random_circuit(Graph.of_model(model), 50))
    50
    """
    if not 0 <= n <= graph.n_edges:
        raise ValueError(f"n = {n}: the graph has {graph.n_edges} edges")
    places = graph.exists.flatten().nonzero()[:, 0]
    drawn = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:n]]
    kept = torch.zeros(graph.exists.numel(), dtype=torch.bool).index_fill_(0, drawn, True)
    return Circuit(graph, kept.view(graph.exists.shape))


def score_by_magnitude(
    model: HookedModel,
    pairs: TokenizedPairs,
    metric: Metric | str = logit_difference,
    *,
    memory: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> EdgeScores:
    """Score every edge by how much its source's write differs between the two runs, whatever reads it.

    >>> score_by_magnitude(model, pairs).top(50)  # the circuit to beat

    Sign convention: scores are Euclidean norms over positions and d_model, and so never negative.

    Scope: attribution without gradients; it knows nothing of the metric, which is recorded only for the baselines.
    """

    def norms(batch: Request) -> tuple[Tensor, PerPrompt, PerPrompt]:
        clean, corrupted = written(batch), written(batch, corrupted=True)
        writes = differences(batch.reading, clean.recorded, corrupted.recorded)
        return writes.square().sum((-1, -2)).sqrt().T, clean.metric, corrupted.metric

    with open_request(model, pairs, metric, memory=memory, batch_size=batch_size, progress=progress) as request:
        graph = request.reading.graph
        sizes, metrics = torch.zeros(len(pairs), len(graph.sources)), torch.zeros(2, len(pairs))
        for rows, (found, clean, corrupted) in in_batches(request, norms, "magnitude"):
            sizes[rows], metrics[:, rows] = found.float().cpu(), torch.stack([clean, corrupted]).float().cpu()
    scores = sizes[:, :, None] * graph.exists
    return EdgeScores(graph, "magnitude", scores.mean(0), scores, metrics[0], metrics[1])
