"""LayerNorm and RMSNorm as formulas, read from a model's modules and verified on random inputs.

1. x_hat = centre(x) / root with root = sqrt(mean of squares + eps), and y = gain * x_hat + bias. `centre` subtracts the
   mean in a LayerNorm and does nothing in an RMSNorm.
2. Backward: J^T g = (centre(h) - x_hat mean(h x_hat)) / root with h = gain * g.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Norm:
    """One norm over d_model, computed in float32 or wider."""

    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    eps: float
    centred: bool

    def standardise(
        self, x: Float[Tensor, "*batch d_model"]
    ) -> tuple[Float[Tensor, "*batch d_model"], Float[Tensor, "*batch 1"]]:
        """x_hat and 1 / root."""
        x = self.centre(widened(x))
        inverse = (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return x * inverse, inverse

    def centre(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Subtract the mean, in a LayerNorm."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The output of the module."""
        return self.standardise(x)[0] * self.gain + self.bias

    def into(
        self, x: Float[Tensor, "reader row d_model"], weight: Float[Tensor, "reader d_model d_head"]
    ) -> Float[Tensor, "reader row d_head"]:
        """The output times a weight, as (x W') / root + bias W with W' = centre(gain W): no normed x is stored."""
        folded = self.gain.to(weight)[:, None] * weight
        if self.centred:
            squares, folded = x.var(-1, correction=0, keepdim=True), folded - folded.mean(1, keepdim=True)
        else:
            squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1]
        return torch.bmm(x, folded) * (squares + self.eps).rsqrt() + (self.bias.to(weight) @ weight)[:, None]

    def pull_back(
        self, gradient: Float[Tensor, "*batch d_model"], x: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        """The gradient at the input x, from the gradient at the output."""
        x_hat, inverse = self.standardise(x)
        inner = self.gain * gradient
        return (self.centre(inner) - x_hat * (inner * x_hat).mean(-1, keepdim=True)) * inverse


def widened(values: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """The same values in float32 or wider."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def read_norm(module: Any, d_model: int) -> Norm | None:
    """The formula of a norm module of TransformerLens or transformers; None if no formula reproduces it."""
    parameter = next(iter(module.parameters()), torch.zeros(()))
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, d_model, generator=random) + torch.randn(1, 1, 1, generator=random)
    x[0, 1] *= 1e-3  # small enough for eps to show
    x = x.to(parameter)
    with torch.no_grad():
        wanted = module(x)
        tried = [(_error(norm(x), wanted), norm) for norm in _candidates(module, x)]
    error, norm = min(tried, key=lambda pair: pair[0])
    tolerance = max(1e-5, 4 * torch.finfo(wanted.dtype).eps)  # transformers' norms compute in float32
    return norm if error < tolerance else None


def _candidates(module: Any, x: Tensor) -> Iterator[Norm]:
    inner = getattr(module, "original_component", None)
    holders = [holder for holder in (module, inner, getattr(module, "config", None)) if holder is not None]
    weight, bias = (_first(holders, names) for names in (("weight", "w"), ("bias", "b")))
    ones = torch.ones(x.shape[-1], device=x.device)
    gains = [ones] if weight is None else [weight.detach().float(), 1 + weight.detach().float(), ones]
    biases = [torch.zeros_like(ones)] + ([] if bias is None else [bias.detach().float()])
    found = (_first(holders, (name,)) for name in ("eps", "variance_epsilon", "layer_norm_epsilon"))
    epsilons = {value for value in found if value is not None}
    for eps in sorted(map(float, epsilons)) or [1e-5]:
        for gain in gains:
            for shift in biases:
                yield from (Norm(gain, shift, eps, centred) for centred in (True, False))


def _first(holders: list[Any], names: tuple[str, ...]) -> Any:
    found = (getattr(holder, name, None) for holder in holders for name in names)
    return next((value for value in found if value is not None), None)


def _error(found: Tensor, wanted: Tensor) -> float:
    """The largest error of a row, relative to its size."""
    return float(((found - wanted).abs().amax(-1) / wanted.abs().amax(-1)).max())
