"""Task losses: what a model is trained on. Each takes logits and a batch and returns mean nats per token.

A batch is a tensor of tokens, or a mapping with `input_ids` and, where they apply, `attention_mask` and `labels`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Batch = Int[Tensor, "_batch _pos"] | Mapping[str, Tensor]  # underscores: two batches may differ in size
Logits = Float[Tensor, "batch pos d_vocab"]
Loss = Callable[[Logits, Any], Float[Tensor, ""]]

IGNORED = -100  # the label of a position that does not count, as in transformers


def tokens_of(batch: Batch) -> Int[Tensor, "batch pos"]:
    """The token ids of a batch."""
    return batch if isinstance(batch, Tensor) else batch["input_ids"]


def next_token_loss(logits: Logits, batch: Batch) -> Float[Tensor, ""]:
    """Cross-entropy of every next token. Labels, where given, are shifted here, as transformers does."""
    tokens = tokens_of(batch)
    if not isinstance(batch, Tensor):
        tokens = batch.get("labels", tokens)
        if "attention_mask" in batch:
            tokens = tokens.masked_fill(batch["attention_mask"] == 0, IGNORED)
    return _cross_entropy(logits[:, :-1], tokens[:, 1:])


def same_position_loss(logits: Logits, batch: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """Cross-entropy of the token that belongs at each labelled position itself, for models that fill in blanks."""
    return _cross_entropy(logits, batch["labels"])


def _cross_entropy(logits: Logits, labels: Int[Tensor, "batch pos"]) -> Float[Tensor, ""]:
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)


def distillation_loss(logits: Logits, teacher: Logits, batch: Batch) -> Float[Tensor, ""]:
    """KL(teacher || model) in nats per token over all positions that are not padding."""
    target = torch.log_softmax(teacher.float(), dim=-1)
    model = torch.log_softmax(logits.float(), dim=-1)
    divergence = nn.functional.kl_div(model, target, reduction="none", log_target=True).sum(-1)
    mask = None if isinstance(batch, Tensor) else batch.get("attention_mask")
    return divergence.mean() if mask is None else (divergence * mask).sum() / mask.sum()


def logits_of(model: nn.Module, batch: Batch) -> Logits:
    """Run a TransformerLens or transformers model on a batch."""
    extra = {} if isinstance(batch, Tensor) else {k: v for k, v in batch.items() if k not in ("input_ids", "labels")}
    output: Any = model(tokens_of(batch), **extra)
    return output if isinstance(output, Tensor) else output.logits
