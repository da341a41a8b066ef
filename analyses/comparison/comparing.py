"""Compares a dense and a sparse model on one task, on the pairs that both solve.

1. Which of the drawn pairs does each model solve, what is its loss, and how many attention edges are open?
2. Where do heads attend, and which heads have known attention patterns?
3. Which heads and MLPs matter (activation patching), and how few of them keep most of the metric?
4. Which edges matter (attribution), how few hold `share` of it, and how faithful is that circuit in either model?
5. How few of the highest-scoring edges reach a faithfulness of `goal`, and how few are left after pruning these?
"""

from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from sparselens.analyses.attribution.integration import DEFAULT, Method, chosen
from sparselens.analyses.circuits.circuit_runs import Ablation
from sparselens.analyses.comparison.caveats import caveats, first_of_one_length, prompts_of, pruning_caveats
from sparselens.analyses.comparison.files import Parts
from sparselens.analyses.comparison.model_results import ModelResults
from sparselens.analyses.comparison.one_model import Settings, analyse, run_circuits
from sparselens.analyses.comparison.results import SIDES, About, Comparison, LossPoints, Solved
from sparselens.analyses.engine.fingerprints import of_pairs, of_tensors
from sparselens.analyses.engine.gate_gradient import GateGradient, refuse_gate_gradient
from sparselens.analyses.engine.request import OpenModel
from sparselens.analyses.engine.resume import unique_name
from sparselens.analyses.sparsity.loss_curve import loss_points, measure_loss
from sparselens.gates.surgery import is_sparse
from sparselens.models.hooked_model import HookedModel
from sparselens.names import unknown
from sparselens.prompts.capability import evaluate
from sparselens.prompts.checks import refuse_misfits
from sparselens.prompts.fitting import text_of
from sparselens.prompts.metrics import Metric, find_metric, kl_divergence, name_of
from sparselens.prompts.runs import answer_logits
from sparselens.prompts.task import Task
from sparselens.prompts.tokenized import TokenizedPairs

VERSIONS = ("sparselens", "torch", "transformers", "transformer-lens", "numpy")


