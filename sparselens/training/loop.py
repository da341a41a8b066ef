"""Constrained post-training: minimise the expected share of open attention edges while the task loss stays at target.

    loss = edges / edges_before + multiplier * (task loss - target)     edges: expected share of visible pairs (geco.py)
1. The dense control finds a learning rate that does not damage the model while every gate is open (control.py).
2. Each step runs one batch through the gated model with noise and takes one optimiser step (step.py). The first
   `config.layerwise_steps` train layer by layer instead, on the dense model's residual streams (layerwise.py).
3. Every few steps the model is evaluated with hard gates on held-out data, and the multiplier is updated from that loss
   (geco.py). While the learning rate is high, the loss may exceed the target by `config.allowance`.
4. The run returns the sparsest state that met the target or, if none did (`result.feasible` is False), the one with
   the lowest loss (best.py).
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from sparselens.files.locks import locked
from sparselens.training.batches import Batches, refuse_text
from sparselens.training.config import PostTrainConfig
from sparselens.training.losses import Batch, Loss, next_token_loss
from sparselens.training.result import PostTrainResult
from sparselens.training.run import OnEvaluation, Run


def post_train(
    model: nn.Module,
    batches: Batches,
    config: PostTrainConfig | None = None,
    *,
    held_out: Sequence[Batch],
    loss: Loss = next_token_loss,
    dense: nn.Module | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    finish: bool = False,
    progress: bool = True,
    on_evaluation: OnEvaluation | None = None,
    accelerator: Accelerator | None = None,
) -> PostTrainResult:
    """Close as many gates of a gated model as the task loss allows, in place.

    >>> model = sl.sparsify(sl.load("gpt2"), gate_bias=3e4)
    >>> result = sl.post_train(model, batches, sl.PostTrainConfig(steps=500), held_out=held_out, out="run")
    >>> sl.save(model, "gpt2-sparse", result=result)

    Args:
        model: a gated TransformerLens or transformers model, see `sparsify`
        batches: a function from an index to a batch, or an iterable, which is repeated. With several processes each
            batch is split evenly over them
        held_out: batches on which the target is set and checked
        loss: mean nats per token, from logits and batch. Over the batches and processes of a step, and over held-out
            batches, the library's own losses are averaged by tokens that count (padding does not), other losses by
            rows; the expected share of edges is averaged over the batches and processes of a step
        dense: the dense model that defines the target and the distillation. Default: `model` itself with all gates
            open and any adapters off. Required if `model` has been post-trained before
        out: folder for the checkpoint and `log.jsonl`. If given, Ctrl-C and SIGTERM end the run after the current step,
            with a checkpoint
        resume: continue from the checkpoint in `out`, with the same dense model and data. The result equals that of an
            uninterrupted run, up to rounding if the number of processes differs
        finish: end the run of the checkpoint at its current step and return the best state so far; the run can still be
            resumed. With a different `target` or `margin`, returns the better of that state and the current one
        progress: report progress on standard error
        on_evaluation: called in the main process with the history so far after every held-out evaluation; for instance
            `analyses.live_training_figure()`
        accelerator: default: a new one with the precision set in `config`

    The model is left in evaluation mode, with its `.grad` cleared; with FSDP its weights stay sharded.

    Raises:
        ValueError: batches are text, the model has no gates, a loss or gradient is not finite (the model then keeps the
            weights from before that step), a trained parameter has half precision, `out` holds another run or is in use
            by another process, the checkpoint is damaged, or `layerwise_steps` is set with several processes.
        KeyboardInterrupt: the run was interrupted. With `out`, `resume=True` continues it.
    """
    refuse_text(batches, held_out)
    config = config or PostTrainConfig()
    devices = range(torch.cuda.device_count())  # explicit, since by default torch warns if there are several
    with torch.random.fork_rng(devices), locked(out) if out is not None else nullcontext():
        run = Run(model, config, loss, held_out, dense or model, out, accelerator)
        try:
            run.start(resume, finish)
            return run.finish() if finish else run.train(batches, progress, on_evaluation)
        finally:
            run.close()
