"""Attribution patching: how much every edge of a model matters for a metric, by gradients instead of one run an edge.

    score(u -> v) = (write of u, clean - corrupted) . (dmetric / d what v reads), summed over positions; about
    metric(clean) - metric(clean, but v reads what u writes in the corrupted run)
eap              the gradient of the clean run (Nanda 2023, Syed et al. 2023)
eap-ig           mean of the gradients at input embeddings corrupted + k/m (clean - corrupted), k = 0 .. m-1
                 (Hanna et al. 2024, as their code has it)
eap-ig-activations  mean over the input, all attentions and all MLPs, each in turn put at k/m of the way, k = 1 .. m.
                 As in EAP-IG's code no gradient passes through what is put there
clean-corrupted  mean of the gradients of the clean and of the corrupted run
exact            the second line itself, one edge at a time (`edge_patching`)
Positive: corrupting the edge lowers the metric. EAP-IG's own code gives the same numbers for the loss -metric, divided
once more by the number of prompts.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from sparselens.analyses.budget import MEMORY, in_batches
from sparselens.analyses.edge_patching import patch_edges
from sparselens.analyses.edge_products import differences, edge_products
from sparselens.analyses.edge_scores import EdgeScores
from sparselens.analyses.gradients import (
    Gradients,
    PerPrompt,
    Question,
    Run,
    gradients,
    refuse_unless_finite,
    written,
)
from sparselens.analyses.reading import Hook, Reading, read_model
from sparselens.evaluation import evaluating
from sparselens.metrics import Metric
from sparselens.tokenized import TokenizedPairs

Method = Literal["eap", "eap-ig", "eap-ig-activations", "clean-corrupted", "exact"]


def attribute_edges(
    model: Any,
    pairs: TokenizedPairs,
    metric: Metric,
    method: Method | str = "eap",
    steps: int = 5,
    *,
    per_prompt: bool = True,
    memory: int = MEMORY,
    progress: bool = True,
) -> EdgeScores:
    """Score all edges of a model, dense or sparse, on prompt pairs.

    Args:
        steps: m, for the two integrated methods
        per_prompt: keep the scores of every prompt (4 bytes times sources times destinations each); else memory does
            not grow with the number of prompts
        memory: bytes that may be allocated at once beside the model and the scores

    Raises:
        ValueError: an argument is unknown or too small, prompts differ in length within a pair, the metric is not one
            smooth finite number a prompt, or the model's residual stream cannot be read (`reading.read_model`).
    """
    _refuse_unknown(method, steps)
    if method == "exact":
        scores = patch_edges(model, pairs, metric, memory=memory, progress=progress)
        return scores if per_prompt else replace(scores, per_prompt=None)
    with evaluating(model):
        reading = read_model(model)
        shape = reading.graph.exists.shape
        kept = torch.zeros(len(pairs), *shape) if per_prompt else None
        total, metrics = torch.zeros(shape, dtype=torch.float64), torch.zeros(2, len(pairs))
        asked = _asking(reading, metric)
        for rows, (scores, clean, corrupted) in in_batches(
            pairs, lambda rows, batch: _score(asked(rows, batch), method, steps), memory, progress, method
        ):
            refuse_unless_finite("a score", scores, rows)
            total += scores.sum(0, dtype=torch.float64).cpu()
            metrics[:, rows] = torch.stack([clean, corrupted]).float().cpu()
            if kept is not None:
                kept[rows] = scores.float().cpu()
    return EdgeScores(reading.graph, method, (total / len(pairs)).float(), kept, metrics[0], metrics[1])


def _refuse_unknown(method: str, steps: int) -> None:
    if method not in get_args(Method):
        raise ValueError(f"no such method: {method!r} (want {', '.join(get_args(Method))})")
    if steps < 1:
        raise ValueError(f"steps = {steps}: want at least 1")


def _asking(reading: Reading, metric: Metric) -> Callable[[Int[Tensor, " row"], TokenizedPairs], Question]:
    device = next(reading.model.parameters()).device
    return lambda rows, batch: Question(reading, metric, rows, batch.to(device))


def _score(
    question: Question, method: str, steps: int, by_position: bool = False
) -> tuple[Tensor, PerPrompt, PerPrompt]:
    """Scores of some prompts, and the metric of their clean and corrupted runs."""
    if method == "eap":
        clean, corrupted = gradients(question), written(question, corrupted=True)
        points = iter([(1.0, clean)])
    elif method == "clean-corrupted":
        clean, corrupted = gradients(question), gradients(question, corrupted=True)
        points = iter([(0.5, clean), (0.5, corrupted)])
    elif method == "eap-ig":
        clean, corrupted = written(question), gradients(question, corrupted=True)
        points = _along_input(question, clean, corrupted, steps)
    else:
        clean, corrupted = written(question), written(question, corrupted=True)
        points = _along_activations(question, clean, corrupted, steps)
    writes = differences(question.reading, clean.recorded, corrupted.recorded)
    scores = sum(weight * edge_products(question.reading, writes, point, by_position) for weight, point in points)
    assert isinstance(scores, Tensor)
    return scores, clean.metric, corrupted.metric


def _along_input(question: Question, clean: Run, corrupted: Gradients, steps: int) -> Iterator[tuple[float, Gradients]]:
    """The corrupted run, then input embeddings k/m of the way to the clean ones."""
    name = question.reading.layers[0].at("hook_resid_pre")
    yield 1 / steps, corrupted
    for step in range(1, steps):
        yield 1 / steps, gradients(question, edits=[_between(clean, corrupted, name, step / steps)])


def _along_activations(question: Question, clean: Run, corrupted: Run, steps: int) -> Iterator[tuple[float, Gradients]]:
    """What the input, all heads of a layer, or an MLP write, each in turn put k/m of the way to the clean run."""
    names = question.reading.written_names()
    for name in names:
        for step in range(1, steps + 1):
            edits = [_between(clean, corrupted, name, step / steps)]
            yield 1 / (steps * len(names)), gradients(question, edits=edits)


def _between(clean: Run, corrupted: Run, name: str, share: float) -> Hook:
    value = torch.lerp(corrupted.recorded[name], clean.recorded[name], share)
    return name, lambda _: value.clone().requires_grad_()
