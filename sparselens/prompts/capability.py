"""How well a model does a task: accuracy and metric with confidence intervals, and the failed prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparselens.gates.hooked import refuse_lost_gates
from sparselens.prompts.answers import NO_ANSWER
from sparselens.prompts.intervals import Interval, mean_interval, proportion_interval
from sparselens.prompts.metrics import Metric, accuracy, find_metric, kl_divergence, logit_difference, measured, name_of
from sparselens.prompts.pairs import PromptPair
from sparselens.prompts.runs import runs
from sparselens.prompts.tokenized import CLUSTER_BY, TokenizedPairs
from sparselens.results import Result

if TYPE_CHECKING:
    from sparselens.prompts.task import Task


N_PAIRS = 200  # drawn by default


@dataclass(frozen=True, repr=False)
class Capability(Result):
    """A model's results on the clean prompts of a task.

    >>> result = sl.evaluate(model, pairs)
    >>> result.accuracy, result.values.mean()
    """

    task: str
    metric_name: str
    pairs: TokenizedPairs
    correct: Bool[Tensor, " batch"]  # whether the best right answer scores above every wrong one
    values: Float[Tensor, " batch"]  # the metric of every prompt
    chance: float  # accuracy of random guessing
    cluster_by: str = "prompt"  # defines which pairs count as one observation, see `TokenizedPairs.clusters`

    def _line(self) -> str:
        also = "" if self.metric_name == "accuracy" else f", {self.metric_name} {self.metric}"
        return f"{self.task}, {len(self.values)} pairs: accuracy {self.accuracy}, chance {self.chance:.3g}{also}"

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        columns = self.pairs._columns()
        kept = {name: columns[name] for name in ("clean", "answer", "wrong_answer")}
        return {**kept, "correct": self.correct.tolist(), self.metric_name: self.values.tolist()}

    def plot(self) -> Any:
        """A plotly histogram of the metric over prompts."""
        return self._figure("histogram", self.to_frame(), x=self.metric_name, color="correct")

    @property
    def accuracy(self) -> Interval:
        """Share of correct prompts, with Wilson's 95 % interval over clusters."""
        return proportion_interval(self.correct.double(), clusters=self.pairs.clusters(self.cluster_by))

    @property
    def metric(self) -> Interval:
        """Mean of the metric, with the 95 % interval of the studentized bootstrap over clusters."""
        if self.metric_name == "accuracy":
            return self.accuracy
        return mean_interval(self.values, clusters=self.pairs.clusters(self.cluster_by))

    @property
    def distinct_prompts(self) -> int:
        """Number of different clean prompts."""
        return len(set(self.pairs.clusters()))

    @property
    def failures(self) -> tuple[PromptPair, ...]:
        """The pairs that the model gets wrong.

        Raises:
            ValueError: the pairs were made from tensors, so their strings are unknown.
        """
        if not self.pairs.prompts:
            raise ValueError("these pairs were made from tensors and have no strings: use found.pairs[~found.correct]")
        wrong = (~self.correct).nonzero().flatten().tolist()
        return tuple(self.pairs.prompts[i] for i in wrong)


def evaluate(
    model: nn.Module,
    task: "Task | TokenizedPairs",
    n: int | None = None,
    seed: int = 0,
    *,
    corruption: str | None = None,
    metric: Metric | str | None = None,
    tokenizer: Any = None,
    bos: bool | None = None,
    batch_size: int = 64,
    progress: bool = True,
    cluster_by: str = "prompt",
) -> Capability:
    """Evaluate a model, dense or sparse, on n clean prompts of a task or on given pairs.

    >>> found = evaluate(sl.load("addition"), TASKS["addition"], n=100)
    >>> found.accuracy, found.correct.shape  # with its confidence interval, [batch]
    >>> evaluate(model, pairs).correct  # all of the TokenizedPairs

    Args:
        task: a task, which draws `n` pairs with `seed`, `corruption`, `tokenizer` and `bos`; or pairs, all of them used
        n: default: 200, or fewer if the task has fewer that fit
        metric: function of (logits, pairs), or name in `sparselens.prompts.metrics`. Default: the task's metric; for
            pairs, the logit difference
        tokenizer: default: `model.tokenizer`
        bos: whether to prepend the tokenizer's BOS. Default: as the tokenizer does; TransformerBridge sets it to do so
        cluster_by: pairs with the same clean "prompt", or the same "answer", count as one observation

    Raises:
        ValueError: there is no tokenizer, the task does not fit it (see `Task.tokenize`), or the pairs were tokenized
            for another model.
    """
    if cluster_by not in CLUSTER_BY:
        raise ValueError(f"cluster_by={cluster_by!r}: want {' or '.join(CLUSTER_BY)}")
    if not isinstance(task, TokenizedPairs) and not hasattr(task, "tokenize"):
        raise ValueError(f"want a Task, such as TASKS['ioi'], or TokenizedPairs, not {task!r:.80}")
    refuse_lost_gates(model)
    measure = find_metric(metric or getattr(task, "metric", logit_difference))
    if measure is kl_divergence:
        raise ValueError("kl_divergence compares two runs, but only clean prompts are run here: use another metric")
    if isinstance(task, TokenizedPairs):
        name, pairs = "given pairs", task
    else:
        tokenizer = tokenizer or getattr(model, "tokenizer", None)
        if tokenizer is None:
            raise ValueError(f"this {type(model).__name__} has no tokenizer: pass tokenizer=...")
        if n is None:  # at least one, so that `tokenize` explains why none fits
            n = max(1, len(task.fitted(tokenizer, bos).at_most(N_PAIRS, seed, corruption)))
        name, pairs = task.name, task.tokenize(tokenizer, n, seed, corruption, bos)
    batches = [
        (run.rows, accuracy(run.logits, run.pairs).bool().cpu(), measured(measure, run.logits, run.pairs).cpu())
        for run in runs(model, pairs, batch_size=batch_size, progress=name if progress else None)
    ]
    rows, correct, values = (torch.cat(parts) for parts in zip(*batches, strict=True))
    order = rows.argsort()
    return Capability(name, name_of(measure), pairs, correct[order], values[order], chance_of(pairs), cluster_by)


def chance_of(pairs: TokenizedPairs) -> float:
    """Accuracy of guessing at random among the answers."""
    right, wrong = ((ids != NO_ANSWER).sum(-1).double() for ids in (pairs.answers, pairs.wrong_answers))
    return float((right / (right + wrong)).mean())
