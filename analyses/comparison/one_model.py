"""What is computed for one model of a comparison, on one request, so that model and prompts are read once.

1. Attention of a few prompts, and what heads are known for.
2. Activation patching of heads and MLPs, and the metric when only the top ones act.
3. Edge scores; then the faithfulness of circuits, once the other model's scores are there.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from sparselens.analyses.attribution.attention_edges import attention_edges
from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.attribution.edges import edge_scores
from sparselens.analyses.circuits.baselines import random_circuit
from sparselens.analyses.circuits.faithfulness import CircuitRunner
from sparselens.analyses.circuits.search import search
from sparselens.analyses.comparison.files import Parts
from sparselens.analyses.comparison.results import SIDES, CircuitRuns, ComponentCurves
from sparselens.analyses.engine.request import Request
from sparselens.analyses.patching.activation_patching import PatchingResult, patch
from sparselens.analyses.patching.top_components import ComponentCurve, component_curve
from sparselens.analyses.sparsity.head_labels import label_heads
from sparselens.prompts.tokenized import TokenizedPairs

COUNTS = 40  # numbers of components that are tried at most


@dataclass(frozen=True)
class Settings:
    """What is the same for both models."""

    method: str
    steps: int
    share: float
    goal: float
    ablation: str
    seed: int


class Progress:
    """A bar over the parts of a comparison, above the bars of the analyses themselves."""

    def __init__(self, parts: Parts, progress: bool) -> None:
        total = 2 + len(SIDES) * 7
        self._parts = parts
        self._bar = tqdm(total=total, disable=not progress, unit="part", dynamic_ncols=True, file=sys.stderr)

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """One part; see `Parts.get`."""
        self._bar.set_description_str(name)
        part = self._parts.get(name, compute)
        self._bar.update()
        return part

    def log(self, name: str) -> Path | None:
        """See `Parts.log`."""
        return self._parts.log(name)

    def close(self) -> None:
        """End the bar."""
        self._bar.set_description_str("compared")
        self._bar.close()


def analyse(side: str, request: Request, shown: TokenizedPairs, settings: Settings, parts: Progress) -> dict[str, Any]:
    """The results of one model that do not depend on the other."""

    def log(name: str) -> Path | None:
        return parts.log(f"{side}.{name}")

    def patched(name: str) -> PatchingResult:
        return patch(request, name, ablation=settings.ablation, out=log(name))

    def curve(name: str, rank_by: str, *scores: PatchingResult | None) -> ComponentCurve | None:
        known = [score for score in scores if score is not None]
        if len(known) < len(scores):
            return None
        counts = _counts(sum(score.mean.numel() for score in known))
        return component_curve(
            request, known, counts=counts, rank_by=rank_by, ablation=settings.ablation, out=log(f"kept.{name}")
        )

    def curves() -> ComponentCurves:
        heads, mlps = found["heads"], found["mlps"]
        alone, alone_once = curve("heads", "prompt", heads), curve("heads_once", "mean", heads)
        assert alone is not None and alone_once is not None
        both, both_once = curve("all", "prompt", heads, mlps), curve("all_once", "mean", heads, mlps)
        return ComponentCurves(alone, alone_once, both, both_once)

    def edges() -> EdgeScores:
        return edge_scores(request, settings.method, settings.steps, out=log("edges"))

    has_mlps = all(block.mlp for block in request.reading.graph.blocks)
    found: dict[str, Any] = {
        "attention": parts.get(f"{side}.attention", lambda: attention_edges(request.model, shown)),
        "labels": parts.get(f"{side}.labels", lambda: label_heads(request.model)),
        "heads": parts.get(f"{side}.heads", lambda: patched("heads")),
        "mlps": parts.get(f"{side}.mlps", lambda: patched("mlps")) if has_mlps else None,
    }
    found["kept"] = parts.get(f"{side}.kept", curves)
    found["edges"] = parts.get(f"{side}.edges", edges)
    return found


def _counts(total: int) -> list[int]:
    """From 0 to all: every number where they are few, else ever further apart."""
    if total <= COUNTS:
        return list(range(total + 1))
    spread = torch.logspace(0, 1, COUNTS, base=float(total), dtype=torch.float64).round().long()
    return sorted({0, *range(1, 11), *spread.tolist()})


def run_circuits(request: Request, own: EdgeScores, other: EdgeScores, settings: Settings) -> CircuitRuns:
    """Faithfulness in this model of its circuit, the other model's, random edges and the smallest faithful circuit."""
    mine = own.smallest(settings.share)
    circuits = [mine, other.smallest(settings.share), random_circuit(own.graph, len(mine), settings.seed)]
    runner = CircuitRunner(request, own.graph, settings.ablation)
    circuit, faithful = search(runner, own, settings.goal, request.progress)
    alone, transferred, random = runner.run(circuits)
    reached = len(circuit) if faithful.mean >= settings.goal else None
    return CircuitRuns(alone, transferred, random, faithful, reached)