def compare(
    dense: HookedModel,
    sparse: HookedModel,
    task: Task | TokenizedPairs,
    *,
    n: int = 100,
    seed: int = 0,
    corruption: str | None = None,
    metric: Metric | str | None = None,
    method: Method | str = DEFAULT,
    steps: int = 5,
    gate_gradient: GateGradient | str = "none",
    share: float = 0.9,
    goal: float = 0.8,
    ablation: Ablation | str = "corrupted",
    prune_runs: int | None = None,
    all_pairs: bool = False,
    text: Int[Tensor, "_batch _pos"] | Sequence[Int[Tensor, "_batch _pos"]] | None = None,
    control: HookedModel | None = None,
    names: tuple[str, str] = SIDES,
    memory: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
    out: str | Path | None = None,
    command: str = "",
    notes: Sequence[str] = (),
) -> Comparison:
    """Run the same analyses on both models and compare the results.

    >>> comparison = compare(sl.load("addition"), sl.load("addition-sparse"), TASKS["addition"])
    >>> comparison.table(), comparison.fewer_edges()
    >>> comparison.sparse.circuit.edges, comparison.dense.edges.per_prompt.shape  # [batch source destination]

    Args:
        task: a task, from which `n` pairs are drawn with `seed` and `corruption`; or pairs, which are all used
        metric: function of (logits, pairs), or name in `sparselens.prompts.metrics`; default: the task's, or the logit
            difference
        method: of edge attribution, with its `steps` and `gate_gradient` (see `attribute_edges`)
        share: share of the sum of |scores| that the circuit of the paper's rule holds
        goal: target faithfulness of the smallest circuits, before and after pruning
        ablation: what replaces inactive components and edges: "corrupted", "mean" or "zero"
        prune_runs: limit on the circuits run to prune each model's faithful circuit (see `pruned_circuit`); 0: do not
            prune
        all_pairs: use all pairs, not only those that both models solve
        text: token rows to measure the loss on; default: the loss on the task's answers
        control: the dense model after the same fine-tuning with all gates held open; only its loss is measured
        names: of the two models, for tables and figures
        memory, batch_size: as in `attribute_edges`
        out: folder for finished parts; after an interruption the same call resumes from it
        command: the command line that led to this call, to be shown in the report
        notes: further caveats for the report, such as where `text` comes from

    Raises:
        ValueError: the models differ in tokenizer, layers or heads; no pair is left; `out` holds something else; or one
            of the analyses refuses its arguments.
    """
    _refuse_settings(method, steps, ablation, share, goal, prune_runs, names)  # now, not after an hour of computing
    opened = {"dense": OpenModel(dense), "sparse": OpenModel(sparse)}
    _refuse_unlike(opened["dense"], opened["sparse"])
    method = chosen(method, opened["dense"].reading.graph)
    refuse_gate_gradient(gate_gradient, method)
    other = None if control is None else OpenModel(control)
    if other is not None:
        _refuse_unlike(opened["dense"], other)
    pairs, description, fingerprint = _draw(dense, task, n, seed, corruption)
    for each in opened.values():
        refuse_misfits(each.model, pairs)
    measure = find_metric(metric or (task.metric if isinstance(task, Task) else "logit_difference"))
    _refuse_metric(measure, method, pairs, opened["dense"])
    name = name_of(measure) if out is None else unique_name(measure)
    rows = [text] if isinstance(text, Tensor) else text
    run: dict[str, Any] = {"memory": memory, "batch_size": batch_size, "progress": progress}
    settings = Settings(measure, method, steps, gate_gradient, share, goal, ablation, prune_runs, seed, run)
    request: dict[str, Any] = {
        "models": [opened[side].fingerprint for side in SIDES],
        "control": None if other is None else other.fingerprint,
        "prompts": of_pairs(pairs),
        "text": None if rows is None else of_tensors({str(number): batch for number, batch in enumerate(rows)}),
        "task": fingerprint,
        "settings": [name, method, steps, gate_gradient, share, goal, ablation, prune_runs, seed, all_pairs],
    }
    parts = Parts(None if out is None else Path(out), request, progress)
    solved = parts.get("solved", lambda: _solved(dense, sparse, pairs, all_pairs))
    pairs = pairs[solved.kept.nonzero().flatten()]
    shown = first_of_one_length(pairs)
    loss = parts.get("loss", lambda: _losses(dense, sparse, control, pairs if rows is None else list(rows), progress))
    found = {side: analyse(side, opened[side], pairs, shown, settings, parts) for side in SIDES}
    scores = {side: found[side]["edges"] for side in SIDES}
    for side, another in (SIDES, SIDES[::-1]):
        circuits = partial(run_circuits, opened[side], pairs, scores[side], scores[another], settings)
        found[side]["circuits"] = parts.get(f"{side}.circuits", circuits)
    about = About(
        task=fingerprint,
        description=description,
        metric=name_of(measure),
        method=scores["dense"].method,
        share=share,
        goal=goal,
        ablation=ablation,
        names=names,
        loss="the answers" if text is None else "the text",
        prompts=prompts_of(shown, _answers(dense, sparse, shown)),
        versions={package: version(package) for package in VERSIONS},
        seed=seed,
        notes=(*notes, *caveats(dense, sparse, solved, request["models"], scores), *pruning_caveats(found)),
        command=command,
    )
    parts.finish(about, request)
    of_dense, of_sparse = (ModelResults(**found[side], share=share) for side in SIDES)
    return Comparison(about, solved, loss, of_dense, of_sparse)


def _refuse_settings(
    method: str,
    steps: int,
    ablation: str,
    share: float,
    goal: float,
    prune_runs: int | None,
    names: tuple[str, str],
) -> None:
    for name, value, known in (("method", method, get_args(Method)), ("ablation", ablation, get_args(Ablation))):
        if value not in known:
            raise unknown(name, value, known)
    for name, value in (("share", share), ("goal", goal)):
        if not 0 < value <= 1:
            raise ValueError(f"{name} must be above 0 and at most 1, not {value}")
    if steps < 1:
        raise ValueError(f"steps = {steps}: want 1 or more")
    if prune_runs is not None and prune_runs < 0:
        raise ValueError(f"prune_runs = {prune_runs}: want 0 or more")
    if not all(names) or names[0] == names[1]:
        raise ValueError(f"names = {names}: want two different names, neither of them empty")


