"""Task losses: functions of logits and a batch that return mean nats per token.

A batch is a tensor of token ids, or a mapping with `input_ids` and, optionally, `attention_mask` and `labels`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparselens.models.unwrapped import without_peft

Batch = Int[Tensor, "_batch _pos"] | Mapping[str, Tensor]  # underscores: two batches may differ in size
Logits = Float[Tensor, "batch pos d_vocab"]
Loss = Callable[[Logits, Any], Float[Tensor, ""]]

IGNORED = -100  # label of positions to ignore, as in transformers
_AT_ONCE = 2**26  # logits processed at once: 256 MiB in float32


def tokens_of(batch: Batch) -> Int[Tensor, "batch pos"]:
    """The token ids of a batch.

    Raises:
        ValueError: it is not a batch (text, for instance).
    """
    if isinstance(batch, Tensor):
        return batch
    given: Any = batch
    if not isinstance(given, Mapping):
        raise ValueError(
            f"a batch is {given!r:.60}: want token ids, Int[batch pos], or a mapping with input_ids. "
            "model.to_tokens(text) tokenizes short texts; for large ones use `sparselens post-train --data` or "
            "sparselens.training.text.prepare"
        )
    return given["input_ids"]


@dataclass(frozen=True)
class TokenLoss:
    """Mean cross-entropy over the tokens that count: those that are neither padding nor labelled IGNORED."""

    ahead: int  # the logits at position i predict the label at i + ahead

    def __call__(self, logits: Logits, batch: Batch) -> Float[Tensor, ""]:
        """Nats per token."""
        labels = self._labels(batch)
        return _summed(_nats, logits.flatten(0, 1), labels.flatten()) / (labels != IGNORED).sum()

    def count(self, batch: Batch) -> int:
        """Number of tokens in the mean."""
        return int((self._labels(batch) != IGNORED).sum())

    def counted(self, batch: Batch) -> Bool[Tensor, "batch pos"]:
        """Positions whose predictions enter the loss."""
        return self._labels(batch) != IGNORED

    def _labels(self, batch: Batch) -> Int[Tensor, "batch pos"]:
        """The label that each position predicts."""
        labels = tokens_of(batch)
        if isinstance(batch, Tensor):
            return self._shifted(labels)
        labels = batch.get("labels", labels) if self.ahead else batch["labels"]
        if "attention_mask" not in batch:
            return self._shifted(labels)
        padding = batch["attention_mask"] == 0
        labels = self._shifted(labels.masked_fill(padding, IGNORED))
        return labels.masked_fill(padding, IGNORED)  # left padding makes no prediction: it has seen nothing

    def _shifted(self, labels: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
        return nn.functional.pad(labels[:, self.ahead :], (0, self.ahead), value=IGNORED)


next_token_loss = TokenLoss(ahead=1)  # given labels are shifted, too, as transformers does
same_position_loss = TokenLoss(ahead=0)  # for models that fill in blanks: each position predicts its own label


def weight_of(loss: Loss, batch: Batch) -> int:
    """Weight of a batch in a mean over batches: the tokens that count, or the rows if the loss has no count."""
    return loss.count(batch) if isinstance(loss, TokenLoss) else len(tokens_of(batch))


def distilled(loss: Loss, batch: Batch) -> Bool[Tensor, "batch pos"] | None:
    """Positions to distil: those that the loss counts or, if it cannot count, all but padding; None means all."""
    if isinstance(batch, Tensor):
        return None
    if isinstance(loss, TokenLoss):
        return loss.counted(batch)
    return batch["attention_mask"].bool() if "attention_mask" in batch else None


def distillation_loss(
    logits: Logits, teacher: Logits, counted: Bool[Tensor, "batch pos"] | None = None
) -> Float[Tensor, ""]:
    """KL(teacher || model) in nats per token, over all positions or only the counted ones."""
    where = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device) if counted is None else counted
    return _summed(_divergence, logits.flatten(0, 1), teacher.flatten(0, 1), where.flatten()) / where.sum()


def _nats(logits: Float[Tensor, "token d_vocab"], labels: Int[Tensor, " token"]) -> Float[Tensor, ""]:
    return nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")


def _divergence(
    logits: Float[Tensor, "token d_vocab"], teacher: Float[Tensor, "token d_vocab"], counted: Bool[Tensor, " token"]
) -> Float[Tensor, ""]:
    target, model = (torch.log_softmax(x.float(), dim=-1) for x in (teacher, logits))
    return (nn.functional.kl_div(model, target, reduction="none", log_target=True).sum(-1) * counted).sum()


def _summed(function: Callable[..., Float[Tensor, ""]], *by_token: Tensor) -> Float[Tensor, ""]:
    """Sum a function over tokens in chunks, since each token needs several float32 rows the size of the vocabulary.

    The backward pass recomputes each chunk. Few tokens are processed as a whole, without recomputation.
    """
    logits = by_token[0]
    some = max(1, _AT_ONCE // logits.shape[-1])
    if len(logits) <= some:
        return function(*by_token)
    parts = zip(*(x.split(some) for x in by_token), strict=True)
    return torch.stack([checkpoint(function, *part, use_reentrant=False) for part in parts]).sum()


def logits_of(model: nn.Module, batch: Batch, **options: Any) -> Logits:
    """Logits of a TransformerLens or transformers model on a batch; `options` are passed to its `forward`."""
    extra = {} if isinstance(batch, Tensor) else {k: v for k, v in batch.items() if k not in ("input_ids", "labels")}
    if "attention_mask" in extra and "position_ids" not in extra and _numbers_columns(model):
        extra["position_ids"] = (extra["attention_mask"].long().cumsum(-1) - 1).clamp_min(0)
    output: Any = model(tokens_of(batch), **extra, **options)
    return output if isinstance(output, Tensor) else output.logits


def _numbers_columns(model: nn.Module) -> bool:
    """Whether the model uses column indices as positions, so that left padding shifts the positions of a prompt.

    GPT-2, GPT-Neo and similar transformers models do, unless position ids are passed. A TransformerBridge passes them.
    """
    network = without_peft(getattr(model, "module", model))  # wrapped for training on several devices
    return hasattr(getattr(network, "base_model", None), "wpe") and not hasattr(network, "original_model")
