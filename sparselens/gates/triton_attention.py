"""The Triton kernel as a differentiable function: how it is launched, and what it saves for the backward pass."""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from sparselens.gates import triton_kernel
from sparselens.gates.fused import Attended, Call, Keys, Queries
from sparselens.gates.noise import Words
from sparselens.gates.spans import Spans

_PROGRAMS = 512  # minimum to aim for per kernel: twice as many as run at once on a large GPU
_PACKED = torch.contiguous_format
_kernel: Any = triton_kernel  # Any: its functions are launched, which type checkers do not know


class Tiles(NamedTuple):
    """Tile sizes and launch options of a kernel."""

    rows: int  # queries per tile
    columns: int  # keys per tile
    warps: int
    stages: int  # pipeline depth: tiles of keys being loaded at once


def tiles(kernel: str, width: int, itemsize: int) -> Tiles:
    """Tiles that fit into registers and shared memory, given the width of a head and the bytes per number.

    For 16-bit numbers and widths up to 128, the fastest that `tests/benchmarks/tune_kernel.py` found on an H100.
    """
    if itemsize > 2:
        return Tiles(32, 32, 4 if width <= 128 else 8, 1)
    if width > 128:
        return Tiles(64, 32, 8, 1) if kernel == "forward" else Tiles(32, 32, 8, 1)
    if kernel == "forward":
        return Tiles(64, 64, 4, 2)
    if kernel == "backward_keys" and width <= 64:
        return Tiles(64, 64, 4, 3)
    return Tiles(64, 32, 4, 3 if kernel == "backward_queries" else 2)


def triton_attend(query: Queries, key: Keys, value: Keys, call: Call) -> Attended:
    """Output and counts, with the gradient of `gate.gated_softmax`.

    Raises:
        ValueError: the scale is not positive, so that the largest product would not be the largest score.
    """
    if not call.scale > 0:
        raise ValueError(f"the kernel needs a positive scale, not {call.scale}: use implementation='eager'")
    return Attended(*_GatedAttention.apply(query, key, value, call.sinks, call))  # pyright: ignore


class _GatedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, call: Call
    ) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = (_rows_whole(t) for t in (query, key, value))
        call = call._replace(words=None if call.words is None else _folded(call.words))
        batch, heads, n, width = query.shape
        # laid out as transformers expects it: the heads of a query next to each other
        output = torch.empty(batch, n, heads, width, dtype=query.dtype, device=query.device).transpose(1, 2)
        lse, expected, opened = torch.empty(3, batch, heads, n, dtype=torch.float32, device=query.device)
        launch = _Launch("forward", query, key, value, output, call)
        given = query if sinks is None else sinks  # a pointer must be passed even if it is never read
        with torch.cuda.device_of(query):  # the GPU that Triton launches on; no effect on a CPU
            _kernel.forward[launch.over_queries](
                *launch.tensors, given, output, lse, expected, opened, *launch.numbers,
                HAS_SINKS=sinks is not None, **launch.options,
            )  # fmt: skip
        ctx.save_for_backward(query, key, value, sinks, output, lse, *call.spans[:2], call.words)
        ctx.call = call._replace(sinks=None, words=None, spans=None)  # kept on ctx, they would escape checkpointing
        ctx.keys = call.spans.keys
        opened = opened.sum(-1)
        ctx.mark_non_differentiable(opened)
        return output, expected.sum(-1), opened

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, d_output: Tensor, d_expected: Tensor, _: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None]:
        query, key, value, sinks, output, lse, first, last, words = ctx.saved_tensors
        call: Call = ctx.call._replace(spans=Spans(first, last, ctx.keys), words=words)
        d_output = _rows_whole(d_output)
        inner = torch.empty_like(lse)  # d_output . output per query, written by the first kernel for the second
        given = (d_output, lse, inner, d_expected.float().contiguous())
        d_query = torch.empty_like(query, memory_format=_PACKED)
        launch = _Launch("backward_queries", query, key, value, d_output, call)
        with torch.cuda.device_of(query):
            _kernel.backward_queries[launch.over_queries](
                *launch.tensors, *given, output, d_query, *launch.numbers, **launch.options
            )
            d_key, d_value = _gradients_of_keys(query, key, value, call, given)
        d_sinks = None
        if sinks is not None:  # the softmax weight of a sink, times the gradient of an edge that writes nothing
            weight = torch.exp2(sinks.float()[:, None] / math.log(2) - lse)  # lse is to base 2
            d_sinks = -(weight * inner).sum((0, 2)).to(sinks.dtype)
        return d_query, d_key, d_value, d_sinks, None