def _refuse_unlike(dense: OpenModel, sparse: OpenModel) -> None:
    """Raise a ValueError unless the two models have the same tokens, nodes and edges."""
    if is_sparse(dense.model) and not is_sparse(sparse.model):
        raise ValueError("the dense model has gates and the sparse one has none: swap them")
    graphs = [opened.reading.graph for opened in (dense, sparse)]
    if graphs[0] != graphs[1]:
        raise ValueError(f"the models differ in layers or heads: dense {graphs[0]}, sparse {graphs[1]}")
    sizes = [opened.model.cfg.d_vocab for opened in (dense, sparse)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"the models differ in vocabulary: dense {sizes[0]} tokens, sparse {sizes[1]}")
    tokenizers = [getattr(opened.model, "tokenizer", None) for opened in (dense, sparse)]
    if None not in tokenizers:
        first, second = (tokenizer.get_vocab() for tokenizer in tokenizers if tokenizer is not None)
        if first != second:
            differing = min(first.items() ^ second.items(), key=str)[0]
            raise ValueError(f"the models have different tokenizers: {differing!r} is not the same token in both")


def _refuse_metric(metric: Metric, method: str, pairs: TokenizedPairs, opened: OpenModel) -> None:
    """Raise a ValueError if the pairs lack the metric's reference, or the metric a gradient that the method needs."""
    if metric is kl_divergence and pairs.reference is None:
        raise ValueError("kl_divergence compares with a reference: pass sl.with_reference(model, pairs) as the task")
    if method != "exact" and not opened.has_gradient(metric, pairs):
        raise ValueError(
            f"{name_of(metric)} has no gradient, which {method} attribution needs: choose another metric, or the "
            "method exact"
        )


def _draw(
    model: Any, task: Task | TokenizedPairs, n: int, seed: int, corruption: str | None
) -> tuple[TokenizedPairs, str, str]:
    """The pairs, a description of them, and a fingerprint."""
    if isinstance(task, TokenizedPairs):
        return task, f"{len(task)} given pairs", "given pairs"
    if not hasattr(task, "tokenize"):
        raise ValueError(f"task is {task!r}: want a Task, such as TASKS['ioi'], or TokenizedPairs")
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(f"this {type(model).__name__} has no tokenizer: pass TokenizedPairs instead of a task")
    return task.tokenize(tokenizer, n, seed, corruption), task.description, task.fingerprint(n, seed, corruption)


def _solved(dense: Any, sparse: Any, pairs: TokenizedPairs, all_pairs: bool) -> Solved:
    by_dense, by_sparse = (evaluate(model, pairs, progress=False) for model in (dense, sparse))
    both = by_dense.correct & by_sparse.correct
    if not all_pairs and not both.any():
        raise ValueError(
            f"none of the {len(pairs)} pairs is solved by both models (dense solves {int(by_dense.correct.sum())}, "
            f"sparse {int(by_sparse.correct.sum())}): choose another task, or pass all_pairs=True"
        )
    kept = torch.ones_like(both) if all_pairs else both
    return Solved(by_dense.correct, by_sparse.correct, kept, by_dense.chance, pairs.clean_prompt)


def _answers(dense: Any, sparse: Any, shown: TokenizedPairs) -> list[str]:
    """What both models predict at the answer's position of these prompts; `dense/sparse` where they differ."""
    tokenizer = getattr(dense, "tokenizer", None)
    predicted = [answer_logits(model, shown).argmax(-1).tolist() for model in (dense, sparse)]

    def text(token: int) -> str:
        return str(token) if tokenizer is None or token >= len(tokenizer) else text_of(tokenizer, token)

    return [text(one) if one == two else f"{text(one)}/{text(two)}" for one, two in zip(*predicted, strict=True)]


def _losses(dense: Any, sparse: Any, control: Any, rows: TokenizedPairs | list[Tensor], progress: bool) -> LossPoints:
    if is_sparse(sparse) and not is_sparse(dense):
        return LossPoints(loss_points(dense, sparse, rows, control=control, progress=progress))
    named = {"dense": dense, "control": control, "sparse": sparse}  # top-k attention needs a model without gates
    return LossPoints(tuple(measure_loss(model, rows, name=name) for name, model in named.items() if model is not None))
