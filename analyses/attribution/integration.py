"""Where gradients are taken, and how scores come together over batches of prompts: what all attributions share."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselens.analyses.engine.batching import in_batches
from sparselens.analyses.engine.gradients import Gradients, PerPrompt, Question, Run, refuse_unless_finite, written
from sparselens.analyses.engine.residual_stream import Activations, Hook, Reading, read_model
from sparselens.analyses.engine.resume import BatchLog
from sparselens.prompts.checks import refuse_misfits
from sparselens.prompts.metrics import Metric
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.training.evaluation import evaluating

Method = Literal["eap", "eap-ig", "eap-ig-activations", "clean-corrupted", "exact"]
BY_GRADIENT = ("eap", "eap-ig", "eap-ig-activations", "clean-corrupted")

Take = Callable[[Question, bool, Sequence[Hook]], Gradients]  # gradients(question, corrupted, edits)
Score = Callable[[Gradients], Float[Tensor, "batch *axes"]]
Scoring = Callable[[Reading, Activations, Activations], Score]  # from what was recorded in clean and corrupted run


@dataclass(frozen=True, eq=False)
class Collected:
    """Scores of all prompts."""

    reading: Reading
    mean: Float[Tensor, "*axes"]
    per_prompt: Float[Tensor, "batch *axes"] | None
    clean: PerPrompt  # the metric
    corrupted: PerPrompt


def collect(
    model: Any,
    pairs: TokenizedPairs,
    metric: Metric,
    method: str,
    steps: int,
    *,
    take: Take,
    scoring: Scoring,
    also: Callable[[Reading], Sequence[str]] = lambda _: (),
    per_prompt: bool,
    memory: int,
    progress: bool,
    log: BatchLog | None = None,
) -> Collected:
    """Score prompts in batches within the memory budget.

    Args:
        also: hook points that `scoring` needs beside what sources write
        log: where finished batches are kept

    Raises:
        ValueError: as `attribute_edges`.
    """
    if method not in BY_GRADIENT:
        raise ValueError(f"no such method: {method!r} (want {', '.join(BY_GRADIENT)})")
    if steps < 1:
        raise ValueError(f"steps = {steps}: want at least 1")
    refuse_misfits(model, pairs)
    device = next(model.parameters()).device
    total, kept, metrics = torch.zeros((), dtype=torch.float64), torch.zeros(len(pairs), 0), torch.zeros(2, len(pairs))
    with evaluating(model):
        reading = read_model(model)

        def run(rows: Int[Tensor, " batch"], batch: TokenizedPairs) -> tuple[Tensor, ...]:
            question = Question(reading, metric, rows, batch.to(device), tuple(also(reading)))
            scores, clean, corrupted = _attribute(question, method, steps, take, scoring)
            refuse_unless_finite("a score", scores, rows)
            found = scores.sum(0, dtype=torch.float64), torch.stack([clean, corrupted]).float()
            return (*found, scores.float()) if per_prompt else found

        for rows, (sums, both, *scores) in in_batches(pairs, run, memory, progress, method, log):
            total = total + sums.cpu()
            metrics[:, rows] = both.cpu()
            for values in scores:
                kept = kept if kept.numel() else torch.zeros(len(pairs), *values.shape[1:])
                kept[rows] = values.cpu()
    mean = (total / len(pairs)).float()
    return Collected(reading, mean, kept if per_prompt else None, metrics[0], metrics[1])


def _attribute(
    question: Question, method: str, steps: int, take: Take, scoring: Scoring
) -> tuple[Tensor, PerPrompt, PerPrompt]:
    """Scores of some prompts, and the metric of their clean and corrupted runs."""
    if method == "eap":
        clean, corrupted = take(question, False, ()), written(question, corrupted=True)
        points = iter([(1.0, clean)])
    elif method == "clean-corrupted":
        clean, corrupted = take(question, False, ()), take(question, True, ())
        points = iter([(0.5, clean), (0.5, corrupted)])
    elif method == "eap-ig":
        clean, corrupted = written(question), take(question, True, ())
        points = _along_input(question, clean, corrupted, steps, take)
    else:
        clean, corrupted = written(question), written(question, corrupted=True)
        points = _along_activations(question, clean, corrupted, steps, take)
    score = scoring(question.reading, clean.recorded, corrupted.recorded)
    scores = sum(weight * score(point) for weight, point in points)
    assert isinstance(scores, Tensor)
    return scores, clean.metric, corrupted.metric


def _along_input(
    question: Question, clean: Run, corrupted: Gradients, steps: int, take: Take
) -> Iterator[tuple[float, Gradients]]:
    """The corrupted run, then input embeddings k/m of the way to the clean ones."""
    name = question.reading.layers[0].at("hook_resid_pre")
    yield 1 / steps, corrupted
    for step in range(1, steps):
        yield 1 / steps, take(question, False, [_between(clean, corrupted, name, step / steps)])


def _along_activations(
    question: Question, clean: Run, corrupted: Run, steps: int, take: Take
) -> Iterator[tuple[float, Gradients]]:
    """What the input, all heads of a layer, or an MLP write, each in turn put k/m of the way to the clean run."""
    names = question.reading.written_names()
    for name in names:
        for step in range(1, steps + 1):
            edits = [_between(clean, corrupted, name, step / steps)]
            yield 1 / (steps * len(names)), take(question, False, edits)


def _between(clean: Run, corrupted: Run, name: str, share: float) -> Hook:
    value = torch.lerp(corrupted.recorded[name], clean.recorded[name], share)
    return name, lambda _: value.clone().requires_grad_()
