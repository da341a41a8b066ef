"""Metrics of the logits at the answer position: one number per prompt.

1. A metric is a function of logits `batch pos d_vocab` and `TokenizedPairs`. Arguments called `metric` take such a
   function, which may be your own, or the name of one defined here.
2. If a prompt has several right or wrong answers, logits are averaged and probabilities summed over them.

>>> values = sl.metrics.logit_difference(model(pairs.clean), pairs)
>>> values.shape  # [batch]
"""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparselens.names import unknown
from sparselens.prompts.answers import NO_ANSWER
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.training.losses import Logits

PerPrompt = Float[Tensor, " batch"]
Metric = Callable[[Logits, TokenizedPairs], PerPrompt]


def logit_difference(logits: Logits, pairs: TokenizedPairs) -> PerPrompt:
    """Mean logit of the right answers minus mean logit of the wrong ones."""
    at_end = end_logits(logits, pairs)
    return _mean(at_end, pairs.answers) - _mean(at_end, pairs.wrong_answers)


def probability_difference(logits: Logits, pairs: TokenizedPairs) -> PerPrompt:
    """Total probability of the right answers minus that of the wrong ones, between -1 and 1."""
    probabilities = end_logits(logits, pairs).softmax(-1)
    return _sum(probabilities, pairs.answers) - _sum(probabilities, pairs.wrong_answers)


def answer_probability(logits: Logits, pairs: TokenizedPairs) -> PerPrompt:
    """Total probability of the right answers."""
    return _sum(end_logits(logits, pairs).softmax(-1), pairs.answers)


def rank(logits: Logits, pairs: TokenizedPairs) -> PerPrompt:
    """Rank of the best right answer in the whole vocabulary; 1 is the model's first choice. Has no gradient."""
    at_end = end_logits(logits, pairs)
    return 1.0 + (at_end > _best(at_end, pairs.answers)[:, None]).sum(-1)


def accuracy(logits: Logits, pairs: TokenizedPairs) -> PerPrompt:
    """1 if the best right answer scores above every wrong one, else 0; ties count as wrong. Has no gradient.

    Chance level is k / (k + k_wrong), which is 1/2 with one answer of each kind.
    """
    at_end = end_logits(logits, pairs)
    return (_best(at_end, pairs.answers) > _best(at_end, pairs.wrong_answers)).to(at_end.dtype)


def kl_divergence(logits: Logits, pairs: TokenizedPairs) -> PerPrompt:
    """KL(reference || logits) in nats at the answer position; 0 if the predictions of the clean run are unchanged.

    Raises:
        ValueError: the pairs have no reference (`sparselens.with_reference`).
    """
    if pairs.reference is None:
        raise ValueError("kl_divergence needs the clean run: pass sparselens.with_reference(model, pairs) as pairs")
    target = pairs.reference.to(logits.device)
    return (target.exp() * (target - end_logits(logits, pairs).log_softmax(-1))).sum(-1)


METRICS: Mapping[str, Metric] = {
    metric.__name__: metric
    for metric in (logit_difference, probability_difference, answer_probability, rank, accuracy, kl_divergence)
}


def find_metric(metric: Metric | str) -> Metric:
    """The metric of that name; functions are returned unchanged.

    Raises:
        ValueError: there is no metric of that name, or the function does not take (logits, pairs).
    """
    if not isinstance(metric, str):
        try:
            signature(metric).bind(None, None)
        except TypeError as error:
            raise ValueError(
                f"{metric!r:.80} is not a metric ({error}): want a function of (logits, pairs) that returns one number "
                "per prompt, such as sl.metrics.logit_difference, or its name"
            ) from error
        return metric
    if metric not in METRICS:
        raise unknown("metric", metric, (*METRICS, "or a function"))
    return METRICS[metric]


def measured(metric: Metric, logits: Logits, pairs: TokenizedPairs) -> Float[Tensor, " batch"]:
    """The metric of every prompt.

    Raises:
        ValueError: it does not return one number per prompt, or its value depends on the other prompts of the batch.
    """
    values: Any = metric(logits, pairs)
    if not isinstance(values, Tensor) or values.shape != logits.shape[:1]:
        found = f"shape {list(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise ValueError(f"the metric gave {found} for {len(logits)} prompts: want a tensor, one value for each prompt")
    if metric not in METRICS.values() and len(logits) > 1:
        with torch.no_grad():
            alone, batched = metric(logits[:1], pairs[:1]).flatten(), values[:1].detach()
        if len(alone) != 1 or not torch.allclose(alone, batched.to(alone), rtol=1e-3, atol=1e-4, equal_nan=True):
            raise ValueError(
                f"the metric of a prompt is {float(batched):.4g} in a batch but {alone.tolist()} alone, so results "
                "would depend on batch_size: use a metric that scores each prompt independently"
            )
    return values


def name_of(metric: Metric | str) -> str:
    """The name of a metric in tables and figures."""
    return metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)


def end_logits(logits: Logits, pairs: TokenizedPairs) -> Float[Tensor, "batch d_vocab"]:
    """The logits at the answer position, in at least float32."""
    rows = torch.arange(len(logits), device=logits.device)
    at_end = logits[rows, pairs.end.to(logits.device)]
    return at_end if at_end.dtype == torch.float64 else at_end.float()


def _picked(values: Tensor, ids: Tensor, filling: float) -> Float[Tensor, "batch k"]:
    ids = ids.to(values.device)
    return values.gather(-1, ids.clamp_min(0)).masked_fill(ids == NO_ANSWER, filling)


def _sum(values: Tensor, ids: Tensor) -> PerPrompt:
    return _picked(values, ids, 0.0).sum(-1)


def _mean(values: Tensor, ids: Tensor) -> PerPrompt:
    return _sum(values, ids) / (ids != NO_ANSWER).sum(-1).to(values.device)


def _best(values: Tensor, ids: Tensor) -> PerPrompt:
    return _picked(values, ids, -torch.inf).amax(-1)
