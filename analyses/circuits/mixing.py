"""What destinations read, as sums of what sources write, without storing a copy of the writes for every read."""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


class Mixed(torch.autograd.Function):
    """`kept.mT @ numbers`, where `numbers` holds the writes already; autograd would keep a copy of them per read."""

    @staticmethod
    def forward(
        ctx: Any,
        kept: Float[Tensor, "circuit source reader"],
        numbers: Float[Tensor, "circuit source number"],
        places: Sequence[slice],
        *writes: Float[Tensor, "_written circuit batch pos d_model"],
    ) -> Float[Tensor, "circuit reader number"]:
        """The sums; `writes` only connect the rows of `numbers` (at `places`) to autograd's graph."""
        ctx.kept, ctx.numbers, ctx.places = kept.detach(), numbers, places
        ctx.like = [(write.shape, write.device, write.dtype) for write in writes]
        return kept.mT @ numbers

    @staticmethod
    def backward(ctx: Any, *given: Any) -> Any:
        """The gradients of `kept` and of every write."""
        (gradient,) = given
        back: list[Tensor] = []
        for places, (shape, device, dtype) in zip(ctx.places, ctx.like, strict=True):
            own = rearrange(ctx.kept[:, places] @ gradient, "circuit source number -> source circuit number")
            back.append(own.reshape(shape).to(device, dtype))
        return ctx.numbers @ gradient.mT, None, None, *back
