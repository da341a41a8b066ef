"""How well a model does a task: accuracy and metric with confidence intervals, and the prompts on which it fails."""

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


@dataclass(frozen=True, repr=False)
class Capability(Result):
    """A model's answers to a task's clean prompts.

    >>> result = sl.evaluate(model, pairs)
    >>> result.accuracy, result.values.mean()
    """

    task: str
    metric_name: str
    pairs: TokenizedPairs
    correct: Bool[Tensor, " batch"]  # the best right answer scores above every wrong one
    values: Float[Tensor, " batch"]  # the metric, per prompt
    chance: float  # accuracy of guessing
    cluster_by: str = "prompt"  # which pairs count as one observation in the intervals (`TokenizedPairs.clusters`)

    def _line(self) -> str:
        also = "" if self.metric_name == "accuracy" else f", {self.metric_name} {self.metric}"
        return f"{self.task}, {len(self.values)} pairs: accuracy {self.accuracy}, chance {self.chance:.3g}{also}"

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        asked = self.pairs._columns()
        shown = {name: asked[name] for name in ("clean", "answer", "wrong_answer")}
        return {**shown, "correct": self.correct.tolist(), self.metric_name: self.values.tolist()}

    def plot(self) -> Any:
        """The metric over prompts, as a plotly histogram."""
        return self._figure("histogram", self.to_frame(), x=self.metric_name, color="correct")

    @property
    def accuracy(self) -> Interval:
        """Share of the prompts that the model gets right, with its 95 % interval: Wilson's, by clusters."""
        return proportion_interval(self.correct.double(), clusters=self.pairs.clusters(self.cluster_by))

    @property
    def metric(self) -> Interval:
        """Mean of the metric, with its 95 % interval: the studentized bootstrap of clusters."""
        if self.metric_name == "accuracy":
            return self.accuracy
        return mean_interval(self.values, clusters=self.pairs.clusters(self.cluster_by))

    @property
    def distinct_prompts(self) -> int:
        """How many different clean prompts the model has read."""
        return len(set(self.pairs.clusters()))

    @property
    def failures(self) -> tuple[PromptPair, ...]:
        """The pairs that the model does not solve.

        Raises:
            ValueError: the pairs were made from tensors, so their strings are not known.
        """
        if not self.pairs.prompts:
            raise ValueError("these pairs were made from tensors: take found.pairs[~found.correct]")
        wrong = (~self.correct).nonzero().flatten().tolist()
        return tuple(self.pairs.prompts[i] for i in wrong)


def evaluate(
    model: nn.Module,
    task: "Task | TokenizedPairs",
    n: int = 200,
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
    """Run a model, dense or sparse, on n clean prompts of a task, or on given pairs, in evaluation mode.

    >>> found = evaluate(sl.load("addition"), TASKS["addition"], n=100)
    >>> found.accuracy, found.correct.shape  # with its confidence interval, [batch]
    >>> evaluate(model, pairs).correct  # of TokenizedPairs, all of which are run

    Args:
        task: draws `n` pairs with `seed`, `corruption`, `tokenizer` and `bos`; or pairs, all of which are run
        metric: function of (logits, pairs), or name in `sparselens.prompts.metrics`. Default: the task's, or the logit
            difference
        tokenizer: default: the model's own (`model.tokenizer`)
        bos: put the tokenizer's BOS first. Default: as the tokenizer itself does; a TransformerBridge has set it to
        cluster_by: which pairs count as one observation: those with the same clean "prompt", or the same "answer"

    Raises:
        ValueError: there is no tokenizer, the task does not fit it (see `Task.tokenize`), or pairs are another model's.
    """
    if cluster_by not in CLUSTER_BY:
        raise ValueError(f"cluster_by={cluster_by!r}: want {' or '.join(CLUSTER_BY)}")
    if not isinstance(task, TokenizedPairs) and not hasattr(task, "tokenize"):
        raise ValueError(f"want a Task, such as TASKS['ioi'], or TokenizedPairs, not {task!r:.80}")
    refuse_lost_gates(model)
    measure = find_metric(metric or getattr(task, "metric", logit_difference))
    if measure is kl_divergence:
        raise ValueError("kl_divergence compares two runs, and only clean prompts are run here: take another metric")
    if isinstance(task, TokenizedPairs):
        name, pairs = "given pairs", task
    else:
        tokenizer = tokenizer or getattr(model, "tokenizer", None)
        if tokenizer is None:
            raise ValueError(f"this {type(model).__name__} has no tokenizer: pass tokenizer=...")
        name, pairs = task.name, task.tokenize(tokenizer, n, seed, corruption, bos)
    found = [
        (run.rows, accuracy(run.logits, run.pairs).bool().cpu(), measured(measure, run.logits, run.pairs).cpu())
        for run in runs(model, pairs, batch_size=batch_size, progress=name if progress else None)
    ]
    rows, correct, values = (torch.cat(parts) for parts in zip(*found, strict=True))
    place = rows.argsort()
    return Capability(name, name_of(measure), pairs, correct[place], values[place], chance_of(pairs), cluster_by)


def chance_of(pairs: TokenizedPairs) -> float:
    """Accuracy of guessing among the answers."""
    right, wrong = ((ids != NO_ANSWER).sum(-1).double() for ids in (pairs.answers, pairs.wrong_answers))
    return float((right / (right + wrong)).mean())
