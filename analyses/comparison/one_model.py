"""Computes the results of one model in a comparison; the model is inspected once for all analyses.

1. Attention on a few prompts, and heads with known attention patterns.
2. Activation patching of heads and MLPs, and the metric when only the top ones are active.
3. Edge scores; then, when the other model's scores are known, the faithfulness of circuits, and the pruned circuit.
"""

from dataclasses import dataclass
from typing import Any

import torch

from sparselens.analyses.attribution.attention_edges import AttentionEdges, attention_edges
from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.attribution.edges import attribute_edges
from sparselens.analyses.circuits.baselines import random_connected_circuits
from sparselens.analyses.circuits.circuit_runs import CircuitRunner, Faithfulness
from sparselens.analyses.circuits.faithfulness import FaithfulnessCurve
from sparselens.analyses.circuits.pruning import PrunedCircuit, pruned_circuit
from sparselens.analyses.circuits.search import search
from sparselens.analyses.comparison.files import Parts
from sparselens.analyses.comparison.model_results import CircuitRuns, ComponentCurves
from sparselens.analyses.engine.request import OpenModel, open_request
from sparselens.analyses.patching.activation_patching import patch_activations
from sparselens.analyses.patching.patching_result import PatchingResult
from sparselens.analyses.patching.top_components import ComponentCurve, keep_top
from sparselens.analyses.sparsity.head_labels import label_heads
from sparselens.gates.modes import evaluating
from sparselens.prompts.metrics import Metric
from sparselens.prompts.tokenized import TokenizedPairs

COUNTS = 40  # numbers of active components to try, roughly


@dataclass(frozen=True)
class Settings:
    """The settings, which are the same for both models."""

    metric: Metric
    method: str
    steps: int
    gate_gradient: str
    share: float
    goal: float
    ablation: str
    prune_runs: int | None
    seed: int
    run: dict[str, Any]  # memory, batch_size, progress


def analyse(
    side: str, opened: OpenModel, pairs: TokenizedPairs, shown: TokenizedPairs, settings: Settings, parts: Parts
) -> dict[str, Any]:
    """The results of one model that do not depend on the other."""
    model: Any = opened

    def options(name: str) -> dict[str, Any]:
        return {**settings.run, "out": parts.log(f"{side}.{name}")}

    def patched(name: str) -> PatchingResult:
        return patch_activations(model, pairs, settings.metric, name, ablation=settings.ablation, **options(name))

    def curve(name: str, rank_by: str, scores: list[PatchingResult]) -> ComponentCurve:
        how: dict[str, Any] = {**options(f"kept.{name}"), "rank_by": rank_by, "ablation": settings.ablation}
        counts = _counts(sum(score.mean.numel() for score in scores))
        return keep_top(model, pairs, scores, settings.metric, counts=counts, **how)

    def curves() -> ComponentCurves:
        heads, mlps = found["heads"], found["mlps"]
        alone, alone_once = curve("heads", "prompt", [heads]), curve("heads_once", "mean", [heads])
        if mlps is None:
            return ComponentCurves(alone, alone_once, None, None)
        both = [heads, mlps]
        return ComponentCurves(alone, alone_once, curve("all", "prompt", both), curve("all_once", "mean", both))

    def edges() -> EdgeScores:
        how: dict[str, Any] = {"gate_gradient": settings.gate_gradient, **options("edges")}
        return attribute_edges(model, pairs, settings.metric, settings.method, settings.steps, **how)

    has_mlps = all(block.mlp for block in opened.reading.graph.blocks)
    found: dict[str, Any] = {
        "attention": parts.get(f"{side}.attention", lambda: _attention(opened.model, shown)),
        "labels": parts.get(f"{side}.labels", lambda: label_heads(opened.model)),
        "heads": parts.get(f"{side}.heads", lambda: patched("heads")),
        "mlps": parts.get(f"{side}.mlps", lambda: patched("mlps")) if has_mlps else None,
    }
    found["kept"] = parts.get(f"{side}.kept", curves)
    found["edges"] = parts.get(f"{side}.edges", edges)
    return found


def _attention(model: Any, shown: TokenizedPairs) -> AttentionEdges:
    with evaluating(model), torch.no_grad():
        return attention_edges(model, shown)


def _counts(total: int) -> list[int]:
    """Numbers from 0 to `total`: all of them if they are few, else about evenly spaced on a log scale."""
    if total <= COUNTS:
        return list(range(total + 1))
    spread = torch.logspace(0, 1, COUNTS, base=float(total), dtype=torch.float64).round().long()
    return sorted({0, *range(1, 11), *spread.tolist()})


def run_circuits(
    opened: OpenModel, pairs: TokenizedPairs, own: EdgeScores, other: EdgeScores, settings: Settings
) -> CircuitRuns:
    """Faithfulness in this model of its own circuit, the other model's, random ones and the smallest faithful one."""
    mine = own.smallest(settings.share)
    circuits = [mine, other.smallest(settings.share), *random_connected_circuits(mine, seed=settings.seed)]
    with open_request(opened, pairs, settings.metric, **settings.run) as request:
        runner = CircuitRunner(request, own.graph, settings.ablation)
        sizes = dict[int, Faithfulness]()
        circuit, faithful = search(runner, own, settings.goal, request.progress, sizes)
        alone, transferred, *random = runner.run(circuits)
    reached = len(circuit) if faithful.mean >= settings.goal else None
    tried = FaithfulnessCurve(tuple(sorted(sizes)), own.graph.n_edges, tuple(sizes[size] for size in sorted(sizes)))
    pruned = None if reached is None else _pruned(opened, pairs, own, settings)
    return CircuitRuns(alone, transferred, tuple(random), faithful, reached, tried, pruned)


def _pruned(opened: OpenModel, pairs: TokenizedPairs, own: EdgeScores, settings: Settings) -> PrunedCircuit | None:
    """The pruned circuit; None if pruning is not requested, or all pairs have the same clean prompt."""
    if settings.prune_runs == 0 or len(set(pairs.clusters())) < 2:
        return None
    how: dict[str, Any] = {"runs": settings.prune_runs, "seed": settings.seed, **settings.run}
    model: Any = opened
    return pruned_circuit(model, pairs, own, settings.metric, settings.goal, settings.ablation, **how)
