"""What one model is asked: attention, known heads, what patching and attribution find, and what circuits do alone."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from sparselens.analyses.attribution.attention_edges import attention_edges
from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.attribution.edges import attribute_edges
from sparselens.analyses.circuits.baselines import random_circuit
from sparselens.analyses.circuits.faithfulness import running_circuits
from sparselens.analyses.circuits.search import search
from sparselens.analyses.comparison.files import Parts
from sparselens.analyses.comparison.results import SIDES, CircuitRuns, KeptComponents
from sparselens.analyses.engine.residual_stream import read_model
from sparselens.analyses.patching.activation_patching import Patched, patch_activations
from sparselens.analyses.patching.top_components import Kept, keep_top
from sparselens.analyses.sparsity.head_labels import label_heads
from sparselens.prompts.metrics import Metric
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.training.evaluation import evaluating

COUNTS = 40  # at most so many numbers of components are tried


@dataclass(frozen=True)
class Asked:
    """What is the same for both models."""

    metric: Metric
    method: str
    steps: int
    share: float
    goal: float
    ablation: str
    seed: int
    memory: int
    progress: bool


class Steps:
    """A bar over the answers, above the bars of the analyses themselves."""

    def __init__(self, parts: Parts, progress: bool) -> None:
        total = 2 + len(SIDES) * 7
        self._parts = parts
        self._bar = tqdm(total=total, disable=not progress, unit="answer", dynamic_ncols=True, file=sys.stderr)

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """One answer; see `Parts.get`."""
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


def ask_model(
    side: str, model: Any, pairs: TokenizedPairs, shown: TokenizedPairs, asked: Asked, steps: Steps
) -> dict[str, Any]:
    """All that one model answers without the other."""

    def options(name: str) -> dict[str, Any]:
        return {"memory": asked.memory, "progress": asked.progress, "out": steps.log(f"{side}.{name}")}

    def patched(name: str) -> Patched:
        return patch_activations(model, pairs, asked.metric, name, source=asked.ablation, **options(name))

    def kept(name: str, *scores: Patched | None, per_prompt: bool = True) -> Kept | None:
        if None in scores:
            return None
        known = [score for score in scores if score is not None]
        chosen = {"counts": _counts(sum(score.mean.numel() for score in known)), "per_prompt": per_prompt}
        return keep_top(model, pairs, known, asked.metric, source=asked.ablation, **chosen, **options(f"kept.{name}"))

    def all_kept() -> KeptComponents:
        heads, mlps = found["heads"], found["mlps"]
        once = {"per_prompt": False}
        alone, alone_once = kept("heads", heads), kept("heads_once", heads, **once)
        assert alone is not None and alone_once is not None
        return KeptComponents(alone, alone_once, kept("all", heads, mlps), kept("all_once", heads, mlps, **once))

    def edges() -> EdgeScores:
        return attribute_edges(model, pairs, asked.metric, asked.method, asked.steps, **options("edges"))

    has_mlps = all(block.mlp for block in read_model(model).graph.blocks)
    found: dict[str, Any] = {
        "attention": steps.get(f"{side}.attention", lambda: _attention(model, shown)),
        "labels": steps.get(f"{side}.labels", lambda: label_heads(model)),
        "heads": steps.get(f"{side}.heads", lambda: patched("heads")),
        "mlps": steps.get(f"{side}.mlps", lambda: patched("mlps")) if has_mlps else None,
    }
    found["kept"] = steps.get(f"{side}.kept", all_kept)
    found["edges"] = steps.get(f"{side}.edges", edges)
    return found


def _attention(model: Any, shown: TokenizedPairs) -> Any:
    with evaluating(model), torch.no_grad():
        return attention_edges(model, shown)


def _counts(total: int) -> list[int]:
    """0 to all, one by one where they are few, else ever further apart."""
    if total <= COUNTS:
        return list(range(total + 1))
    spread = torch.logspace(0, 1, COUNTS, base=float(total), dtype=torch.float64).round().long()
    return sorted({0, *range(1, 11), *spread.tolist()})


def run_circuits(model: Any, own: EdgeScores, other: EdgeScores, pairs: TokenizedPairs, asked: Asked) -> CircuitRuns:
    """What this model's circuit, the other's, random edges and the smallest faithful circuit do in this model."""
    mine = own.smallest(asked.share)
    circuits = [mine, other.smallest(asked.share), random_circuit(own.graph, len(mine), asked.seed)]
    with running_circuits(model, own.graph, pairs, asked.metric, asked.ablation, asked.memory) as runs:
        found, kept = search(runs, own, asked.goal, asked.progress)
        alone, transferred, random = runs.alone(circuits, asked.progress)
    reached = len(found) if kept.mean >= asked.goal else None
    return CircuitRuns(alone, transferred, random, kept, reached)
