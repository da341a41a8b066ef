"""Gated attention without a tensor of all pairs: which implementation runs, and what it is given.

    "eager"    every pair as a tensor, which hooks can see and edit; the reference
    "flex"     PyTorch's FlexAttention: long evaluation, on a CPU too, where it has no backward pass
    "triton"   our kernel, in training and evaluation; on an NVIDIA GPU
    "auto"     "triton" where it can run, else "eager"
On a GPU "auto" does not evaluate with "flex", which takes four passes for what the kernel does in one, and compiles
anew for new lengths; so one code decides in training and in evaluation whether a gate is open. On a CPU it is "eager":
short texts, which are what a CPU trains on, are fastest so, and nothing has to be compiled.
"""

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparselens.gates.noise import Words
from sparselens.gates.spans import Spans

Implementation = Literal["auto", "eager", "flex", "triton"]
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)

Queries = Float[Tensor, "batch head query_pos d_head"]
Keys = Float[Tensor, "batch kv_head key_pos d_head"]


class Call(NamedTuple):
    """One attention call, but for queries, keys and values."""

    spans: Spans
    scale: float
    gate_bias: float
    temperature: float = 1.0
    softcap: float | None = None
    words: Words | None = None  # the training noise, see `noise.row_words`; None in evaluation
    sinks: Float[Tensor, " head"] | None = None  # a score more for each head, which takes weight and writes nothing
    recorded: bool = True  # are `expected` and `opened` needed?


class Attended(NamedTuple):
    """What a fused call returns."""

    output: Queries
    expected: Float[Tensor, "batch head"]  # edges; carries the gradient
    opened: Float[Tensor, "batch head"]  # edges


Fused = Callable[[Queries, Keys, Keys, Call], Attended]


def why_no_triton(device: torch.device) -> str:
    """Why the kernel cannot run on this device; empty if it can."""
    if find_spec("triton") is None:
        return "the triton package is missing: pip install 'sparselens[gpu]'"
    if device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":  # Triton's own word for a trial on a CPU
        return ""
    return f"the kernel runs on an NVIDIA GPU, not on {device.type}: move the model there first"


def resolve(implementation: str, device: torch.device) -> str:
    """What "auto" means on this device.

    Raises:
        ValueError: no such implementation, or it cannot run there.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"no such implementation: {implementation!r} (want {', '.join(IMPLEMENTATIONS)})")
    if implementation == "auto":
        return "triton" if device.type == "cuda" and not why_no_triton(device) else "eager"
    if implementation == "triton" and (reason := why_no_triton(device)):
        raise ValueError(f"implementation='triton': {reason}; or leave it at 'auto'")
    return implementation


def why_eager(
    implementation: str,
    module: nn.Module,
    query: Queries,
    value: Float[Tensor, "batch kv_head key_pos d_value"],
    mask: Any,
    *,
    sinks: Float[Tensor, " head"] | None = None,
    dropout: float = 0.0,
    output_attentions: bool = False,
) -> str:
    """Why a call has to run eagerly though another implementation was chosen; empty if it need not."""
    from transformers.utils import output_capturing

    collected = getattr(output_capturing, "_active_collector", None)  # where transformers notes what is wanted
    if output_attentions or "attentions" in ((collected and collected.get()) or ()):
        return "attention weights are wanted"
    if not isinstance(mask, Spans | None):
        return "the mask is not one run of keys per query"
    if module.training and dropout:
        return f"attention dropout is {dropout:g}: set it to 0 in the model's config"
    if implementation == "triton":
        if query.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            return f"the kernel does not know {query.dtype}"
        if query.shape[-1] > 256 or query.shape[-1] != value.shape[-1]:
            return f"the kernel wants heads of one size up to 256, not {query.shape[-1]} and {value.shape[-1]}"
    if implementation == "flex":
        if query.dtype == torch.float64:
            return "compiled FlexAttention does not know torch.float64"
        if torch.is_grad_enabled() and query.device.type == "cpu" and (query.requires_grad or value.requires_grad):
            return "FlexAttention has no backward pass on a CPU"
        if torch.is_grad_enabled() and sinks is not None and sinks.requires_grad:
            return "FlexAttention gives no gradient to attention sinks"
    return ""


def fused(implementation: str) -> Fused:
    """The function of an implementation; its libraries are loaded when it is first used."""
    if implementation == "flex":
        from sparselens.gates.flex import flex_attend

        return flex_attend
    from sparselens.gates.triton_attention import triton_attend

    return triton_attend
