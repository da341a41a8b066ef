"""Where gradients are taken, and how scores are collected over batches of prompts, in all attribution methods.

1. Run the clean and the corrupted prompts, and record what every source writes.
2. Take the gradient at each of the method's points (listed in `edges`), with weights that sum to one.
3. `scoring` turns each gradient into scores; their weighted sum is the score of a prompt.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sparselens.analyses.engine.batching import in_batches
from sparselens.analyses.engine.gate_gradient import gate_gradient_hooks, refuse_gate_gradient
from sparselens.analyses.engine.gradients import Gradients, written
from sparselens.analyses.engine.partial_runs import Activations, Hook, refuse_unless_finite
from sparselens.analyses.engine.request import PerPrompt, Request, Run
from sparselens.analyses.engine.residual_stream import Reading
from sparselens.analyses.engine.resume import BatchLog
from sparselens.circuits.graph import Graph
from sparselens.names import unknown

Method = Literal["eap", "eap-ig", "eap-ig-activations", "clean-corrupted", "exact", "auto"]
BY_GRADIENT = ("eap", "eap-ig", "eap-ig-activations", "clean-corrupted")
DEFAULT: Method = "eap-ig"
FEW_EDGES = 1000  # up to this many, "auto" means exact scores

Take = Callable[[Request, bool, Sequence[Hook]], Gradients]  # gradients(request, corrupted, edits)
Score = Callable[[Gradients], Float[Tensor, "batch *axes"]]
Scoring = Callable[[Reading, Activations, Activations], Score]  # from the recorded clean and corrupted run


@dataclass(frozen=True, eq=False)
class Attribution:
    """Scores of all prompts."""

    mean: Float[Tensor, "*axes"]
    per_prompt: Float[Tensor, "batch *axes"] | None
    clean: PerPrompt  # the metric
    corrupted: PerPrompt


def chosen(method: str, graph: Graph) -> str:
    """The method; "auto" means exact for a graph of at most FEW_EDGES edges, otherwise the default."""
    if method != "auto":
        return method
    return "exact" if graph.n_edges <= FEW_EDGES else DEFAULT


def by_gradient(method: str, instead: str) -> str:
    """The method, for functions without exact scores; "auto" means the default.

    Raises:
        ValueError: the method is "exact". The message says what is exact instead.
    """
    if method == "exact":
        raise ValueError(f"method 'exact' is for edges only: {instead} (want {', '.join((*BY_GRADIENT, 'auto'))})")
    return DEFAULT if method == "auto" else method


def attribute(
    request: Request,
    method: str,
    steps: int,
    take: Take,
    scoring: Scoring,
    *,
    also: Callable[[Reading], Sequence[str]] = lambda _: (),
    gate_gradient: str = "none",
    per_prompt: bool = True,
    log: BatchLog | None = None,
) -> Attribution:
    """Score prompts in batches.

    Args:
        also: hook points that `scoring` needs in addition to the sources' writes
        gate_gradient: of hard gates, see `engine.gate_gradient`
        log: where finished batches are kept
    """
    if method not in BY_GRADIENT:
        raise unknown("method", method, BY_GRADIENT)
    if steps < 1:
        raise ValueError(f"steps = {steps}: want at least 1")
    refuse_gate_gradient(gate_gradient, method)
    n = len(request)
    total, kept, metrics = torch.zeros((), dtype=torch.float64), torch.zeros(n, 0), torch.zeros(2, n)
    request = replace(request, also=tuple(also(request.reading)))

    def through_gates(batch: Request, corrupted: bool, edits: Sequence[Hook]) -> Gradients:
        return take(batch, corrupted, [*edits, *gate_gradient_hooks(batch.model, gate_gradient)])

    def score(batch: Request) -> tuple[Tensor, ...]:
        scores, clean, corrupted = _attribute(batch, method, steps, through_gates, scoring)
        refuse_unless_finite("a score", scores, batch.prompts)
        found = scores.sum(0, dtype=torch.float64), torch.stack([clean, corrupted]).float()
        return (*found, scores.float()) if per_prompt else found

    for rows, (sums, both, *scores) in in_batches(request, score, method, log):
        total = total + sums.cpu()
        metrics[:, rows] = both.cpu()
        for values in scores:
            kept = kept if kept.numel() else torch.zeros(n, *values.shape[1:])
            kept[rows] = values.cpu()
    return Attribution((total / n).float(), kept if per_prompt else None, metrics[0], metrics[1])


def _attribute(
    request: Request, method: str, steps: int, take: Take, scoring: Scoring
) -> tuple[Tensor, PerPrompt, PerPrompt]:
    """Scores of some prompts, and the metric of their clean and corrupted runs."""
    if method == "eap":
        clean, corrupted = take(request, False, ()), written(request, corrupted=True)
        points = iter([(1.0, clean)])
    elif method == "clean-corrupted":
        clean, corrupted = take(request, False, ()), take(request, True, ())
        points = iter([(0.5, clean), (0.5, corrupted)])
    elif method == "eap-ig":
        clean, corrupted = written(request), take(request, True, ())
        points = _along_input(request, clean, corrupted, steps, take)
    else:
        clean, corrupted = written(request), written(request, corrupted=True)
        points = _along_activations(request, clean, corrupted, steps, take)
    score = scoring(request.reading, clean.recorded, corrupted.recorded)
    scores = sum(weight * score(point) for weight, point in points)
    assert isinstance(scores, Tensor)
    return scores, clean.metric, corrupted.metric


def _along_input(
    request: Request, clean: Run, corrupted: Gradients, steps: int, take: Take
) -> Iterator[tuple[float, Gradients]]:
    """The corrupted run, then input embeddings k/m of the way to the clean ones."""
    name = request.reading.layers[0].at("hook_resid_pre")
    yield 1 / steps, corrupted
    for step in range(1, steps):
        yield 1 / steps, take(request, False, [_between(clean, corrupted, name, step / steps)])


def _along_activations(
    request: Request, clean: Run, corrupted: Run, steps: int, take: Take
) -> Iterator[tuple[float, Gradients]]:
    """The input, the heads of a layer or an MLP, each in turn interpolated k/m of the way to the clean run."""
    names = request.reading.written_names()
    for name in names:
        for step in range(1, steps + 1):
            edits = [_between(clean, corrupted, name, step / steps)]
            yield 1 / (steps * len(names)), take(request, False, edits)


def _between(clean: Run, corrupted: Run, name: str, share: float) -> Hook:
    value = torch.lerp(corrupted.recorded[name], clean.recorded[name], share)
    return name, lambda _: value.clone().requires_grad_()
