"""The logits of a model, dense or sparse, at the answer's position of prompt pairs, in evaluation mode."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparselens.bars import progress_bar
from sparselens.prompts.checks import refuse_misfits
from sparselens.prompts.metrics import end_logits
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.training.evaluation import evaluating
from sparselens.training.losses import logits_of


def answer_logits(
    model: nn.Module, pairs: TokenizedPairs, corrupted: bool = False, batch_size: int = 32, progress: str | None = None
) -> Float[Tensor, "batch d_vocab"]:
    """The logits at the answer's position of every clean (or corrupted) prompt, on the model's device.

    >>> answer_logits(model, pairs).argmax(-1)  # Int[" batch"]: the model's answers

    Args:
        progress: label of the progress bar; None: no bar

    Raises:
        ValueError: a logit is not finite. Says in which prompt.
    """
    refuse_misfits(model, pairs)
    device = next(model.parameters()).device
    found: Tensor | None = None
    with evaluating(model), torch.no_grad():
        bar = progress_bar(len(pairs), progress, "prompt", progress is not None)
        for rows, batch in pairs.batches(batch_size):
            bar.update(len(rows))
            moved = batch.to(device)
            logits = end_logits(logits_of(model, moved.inputs(corrupted)), moved)
            if not logits.isfinite().all():
                row = int(rows[int((~logits.isfinite()).any(-1).nonzero()[0])])
                raise ValueError(f"the model's logits are not finite in prompt {row}")
            if found is None:
                found = logits.new_empty(len(pairs), logits.shape[-1])
            found[rows.to(device)] = logits
        bar.close()
    assert found is not None
    return found


def with_reference(model: nn.Module, pairs: TokenizedPairs, batch_size: int = 32) -> TokenizedPairs:
    """The same pairs with the model's clean log-probabilities, the reference of `metrics.kl_divergence`.

    >>> patch_heads(model, with_reference(model, pairs), "kl_divergence")
    """
    return replace(pairs, reference=answer_logits(model, pairs, batch_size=batch_size).log_softmax(-1))
