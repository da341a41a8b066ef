"""Attention masks as one contiguous run of visible keys per query: two numbers instead of a row of the mask.

Causal attention, sliding windows, chunks, padding at either end, packed documents and images within text all have this
form. Masks come from transformers as functions of positions; a mask with holes becomes a tensor for eager attention.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

_AT_ONCE = 2**24  # pairs; a larger mask is processed a part of the queries at a time


class Spans(NamedTuple):
    """The keys that each query sees: from `first` up to, but not including, `last`."""

    first: Int[Tensor, "batch query_pos"]  # batch may be 1
    last: Int[Tensor, "batch query_pos"]  # equal to `first` where a query sees nothing
    keys: int

    def mask(self) -> Bool[Tensor, "batch 1 query_pos key_pos"]:
        """The mask of all pairs that eager attention takes; True: visible."""
        key = torch.arange(self.keys, device=self.first.device)
        return ((key >= self.first[..., None]) & (key < self.last[..., None]))[:, None]

    def cut(self, keys: int) -> "Spans":
        """The first `keys` keys only: a key-value cache may be longer than its content."""
        return self if keys == self.keys else Spans(self.first.clamp(max=keys), self.last.clamp(max=keys), keys)


def all_visible(queries: int, keys: int, device: torch.device) -> Spans:
    """Every query sees every key."""
    first = torch.zeros(1, queries, dtype=torch.int32, device=device)
    return Spans(first, first + keys, keys)


def spans_mask(batch_size: int, q_length: int, kv_length: int, **options: Any) -> Spans | Tensor:
    """A mask function for transformers: returns spans, or an eager mask if the mask has holes."""
    from transformers.masking_utils import causal_mask_function, eager_mask, sdpa_mask

    device = torch.device(options.get("device", "cpu"))
    offset, behind = options.get("q_offset", 0), options.get("kv_offset", 0)
    unpadded = options.get("attention_mask") is None
    if unpadded and options.get("mask_function") is causal_mask_function:  # known without evaluating any pair
        last = (torch.arange(1, q_length + 1, dtype=torch.int32, device=device) + (offset - behind)).clamp(0, kv_length)
        return Spans(torch.zeros_like(last)[None], last[None], kv_length)
    rows = max(1, _AT_ONCE // (batch_size * kv_length))
    options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    parts: list[Tensor] = []
    for start in range(0, q_length, rows):
        part: dict[str, Any] = options | {"q_offset": offset + start, "q_length": min(rows, q_length - start)}
        parts.append(_runs(sdpa_mask(batch_size=batch_size, kv_length=kv_length, **part)))
    first, last, seen = torch.cat(parts, dim=-1)
    if bool((last - first == seen).all()):
        return Spans(first, last, kv_length)
    return eager_mask(batch_size=batch_size, q_length=q_length, kv_length=kv_length, **options)


def _runs(visible: Any) -> Int[Tensor, "3 batch query_pos"]:
    """First visible key, one past the last, and the number of visible keys."""
    visible = visible[:, 0]
    numbers = torch.arange(1, visible.shape[-1] + 1, dtype=torch.int32, device=visible.device)
    seen = visible.sum(-1, dtype=torch.int32)
    last = (visible * numbers).amax(-1)
    first = torch.where(seen > 0, visible.int().argmax(-1).int(), last)
    return torch.stack([first, last, seen])


def blind_padding(mask: Spans | Tensor | None, real: Tensor | None, start: int) -> Spans | Tensor | None:
    """A mask under which padding sees no keys, so that its edges are not counted. Its output is not used anyway."""
    if mask is None or real is None:
        return mask
    n_queries = mask.first.shape[-1] if isinstance(mask, Spans) else mask.shape[-2]
    reads = real[:, start : start + n_queries].bool()
    if reads.shape[1] < n_queries or bool(reads.all()):
        return mask
    if isinstance(mask, Spans):
        return mask._replace(last=torch.where(reads, mask.last, mask.first))
    hidden = ~reads[:, None, :, None]
    return mask & ~hidden if mask.dtype == torch.bool else mask.masked_fill(hidden, torch.finfo(mask.dtype).min)
