"""Run a model, dense or sparse, on prompt pairs and return its logits at the answer position."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparselens.bars import progress_bar
from sparselens.gates.modes import evaluating
from sparselens.prompts.checks import refuse_misfits
from sparselens.prompts.metrics import end_logits
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.training.losses import logits_of


def answer_logits(
    model: nn.Module, pairs: TokenizedPairs, corrupted: bool = False, batch_size: int = 32, progress: str | None = None
) -> Float[Tensor, "batch d_vocab"]:
    """The logits at the answer position of every clean (or corrupted) prompt, on the model's device.

    >>> answer_logits(model, pairs).argmax(-1)  # Int[" batch"]: the model's answers

    Args:
        progress: label of the progress bar; None: no bar

    Raises:
        ValueError: logits are not finite.
    """
    result: Tensor | None = None
    for run in runs(model, pairs, corrupted, batch_size, progress):
        at_end = end_logits(run.logits, run.pairs)
        if result is None:
            result = at_end.new_empty(len(pairs), at_end.shape[-1])
        result[run.rows.to(at_end.device)] = at_end
    assert result is not None
    return result


class Run(NamedTuple):
    """A forward pass on a batch of prompts."""

    rows: Int[Tensor, " row"]  # their indices among all pairs
    pairs: TokenizedPairs  # on the model's device
    logits: Float[Tensor, "row pos d_vocab"]


def runs(
    model: nn.Module, pairs: TokenizedPairs, corrupted: bool = False, batch_size: int = 32, progress: str | None = None
) -> Iterator[Run]:
    """Run all clean (or corrupted) prompts in evaluation mode, without gradients; arguments as in `answer_logits`."""
    refuse_misfits(model, pairs)
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad(), progress_bar(len(pairs), progress, "prompt", progress is not None) as bar:
        for rows, batch in pairs.batches(batch_size):
            moved = batch.to(device)
            logits = logits_of(model, moved.inputs(corrupted))
            broken = (~end_logits(logits, moved).isfinite()).any(-1).nonzero()
            if len(broken):
                raise ValueError(f"the model's logits are not finite in prompt {int(rows[int(broken[0])])}")
            bar.update(len(rows))
            yield Run(rows, moved, logits)


def with_reference(model: nn.Module, pairs: TokenizedPairs, batch_size: int = 32) -> TokenizedPairs:
    """Add the model's log-probabilities on the clean prompts to pairs, as the reference of `metrics.kl_divergence`.

    >>> patch_heads(model, with_reference(model, pairs), "kl_divergence")
    """
    return replace(pairs, reference=answer_logits(model, pairs, batch_size=batch_size).log_softmax(-1))
