"""What a circuit must beat: edges drawn at random, and edges of the sources whose writes differ most."""

from typing import Any

import torch
from torch import Tensor

from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.engine.batching import MEMORY, in_batches
from sparselens.analyses.engine.edge_products import differences
from sparselens.analyses.engine.gradients import PerPrompt, Question, written
from sparselens.analyses.engine.residual_stream import read_model
from sparselens.circuits.circuit import Circuit
from sparselens.circuits.graph import Graph
from sparselens.prompts.checks import refuse_misfits
from sparselens.prompts.metrics import Metric
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.training.evaluation import evaluating


def random_circuit(graph: Graph, n: int, seed: int = 0) -> Circuit:
    """`n` edges drawn from all alike; all scores are zero.

    Raises:
        ValueError: the graph does not have so many edges.
    """
    if not 0 <= n <= graph.n_edges:
        raise ValueError(f"n = {n}: the graph has {graph.n_edges} edges")
    places = graph.exists.flatten().nonzero()[:, 0]
    drawn = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:n]]
    kept = torch.zeros(graph.exists.numel(), dtype=torch.bool).index_fill_(0, drawn, True)
    return Circuit(graph, kept.view(graph.exists.shape), torch.zeros(graph.exists.shape))


def score_by_magnitude(
    model: Any, pairs: TokenizedPairs, metric: Metric, *, memory: int = MEMORY, progress: bool = True
) -> EdgeScores:
    """Score every edge by how much its source's write differs between the two runs, whoever reads it.

    The Euclidean norm over positions and d_model: what attribution would give if no gradient were known.

    Raises:
        ValueError: as `attribute_edges`.
    """
    refuse_misfits(model, pairs)
    device = next(model.parameters()).device
    with evaluating(model):
        reading = read_model(model)
        sizes = torch.zeros(len(pairs), len(reading.graph.sources))
        metrics = torch.zeros(2, len(pairs))

        def run(rows: Tensor, batch: TokenizedPairs) -> tuple[Tensor, PerPrompt, PerPrompt]:
            question = Question(reading, metric, rows, batch.to(device))
            clean, corrupted = written(question), written(question, corrupted=True)
            writes = differences(reading, clean.recorded, corrupted.recorded)
            return writes.square().sum((-1, -2)).sqrt().T, clean.metric, corrupted.metric

        for rows, (found, clean, corrupted) in in_batches(pairs, run, memory, progress, "magnitude"):
            sizes[rows], metrics[:, rows] = found.float().cpu(), torch.stack([clean, corrupted]).float().cpu()
    scores = sizes[:, :, None] * reading.graph.exists
    return EdgeScores(reading.graph, "magnitude", scores.mean(0), scores, metrics[0], metrics[1])
