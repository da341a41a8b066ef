"""Layer by layer: the cheap start of post-training.

1. The dense model reads a batch; the input and output of each of its attentions are kept.
2. Each gated attention gets the dense model's input. Its error is how far the residual stream behind it moves,
       |x + ours - (x + dense)|^2 / |x + dense|^2            mean over tokens, then over layers
3. The gradient of one layer's error reaches that layer's attention alone. So a step costs a dense forward pass and one
   pass, forward and backward, through the attentions: half of a step through the whole model with a teacher.
No error of an earlier layer is seen, or mended, by a later one. That takes the steps through the whole model, which
then begin with most gates closed. Layer-wise reconstruction is how one-shot pruning works, as in SparseGPT (Frantar &
Alistarh 2023); gates trained that way, as a start, are ours.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Cache

from sparselens.training.losses import Batch, Loss, distilled, logits_of
from sparselens.training.teacher import Teacher
from sparselens.training.trained import attentions

Stream = Float[Tensor, "batch pos d_model"]


@dataclass
class _Call:
    """One attention call of the dense model."""

    stream: Stream  # what the block read
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Stream


def layerwise_fit(
    model: nn.Module, teacher: Teacher, loss: Loss
) -> Callable[[Batch], tuple[Float[Tensor, ""], Float[Tensor, ""]]]:
    """The mean relative error of the model's attentions on the dense model's streams, as the fit of a step."""

    def fit(batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        with torch.no_grad(), teacher.at_work() as dense, _calls(dense) as calls:
            _run_without_logits(dense, batch)
        counted = distilled(loss, batch)
        errors = [_error(part, calls[name], counted) for name, part in attentions(model).items()]
        error = torch.stack(errors).mean()
        return error, error

    return fit


def _error(attention: nn.Module, call: _Call, counted: Tensor | None) -> Float[Tensor, ""]:
    ours = _stream_of(attention(*call.args, **call.kwargs)).float()
    dense = call.output.float()
    error = (ours - dense).pow(2).sum(-1) / (call.stream.float() + dense).pow(2).sum(-1)
    return error.mean() if counted is None else (error * counted).sum() / counted.sum()


@contextmanager
def _calls(model: nn.Module) -> Iterator[dict[str, _Call]]:
    """What every attention of the model reads and writes inside the block, by the attention's name."""
    calls: dict[str, _Call] = {}
    streams: dict[str, Stream] = {}
    with ExitStack() as hooks:
        for name, attention in attentions(model).items():
            block = _parent(model, attention)

            def enter(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                streams[name] = args[0] if args else kwargs["hidden_states"]

            def leave(_: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
                fresh = {k: None if isinstance(v, Cache) else v for k, v in kwargs.items()}  # full already
                calls[name] = _Call(streams[name], args, fresh, _stream_of(output))

            hooks.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
            hooks.callback(attention.register_forward_hook(leave, with_kwargs=True).remove)
        yield calls


def _parent(model: nn.Module, child: nn.Module) -> nn.Module:
    return next(module for module in model.modules() if any(inner is child for inner in module.children()))


def _stream_of(output: Any) -> Stream:
    return output if isinstance(output, Tensor) else output[0]


def _run_without_logits(model: nn.Module, batch: Batch) -> None:
    """Logits are much of a small model's work, and unused here."""
    fewer = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    logits_of(model, batch, **fewer)
