"""Layer-by-layer training: a cheap first phase of post-training.

1. Run the dense model on a batch and record the input and output of each of its attention layers.
2. Run each gated attention on the dense model's input. Its error is the relative change of the residual stream behind,
       |x + ours - (x + dense)|^2 / |x + dense|^2            mean over tokens, then over layers
3. The gradient of a layer's error reaches only that layer's attention. A step therefore costs one dense forward pass
   and one forward and backward pass through the attention layers: half of a full step with a teacher.
Later layers do not see, and cannot correct, errors of earlier ones. The following steps through the whole model do, and
start with most gates closed. One-shot pruning reconstructs layer by layer, too, as in SparseGPT (Frantar & Alistarh
2023); training gates this way as a first phase is ours.
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

    stream: Stream  # input of the block
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Stream


def layerwise_fit(
    model: nn.Module, teacher: Teacher, loss: Loss
) -> Callable[[Batch], tuple[Float[Tensor, ""], Float[Tensor, ""]]]:
    """The `Objective.fit` of layer-by-layer steps: mean relative error of the attention layers on dense inputs."""

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
    """Records the calls of all attention layers inside the `with` block, by layer name."""
    calls: dict[str, _Call] = {}
    streams: dict[str, Stream] = {}
    with ExitStack() as hooks:
        for name, attention in attentions(model).items():
            block = _parent(model, attention)

            def enter(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                streams[name] = args[0] if args else kwargs["hidden_states"]

            def leave(_: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
                fresh = {k: None if isinstance(v, Cache) else v for k, v in kwargs.items()}  # a used cache is full
                calls[name] = _Call(streams[name], args, fresh, _stream_of(output))

            hooks.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
            hooks.callback(attention.register_forward_hook(leave, with_kwargs=True).remove)
        yield calls


def _parent(model: nn.Module, child: nn.Module) -> nn.Module:
    return next(module for module in model.modules() if any(inner is child for inner in module.children()))


def _stream_of(output: Any) -> Stream:
    return output if isinstance(output, Tensor) else output[0]


def _run_without_logits(model: nn.Module, batch: Batch) -> None:
    """Run the model, if possible computing logits at one position only: they are costly in small models, and unused."""
    fewer = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    logits_of(model, batch, **fewer)