def _gradients_of_keys(
    query: Tensor, key: Tensor, value: Tensor, call: Call, given: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Gradients of keys and values.

    Args:
        given: gradient of the output, log-sum-exp, d_output . output, gradient of the expected edges
    """
    launch = _Launch("backward_keys", query, key, value, given[0], call)
    seeing = _queries_of_blocks(call.spans, launch.tiles.columns)
    (batch, kv_heads), heads = key.shape[:2], query.shape[1]
    members = _members(heads // kv_heads, batch * heads * seeing.shape[1])
    parts = heads // members
    dtype = key.dtype if parts == kv_heads else torch.float32
    found = torch.empty(2, batch, parts, *key.shape[2:], dtype=dtype, device=key.device)
    _kernel.backward_keys[batch * parts, seeing.shape[1]](
        *launch.tensors, *given, seeing, *found, *launch.numbers, MEMBERS=members, **launch.options
    )
    if parts > kv_heads:
        found = found.unflatten(2, (kv_heads, -1)).sum(3).to(key.dtype)
    return found[0], found[1]


class _Launch:
    """The arguments that the three kernels share, in their order."""

    def __init__(self, kernel: str, query: Tensor, key: Tensor, value: Tensor, output: Tensor, call: Call) -> None:
        batch, heads, queries, head = query.shape
        kv_heads, keys = key.shape[1:3]
        first, last = (t.int().contiguous() for t in call.spans[:2])
        words = first if call.words is None else call.words
        width = max(16, 1 << (head - 1).bit_length())  # 16: the minimum for a matrix product
        self.tiles = tiles(kernel, width, query.element_size())
        self.tensors = (query, key, value, first, last, words)
        strides = [t.stride(axis) for t in (query, key, value, output) for axis in range(3)]
        self.numbers = (
            *strides,
            0 if len(first) == 1 else queries,
            float(call.scale),
            float(call.gate_bias),
            1 / call.temperature,
            float(call.softcap or 1.0),
            queries,
            keys,
            batch * heads * queries,
        )
        self.options = {
            "HEADS": heads,
            "GROUP": heads // kv_heads,
            "HEAD": head,
            "WIDTH": width,
            "ROWS": self.tiles.rows,
            "COLUMNS": self.tiles.columns,
            "NOISY": call.words is not None,
            "HAS_CAP": call.softcap is not None,
            # the precision that torch uses for float32, set by `torch.set_float32_matmul_precision`
            "PRECISION": "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
            "num_warps": self.tiles.warps,
            "num_stages": self.tiles.stages,
        }
        self.over_queries = (batch * heads, -(-queries // self.tiles.rows))


def _rows_whole(tensor: Tensor) -> Tensor:
    """The tensor with its last axis contiguous, as the kernels read it."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _members(group: int, programs: int) -> int:
    """How many heads of a group one program sums over: fewer if there would be too few programs to fill a GPU.

    Does not depend on the GPU, so that sums are the same on every one.
    """
    return next((n for n in range(group, 1, -1) if group % n == 0 and programs // n >= _PROGRAMS), 1)


def _folded(words: Words) -> Int[Tensor, "word=2 batch head query_pos"]:
    """The words in 32 bits with the first shift done, which saves it for every edge (`triton_kernel._uniform`)."""
    shift = torch.tensor([16, 15]).reshape(2, 1, 1, 1).to(words.device, non_blocking=True)
    return (words ^ (words >> shift)).int().contiguous()


def _queries_of_blocks(spans: Spans, columns: int) -> Int[Tensor, "batch block 4"]:
    """For each block of keys: the range of queries that see any of it, and a run of queries that see all of it."""
    block = torch.arange(0, spans.keys, columns, device=spans.first.device, dtype=torch.int32)[:, None]
    first, last = spans.first[:, None], spans.last[:, None]
    n = spans.first.shape[1]
    number = torch.arange(n, device=block.device, dtype=torch.int32)
    seeing = torch.minimum(last, block + columns) > torch.maximum(first, block)
    whole = (first <= block) & (last >= block + columns)
    begin = torch.where(seeing, number, n).amin(-1)
    end = torch.where(seeing, number + 1, 0).amax(-1)
    run = torch.where(whole, number, n).amin(-1)
    run_end = torch.where(whole | (number < run[..., None]), n, number).amin(-1)
    return torch.stack([begin, end, run, run_end], dim=-1).int()
