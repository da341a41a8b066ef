"""Exact gated attention with PyTorch's FlexAttention, without a tensor of all query-key pairs.

FlexAttention edits scores before the softmax; a gate acts after it. So the keys appear twice, and the values once,
followed by zeros: a pair's weight goes to the first copy if its gate is open, to the second if it is closed.
    output      first copy: s where open               second copy: s where closed
    gradient    first: s + log sigmoid(z)              second: s + log sigmoid(-z), with s and the values held fixed
    counts      first: log sigmoid(gate_logit / t)     second: 0 where open; and one spare key of score 0
with z = gate_logit / t + noise. For output and gradient the two copies add up to the softmax over all visible pairs.
So rows without an open gate are no special case, and no log-sum-exp is needed, which compiled FlexAttention does not
return on a CPU.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import logsigmoid

from sparselens.gates.fused import Attended, Call, Keys, Queries
from sparselens.gates.noise import uniform_at
from sparselens.gates.spans import Spans

_BLOCK = 128


def flex_attend(query: Queries, key: Keys, value: Keys, call: Call) -> Attended:
    """Output and counts; with noise also the straight-through gradient, as in `gate.gated_softmax`."""
    n = key.shape[2]
    stride = -(-(n + 1) // _BLOCK) * _BLOCK  # between the copies: whole blocks, with room for the spare key
    scores = _Scores.of(call, n, stride)
    keys, with_sinks = _laid_out(key, key, stride), call.sinks is not None

    def attend(query: Tensor, value: Tensor, score: Any, spare: bool) -> Tensor:
        """Softmax over both copies of the visible keys and, if `spare`, over the spare key."""
        blocks, grouped = _blocks(call.spans, query, n, stride, spare), query.shape[1] != key.shape[1]
        options: dict[str, Any] = {"block_mask": blocks, "scale": call.scale, "enable_gqa": grouped}
        return _compiled()(query, keys.to(query.dtype), value, score_mod=score, **options)

    nothing = torch.zeros_like(value)
    output = attend(query, _laid_out(value, nothing, stride), scores.hard, with_sinks)
    if call.words is not None and torch.is_grad_enabled():
        soft = attend(query, _laid_out(value.detach(), nothing, stride), scores.soft, with_sinks)
        output = output + (soft - soft.detach())
    if not call.recorded:
        zeros = query.new_zeros(query.shape[:2], dtype=torch.float32)
        return Attended(output, zeros, zeros)
    exact = torch.promote_types(query.dtype, torch.float32)  # half precision is too coarse for these ratios
    shares = attend(query.to(exact), _marks(keys, n, stride, exact), scores.counted, True)
    expected, opened, one = shares[..., :3].unbind(-1)
    return Attended(output, (expected / one).sum(-1), (opened / one).detach().round().sum(-1))


def _laid_out(first: Tensor, second: Tensor, stride: int) -> Tensor:
    pad = (0, 0, 0, stride - first.shape[2])
    return torch.cat([nn.functional.pad(first, pad), nn.functional.pad(second, pad)], dim=2)


def _marks(keys: Tensor, n: int, stride: int, dtype: torch.dtype) -> Tensor:
    """Values that show where the weight came from: the first copy, the second copy or the spare key."""
    marks = torch.zeros(*keys.shape[:3], 16, dtype=dtype, device=keys.device)  # 16: the minimum width of a tile
    marks[:, :, :n, 0] = 1
    marks[:, :, stride : stride + n, 1] = 1
    marks[:, :, stride + n, 2] = 1
    return marks


class _Scores(NamedTuple):
    """How the scores of the three softmaxes are edited; FlexAttention compiles these functions into its kernel."""

    hard: Any
    soft: Any
    counted: Any

    @staticmethod
    def of(call: Call, n: int, stride: int) -> "_Scores":
        _, _, bias, temperature, softcap, words, sinks, _ = call
        spare = stride + n

        def capped(score: Tensor) -> Tensor:
            return score if softcap is None else torch.tanh(score / softcap) * softcap

        def uniform(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            assert words is not None
            return uniform_at(words[0, b, h, q], words[1, b, h, q], kv % stride)

        def is_open(score: Tensor, b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            if words is None:
                return score + bias > 0
            return torch.sigmoid((score + bias) / temperature) > 1 - uniform(b, h, q, kv)

        def with_sink(score: Tensor, h: Tensor, kv: Tensor) -> Tensor:
            return score if sinks is None else torch.where(kv == spare, sinks[h].to(score.dtype), score)

        def hard(score: Tensor, b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            score = capped(score)
            kept = is_open(score, b, h, q, kv) == (kv < stride)
            return with_sink(torch.where(kept, score, -torch.inf), h, kv)

        def soft(score: Tensor, b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            score = capped(score)
            u = uniform(b, h, q, kv)
            z = (score + bias) / temperature + torch.log(u) - torch.log1p(-u)
            return with_sink(score.detach() + logsigmoid(torch.where(kv < stride, z, -z)), h, kv)

        def counted(score: Tensor, b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            score = capped(score)
            second = torch.where(is_open(score, b, h, q, kv) | (kv == spare), 0.0, -torch.inf)
            return torch.where(kv < stride, logsigmoid((score + bias) / temperature), second)

        return _Scores(hard, soft, counted)


def _blocks(spans: Spans, query: Queries, n: int, stride: int, spare: bool) -> BlockMask:
    """Which blocks hold a visible key; within a block, the kernel evaluates `visible`."""
    first, last = (t.expand(len(query), -1).contiguous() for t in spans[:2])
    one_more = stride + n if spare else -1

    def visible(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:  # noqa: ARG001 - as FlexAttention calls it
        place = kv % stride
        return ((place >= first[b, q]) & (place < last[b, q])) | (kv == one_more)

    tail = (0, -query.shape[2] % _BLOCK)
    start = torch.where(first < last, first, n)  # queries that see nothing do not count
    start = nn.functional.pad(start, tail, value=n).unflatten(1, (-1, _BLOCK)).amin(-1, keepdim=True)
    end = nn.functional.pad(last, tail).unflatten(1, (-1, _BLOCK)).amax(-1, keepdim=True)
    block = torch.arange(stride // _BLOCK, device=query.device) * _BLOCK
    needed = ((block + _BLOCK > start) & (block < end)).repeat(1, 1, 2)
    if spare:
        needed[..., one_more // _BLOCK] = True
    order = needed.int().argsort(dim=-1, descending=True, stable=True)[:, None].int()
    return BlockMask.from_kv_blocks(
        needed.sum(-1, dtype=torch.int32)[:, None],
        order,
        BLOCK_SIZE=_BLOCK,
        mask_mod=visible,
        seq_lengths=(query.shape[2], 2 * stride),
    )


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention)
