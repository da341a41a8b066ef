"""Metrics of the logits at the answer's position: one number per prompt, which the caller reduces.

1. A metric is a function of logits `batch pos d_vocab` and `TokenizedPairs`; wherever one is wanted, a function of your
   own or the name of one of these will do.
2. Where a prompt has several right or wrong answers, logits are averaged over them and probabilities summed.

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
    """Probability of all right answers minus that of all wrong ones, between -1 and 1."""
    probabilities = end_logits(logits, pairs).softmax(-1)
    return _sum(probabilities, pairs.answers) - _sum(probabilities, pairs.wrong_answers)


def answer_probability(logits: Logits, pairs: TokenizedPairs) -> PerPrompt:
    """Probability of all right answers together."""
    return _sum(end_logits(logits, pairs).softmax(-1), pairs.answers)


def rank(logits: Logits, pairs: TokenizedPairs) -> PerPrompt:
    """Rank of the best right answer in the whole vocabulary; 1 is the model's first choice. Has no gradient."""
    at_end = end_logits(logits, pairs)
    return 1.0 + (at_end > _best(at_end, pairs.answers)[:, None]).sum(-1)


def accuracy(logits: Logits, pairs: TokenizedPairs) -> PerPrompt:
    """1 where the best right answer scores above every wrong one, else 0; a tie is wrong. Has no gradient.

    Chance is k / (k + k_wrong): a half with one answer of each kind.
    """
    at_end = end_logits(logits, pairs)
    return (_best(at_end, pairs.answers) > _best(at_end, pairs.wrong_answers)).to(at_end.dtype)


def kl_divergence(logits: Logits, pairs: TokenizedPairs) -> PerPrompt:
    """KL(reference || logits) in nats at the answer's position; 0 where the clean run is unchanged.

    Raises:
        ValueError: the pairs carry no reference (`sparselens.with_reference`).
    """
    if pairs.reference is None:
        raise ValueError("kl_divergence compares with the clean run: pass sparselens.with_reference(model, pairs)")
    target = pairs.reference.to(logits.device)
    return (target.exp() * (target - end_logits(logits, pairs).log_softmax(-1))).sum(-1)


METRICS: Mapping[str, Metric] = {
    metric.__name__: metric
    for metric in (logit_difference, probability_difference, answer_probability, rank, accuracy, kl_divergence)
}


def find_metric(metric: Metric | str) -> Metric:
    """The metric of that name; a function is returned as it is.

    Raises:
        ValueError: there is no metric of that name, or the function does not take (logits, pairs).
    """
    if not isinstance(metric, str):
        try:
            signature(metric).bind(None, None)
        except TypeError as error:
            raise ValueError(
                f"{metric!r:.80} is no metric ({error}): want a function of (logits, pairs) that returns one number "
                "for each prompt, such as sl.metrics.logit_difference, or its name"
            ) from error
        return metric
    if metric not in METRICS:
        raise unknown("metric", metric, (*METRICS, "or a function"))
    return METRICS[metric]


def measured(metric: Metric, logits: Logits, pairs: TokenizedPairs) -> Float[Tensor, " batch"]:
    """The metric of every prompt.

    Raises:
        ValueError: it does not return one number for each prompt, or a prompt's depends on what else is in the batch.
    """
    values: Any = metric(logits, pairs)
    if not isinstance(values, Tensor) or values.shape != logits.shape[:1]:
        said = f"shape {list(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise ValueError(f"the metric gave {said} for {len(logits)} prompts: want a tensor, one value for each prompt")
    if metric not in METRICS.values() and len(logits) > 1:
        with torch.no_grad():
            alone, beside = metric(logits[:1], pairs[:1]).flatten(), values[:1].detach()
        if len(alone) != 1 or not torch.allclose(alone, beside.to(alone), rtol=1e-3, atol=1e-4, equal_nan=True):
            raise ValueError(
                f"the metric gives a prompt {float(beside):.4g} beside others and {alone.tolist()} alone, so that "
                "results would depend on batch_size: want one that looks at each prompt by itself"
            )
    return values


def name_of(metric: Metric | str) -> str:
    """What tables and figures call a metric."""
    return metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)


def end_logits(logits: Logits, pairs: TokenizedPairs) -> Float[Tensor, "batch d_vocab"]:
    """The logits at the answer's position, in float32 at least."""
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
