"""Implementations of gated attention: which one runs, and the interface of the fused ones.

    "eager"    the reference: a tensor of all query-key pairs, which hooks can see and edit
    "flex"     PyTorch's FlexAttention, for evaluation on long texts; also on a CPU, where it has no backward pass
    "triton"   our kernel, for training and evaluation on an NVIDIA GPU
    "auto"     "triton" where it can run, else "eager"
"auto" never evaluates with "flex" on a GPU: flex takes four passes where the kernel takes one, it recompiles for new
lengths, and this way the same code decides in training and in evaluation whether a gate is open. On a CPU "auto" is
"eager", which needs no compilation and is fastest on short texts, which are what a CPU trains on.
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
from sparselens.names import unknown

Implementation = Literal["auto", "eager", "flex", "triton"]
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)

Queries = Float[Tensor, "batch head query_pos d_head"]
Keys = Float[Tensor, "batch kv_head key_pos d_head"]


class Call(NamedTuple):
    """One attention call, apart from queries, keys and values."""

    spans: Spans
    scale: float
    gate_bias: float
    temperature: float = 1.0
    softcap: float | None = None
    words: Words | None = None  # seeds of the training noise (`noise.row_words`); None in evaluation
    sinks: Float[Tensor, " head"] | None = None  # an extra score per head that takes weight and writes nothing
    recorded: bool = True  # whether `expected` and `opened` are needed


class Attended(NamedTuple):
    """Result of one fused attention call."""

    output: Queries
    expected: Float[Tensor, "batch head"]  # expected number of open edges; differentiable
    opened: Float[Tensor, "batch head"]  # number of open edges


Fused = Callable[[Queries, Keys, Keys, Call], Attended]


def why_no_triton(device: torch.device) -> str:
    """Why the kernel cannot run on this device; empty if it can."""
    if find_spec("triton") is None:
        return "the triton package is missing: pip install 'sparselens[gpu]'"
    if device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":  # Triton's own switch for trying it on a CPU
        return ""
    return f"the kernel runs on an NVIDIA GPU, not on {device.type}: move the model there first"


def resolve(implementation: str, device: torch.device) -> str:
    """The implementation to run on this device: decides what "auto" means, and checks the others.

    Raises:
        ValueError: no such implementation, or it cannot run on this device.
    """
    if implementation not in IMPLEMENTATIONS:
        raise unknown("implementation", implementation, IMPLEMENTATIONS)
    if implementation == "auto":
        return "triton" if device.type == "cuda" and not why_no_triton(device) else "eager"
    if implementation == "triton" and (reason := why_no_triton(device)):
        raise ValueError(f"implementation='triton': {reason}; or use 'auto'")
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
    """Why a call has to run eagerly although a fused implementation was chosen; empty if it can be fused."""
    from transformers.utils import output_capturing

    collected = getattr(output_capturing, "_active_collector", None)  # where transformers keeps the requested outputs
    if output_attentions or "attentions" in ((collected and collected.get()) or ()):
        return "attention weights were requested"
    if not isinstance(mask, Spans | None):
        return "the mask is not one contiguous run of keys per query"
    if module.training and dropout:
        return f"attention dropout is {dropout:g}: set it to 0 in the model's config"
    if implementation == "triton":
        if query.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            return f"the kernel does not support {query.dtype}"
        if query.shape[-1] > 256 or query.shape[-1] != value.shape[-1]:
            return (
                "the kernel needs queries and values of one size, at most 256, "
                f"not {query.shape[-1]} and {value.shape[-1]}"
            )
    if implementation == "flex":
        if query.dtype == torch.float64:
            return "compiled FlexAttention does not support torch.float64"
        if torch.is_grad_enabled() and query.device.type == "cpu" and (query.requires_grad or value.requires_grad):
            return "FlexAttention has no backward pass on a CPU"
        if torch.is_grad_enabled() and sinks is not None and sinks.requires_grad:
            return "FlexAttention gives attention sinks no gradient"
    return ""


def fused(implementation: str) -> Fused:
    """The function of an implementation, imported when it is first used."""
    if implementation == "flex":
        from sparselens.gates.flex import flex_attend

        return flex_attend
    from sparselens.gates.triton_attention import triton_attend

    return triton_attend
