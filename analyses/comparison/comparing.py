"""Asks a dense and a sparse model the same questions about one task, on the pairs that both get right.

1. Which of the drawn pairs does each solve, and at what loss with how many open edges?
2. What do heads attend to, and which patterns are known ones?
3. Which heads and MLPs matter (activation patching), and how few of them carry the metric?
4. Which edges matter (attribution), how few hold `share` of it, and what does that circuit do alone, in either model?
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from sparselens.analyses.activation_patching import Patched, patch_activations
from sparselens.analyses.attention_edges import attention_edges
from sparselens.analyses.attribution_patching import attribute_edges
from sparselens.analyses.baselines import random_circuit
from sparselens.analyses.budget import MEMORY
from sparselens.analyses.circuits import Ablation, Faithfulness, faithfulness
from sparselens.analyses.comparison.files import Parts
from sparselens.analyses.comparison.models import digest, hashed, refuse_unlike
from sparselens.analyses.comparison.notes import first_alike, notes_on, prompts_of
from sparselens.analyses.comparison.results import (
    SIDES,
    About,
    Answers,
    CircuitRuns,
    Comparison,
    KeptComponents,
    LossPoints,
    Solved,
)
from sparselens.analyses.edge_scores import EdgeScores
from sparselens.analyses.faithful_circuits import faithful_circuit
from sparselens.analyses.head_labels import label_heads
from sparselens.analyses.integration import Method
from sparselens.analyses.loss_curve import loss_points, measure_loss
from sparselens.analyses.reading import read_model
from sparselens.analyses.top_components import Kept, keep_top
from sparselens.circuit import Circuit
from sparselens.evaluation import evaluating
from sparselens.metrics import Metric, accuracy, find_metric
from sparselens.runs import answer_logits
from sparselens.surgery import is_sparse
from sparselens.task import Task
from sparselens.tokenized import NO_ANSWER, TokenizedPairs

VERSIONS = ("sparselens", "torch", "transformers", "transformer-lens", "numpy")
COUNTS = 40  # at most so many numbers of components are tried


def compare(
    dense: Any,
    sparse: Any,
    task: Task | TokenizedPairs,
    *,
    n: int = 100,
    seed: int = 0,
    corruption: str | None = None,
    metric: str | None = None,
    method: Method | str = "eap-ig",
    steps: int = 5,
    share: float = 0.9,
    goal: float = 0.8,
    ablation: Ablation | str = "corrupted",
    all_pairs: bool = False,
    text: Sequence[Int[Tensor, "_batch _pos"]] | None = None,
    control: Any = None,
    names: tuple[str, str] = SIDES,
    memory: int = MEMORY,
    progress: bool = True,
    out: str | Path | None = None,
    command: str = "",
) -> Comparison:
    """Ask both models the same questions, and lay the answers side by side.

    >>> comparison = compare(sl.load("addition"), sl.load("addition-sparse"), TASKS["addition"])
    >>> comparison.table(), comparison.fewer_edges()

    Args:
        task: draws `n` pairs with `seed` and `corruption`; or pairs, of which all are taken
        metric: name in `sparselens.metrics`; default: the task's, or the logit difference
        method: of edge attribution, with its `steps` (see `attribute_edges`)
        share: of the sum of |scores|, for the circuit of the paper's rule
        goal: faithfulness of the smallest circuit that is looked for
        ablation: what stands in for everything that does not act: "corrupted", "mean" or "zero"
        all_pairs: ask about all pairs, not only those that both models get right
        text: token rows for the loss against the share of open edges; default: the loss of the answers
        control: the dense model fine-tuned alike with its gates held open, for the loss
        names: of the two models, for tables and figures
        memory: bytes that may be allocated at once beside the models
        out: folder for the answers as they come. The same call goes on from there after an interruption.
        command: for the record

    Raises:
        ValueError: the models differ in tokenizer, layers or heads; no pair is left; `out` holds something else; or as
            the analyses that are called.
    """
    _refuse_settings(method, ablation, share, goal)  # at once, not after an hour
    refuse_unlike(dense, sparse)
    pairs, description, fingerprint = _draw(dense, task, n, seed, corruption)
    name = metric or (task.metric if isinstance(task, Task) else "logit_difference")
    asked = Asked(find_metric(name), method, steps, share, goal, ablation, seed, memory, progress)
    question: dict[str, Any] = {
        "models": [digest(model) for model in (dense, sparse)],
        "control": None if control is None else digest(control),
        "prompts": hashed(pairs.clean, pairs.corrupted, pairs.answers, pairs.wrong_answers),
        "text": None if text is None else hashed(*text),
        "task": fingerprint,
        "settings": [name, method, steps, share, goal, ablation, seed, all_pairs],
    }
    answers = Parts(None if out is None else Path(out), question)
    parts = Steps(answers, progress)
    solved = parts.get("solved", lambda: _solved(dense, sparse, pairs, all_pairs))
    pairs = pairs[solved.asked.nonzero().flatten()]
    shown = first_alike(pairs)
    loss = parts.get("loss", lambda: _losses(dense, sparse, control, pairs, text, progress))
    models = dict(zip(SIDES, (dense, sparse), strict=True))
    found = {side: _ask(side, model, pairs, shown, asked, parts) for side, model in models.items()}
    scores = {side: found[side]["edges"] for side in SIDES}
    for side, other in (SIDES, SIDES[::-1]):
        run = partial(_run_circuits, models[side], scores[side], scores[other], pairs, asked)
        found[side]["circuits"] = parts.get(f"{side}.circuits", run)
    parts.close()
    about = About(
        task=fingerprint,
        description=description,
        metric=name,
        method=method,
        share=share,
        goal=goal,
        ablation=ablation,
        names=names,
        loss="the answers" if text is None else "the text",
        prompts=prompts_of(shown),
        versions={package: version(package) for package in VERSIONS},
        seed=seed,
        notes=notes_on(dense, sparse, solved, question["models"]),
        command=command,
    )
    answers.finish(about, question)
    return Comparison(about, solved, loss, Answers(**found["dense"]), Answers(**found["sparse"]))


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

    def close(self) -> None:
        """End the bar."""
        self._bar.set_description_str("compared")
        self._bar.close()


def _refuse_settings(method: str, ablation: str, share: float, goal: float) -> None:
    for name, value, known in (("method", method, get_args(Method)), ("ablation", ablation, get_args(Ablation))):
        if value not in known:
            raise ValueError(f"no such {name}: {value!r} (want {', '.join(known)})")
    for name, value in (("share", share), ("goal", goal)):
        if not 0 < value <= 1:
            raise ValueError(f"{name} must be above 0 and at most 1, not {value}")


# -- the questions


def _draw(
    model: Any, task: Task | TokenizedPairs, n: int, seed: int, corruption: str | None
) -> tuple[TokenizedPairs, str, str]:
    """The pairs, what they are about, and a name for them."""
    if isinstance(task, TokenizedPairs):
        return task, f"{len(task)} given pairs", "given pairs"
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(f"this {type(model).__name__} has no tokenizer: pass TokenizedPairs instead of a task")
    return task.tokenize(tokenizer, n, seed, corruption), task.description, task.fingerprint(n, seed, corruption)


def _solved(dense: Any, sparse: Any, pairs: TokenizedPairs, all_pairs: bool) -> Solved:
    right, by_sparse = _correct(dense, pairs), _correct(sparse, pairs)
    both = right & by_sparse
    if not all_pairs and not both.any():
        raise ValueError(
            f"no pair of {len(pairs)} is solved by both models (dense {int(right.sum())}, sparse "
            f"{int(by_sparse.sum())}): choose another task, or all_pairs=True"
        )
    n_right, n_wrong = ((ids != NO_ANSWER).sum(-1).double() for ids in (pairs.answers, pairs.wrong_answers))
    chance = float((n_right / (n_right + n_wrong)).mean())
    return Solved(right, by_sparse, torch.ones_like(both) if all_pairs else both, chance)


def _correct(model: Any, pairs: TokenizedPairs) -> Tensor:
    logits = answer_logits(model, pairs).cpu()[:, None]
    only_end = TokenizedPairs(pairs.clean[:, -1:], pairs.corrupted[:, -1:], pairs.answer, pairs.wrong_answer)
    return accuracy(logits, only_end).bool()


def _losses(
    dense: Any, sparse: Any, control: Any, pairs: TokenizedPairs, text: Sequence[Tensor] | None, progress: bool
) -> LossPoints:
    rows = pairs if text is None else list(text)
    if is_sparse(sparse) and not is_sparse(dense):
        return LossPoints(loss_points(dense, sparse, rows, control=control, progress=progress))
    named = {"dense": dense, "control": control, "sparse": sparse}  # top-k attention says nothing of gated models
    return LossPoints(tuple(measure_loss(model, rows, name=name) for name, model in named.items() if model is not None))


def _ask(
    side: str, model: Any, pairs: TokenizedPairs, shown: TokenizedPairs, asked: Asked, steps: Steps
) -> dict[str, Any]:
    """All that one model answers without the other."""
    options: dict[str, Any] = {"memory": asked.memory, "progress": asked.progress}

    def patched(site: str) -> Patched:
        return patch_activations(model, pairs, asked.metric, site, source=asked.ablation, **options)

    found: dict[str, Any] = {
        "attention": steps.get(f"{side}.attention", lambda: _attention(model, shown)),
        "labels": steps.get(f"{side}.labels", lambda: label_heads(model)),
        "heads": steps.get(f"{side}.heads", lambda: patched("heads")),
    }
    has_mlps = all(block.mlp for block in read_model(model).graph.blocks)
    found["mlps"] = steps.get(f"{side}.mlps", lambda: patched("mlps")) if has_mlps else None
    found["kept"] = steps.get(
        f"{side}.kept", lambda: _kept(model, pairs, found["heads"], found["mlps"], asked, options)
    )
    found["edges"] = steps.get(
        f"{side}.edges", lambda: attribute_edges(model, pairs, asked.metric, asked.method, asked.steps, **options)
    )
    return found


def _attention(model: Any, shown: TokenizedPairs) -> Any:
    with evaluating(model), torch.no_grad():
        return attention_edges(model, shown.clean.to(next(model.parameters()).device))


def _kept(
    model: Any, pairs: TokenizedPairs, heads: Patched, mlps: Patched | None, asked: Asked, options: dict[str, Any]
) -> KeptComponents:
    def kept(scores: Sequence[Patched], per_prompt: bool) -> Kept:
        counts = _counts(sum(score.mean.numel() for score in scores))
        return keep_top(
            model, pairs, scores, asked.metric, counts=counts, per_prompt=per_prompt, source=asked.ablation, **options
        )

    both = None if mlps is None else [heads, mlps]
    return KeptComponents(
        kept([heads], True),
        kept([heads], False),
        None if both is None else kept(both, True),
        None if both is None else kept(both, False),
    )


def _counts(total: int) -> list[int]:
    """0 to all, one by one where they are few, else ever further apart."""
    if total <= COUNTS:
        return list(range(total + 1))
    spread = torch.logspace(0, 1, COUNTS, base=float(total), dtype=torch.float64).round().long()
    return sorted({0, *range(1, 11), *spread.tolist()})


def _run_circuits(model: Any, own: EdgeScores, other: EdgeScores, pairs: TokenizedPairs, asked: Asked) -> CircuitRuns:
    options: dict[str, Any] = {"memory": asked.memory, "progress": False}
    mine = own.smallest(asked.share)
    chance = random_circuit(own.graph, len(mine), asked.seed)

    def alone(circuit: Circuit) -> Faithfulness:
        return faithfulness(model, circuit, pairs, asked.metric, asked.ablation, **options)

    found, kept = faithful_circuit(model, own, pairs, asked.metric, asked.goal, asked.ablation, **options)
    return CircuitRuns(alone(mine), alone(other.smallest(asked.share)), alone(chance), kept, len(found))
