"""Asks a dense and a sparse model the same questions about one task, on the pairs that both get right.

1. Which of the drawn pairs does each solve, and at what loss with how many open edges?
2. What do heads attend to, and which patterns are known ones?
3. Which heads and MLPs matter (activation patching), and how few of them carry the metric?
4. Which edges matter (attribution), how few hold `share` of it, and what does that circuit do alone, in either model?
"""

from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from sparselens.analyses.attribution.integration import Method
from sparselens.analyses.circuits.faithfulness import Ablation
from sparselens.analyses.comparison.asking import Asked, Steps, ask_model, run_circuits
from sparselens.analyses.comparison.files import Parts
from sparselens.analyses.comparison.models import refuse_unlike
from sparselens.analyses.comparison.notes import first_alike, notes_on, prompts_of
from sparselens.analyses.comparison.results import (
    SIDES,
    About,
    Answers,
    Comparison,
    LossPoints,
    Solved,
)
from sparselens.analyses.engine.batching import MEMORY
from sparselens.analyses.engine.fingerprints import of_model, of_pairs, of_tensors
from sparselens.analyses.sparsity.loss_curve import loss_points, measure_loss
from sparselens.gates.surgery import is_sparse
from sparselens.prompts.metrics import accuracy, find_metric
from sparselens.prompts.runs import answer_logits
from sparselens.prompts.task import Task
from sparselens.prompts.tokenized import NO_ANSWER, TokenizedPairs

WITHOUT_GRADIENT = ("accuracy", "rank")
VERSIONS = ("sparselens", "torch", "transformers", "transformer-lens", "numpy")


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
    text: Int[Tensor, "_batch _pos"] | Sequence[Int[Tensor, "_batch _pos"]] | None = None,
    control: Any = None,
    names: tuple[str, str] = SIDES,
    memory: int = MEMORY,
    progress: bool = True,
    out: str | Path | None = None,
    command: str = "",
    notes: Sequence[str] = (),
) -> Comparison:
    """Ask both models the same questions, and lay the answers side by side.

    >>> comparison = compare(sl.load("addition"), sl.load("addition-sparse"), TASKS["addition"])
    >>> comparison.table(), comparison.fewer_edges()

    Args:
        task: draws `n` pairs with `seed` and `corruption`; or pairs, of which all are taken
        metric: name in `sparselens.prompts.metrics`; default: the task's, or the logit difference
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
        notes: more that a reader should know, such as where `text` comes from

    Raises:
        ValueError: the models differ in tokenizer, layers or heads; no pair is left; `out` holds something else; or as
            the analyses that are called.
    """
    _refuse_settings(method, steps, ablation, share, goal, names)  # at once, not after an hour
    refuse_unlike(dense, sparse)
    if control is not None:
        refuse_unlike(dense, control)
    pairs, description, fingerprint = _draw(dense, task, n, seed, corruption)
    name = metric or (task.metric if isinstance(task, Task) else "logit_difference")
    _refuse_metric(name, method, pairs)
    rows = [text] if isinstance(text, Tensor) else text
    asked = Asked(find_metric(name), method, steps, share, goal, ablation, seed, memory, progress)
    question: dict[str, Any] = {
        "models": [of_model(model) for model in (dense, sparse)],
        "control": None if control is None else of_model(control),
        "prompts": of_pairs(pairs),
        "text": None if rows is None else of_tensors({str(number): batch for number, batch in enumerate(rows)}),
        "task": fingerprint,
        "settings": [name, method, steps, share, goal, ablation, seed, all_pairs],
    }
    answers = Parts(None if out is None else Path(out), question)
    parts = Steps(answers, progress)
    solved = parts.get("solved", lambda: _solved(dense, sparse, pairs, all_pairs))
    pairs = pairs[solved.asked.nonzero().flatten()]
    shown = first_alike(pairs)
    loss = parts.get("loss", lambda: _losses(dense, sparse, control, pairs if rows is None else list(rows), progress))
    models = dict(zip(SIDES, (dense, sparse), strict=True))
    found = {side: ask_model(side, model, pairs, shown, asked, parts) for side, model in models.items()}
    scores = {side: found[side]["edges"] for side in SIDES}
    for side, other in (SIDES, SIDES[::-1]):
        run = partial(run_circuits, models[side], scores[side], scores[other], pairs, asked)
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
        notes=(*notes, *notes_on(dense, sparse, solved, question["models"], scores)),
        command=command,
    )
    answers.finish(about, question)
    return Comparison(about, solved, loss, Answers(**found["dense"]), Answers(**found["sparse"]))


def _refuse_settings(method: str, steps: int, ablation: str, share: float, goal: float, names: tuple[str, str]) -> None:
    for name, value, known in (("method", method, get_args(Method)), ("ablation", ablation, get_args(Ablation))):
        if value not in known:
            raise ValueError(f"no such {name}: {value!r} (want {', '.join(known)})")
    for name, value in (("share", share), ("goal", goal)):
        if not 0 < value <= 1:
            raise ValueError(f"{name} must be above 0 and at most 1, not {value}")
    if steps < 1:
        raise ValueError(f"steps = {steps}: want 1 or more")
    if not all(names) or names[0] == names[1]:
        raise ValueError(f"names = {names}: want two different ones, neither empty")


def _refuse_metric(name: str, method: str, pairs: TokenizedPairs) -> None:
    """Raise a ValueError if the metric cannot be asked of these pairs, or has no gradient where one is wanted."""
    find_metric(name)
    if name in WITHOUT_GRADIENT and method != "exact":
        raise ValueError(f"{name} has no gradient, which {method} attribution needs: choose another metric, or exact")
    if name == "kl_divergence" and pairs.reference is None:
        raise ValueError("kl_divergence compares with a reference: pass sl.with_reference(model, pairs) as the task")


def _draw(
    model: Any, task: Task | TokenizedPairs, n: int, seed: int, corruption: str | None
) -> tuple[TokenizedPairs, str, str]:
    """The pairs, what they are about, and a name for them."""
    if isinstance(task, TokenizedPairs):
        return task, f"{len(task)} given pairs", "given pairs"
    if not hasattr(task, "tokenize"):
        raise ValueError(f"task is {task!r}: want a Task, such as TASKS['ioi'], or TokenizedPairs")
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
    clusters = pairs.clusters()
    first = {label: number for number, label in reversed(list(enumerate(clusters)))}
    prompt = torch.tensor([first[label] for label in clusters])
    return Solved(right, by_sparse, torch.ones_like(both) if all_pairs else both, chance, prompt)


def _correct(model: Any, pairs: TokenizedPairs) -> Tensor:
    logits = answer_logits(model, pairs).cpu()[:, None]
    only_end = TokenizedPairs(pairs.clean[:, -1:], pairs.corrupted[:, -1:], pairs.answer, pairs.wrong_answer)
    return accuracy(logits, only_end).bool()


def _losses(dense: Any, sparse: Any, control: Any, rows: TokenizedPairs | list[Tensor], progress: bool) -> LossPoints:
    if is_sparse(sparse) and not is_sparse(dense):
        return LossPoints(loss_points(dense, sparse, rows, control=control, progress=progress))
    named = {"dense": dense, "control": control, "sparse": sparse}  # top-k attention says nothing of gated models
    return LossPoints(tuple(measure_loss(model, rows, name=name) for name, model in named.items() if model is not None))
