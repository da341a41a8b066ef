"""The gate of one attention call: scores in, gated pattern, expected edges and hard gates out.

    gate_logit = scores + gate_bias                  the scores that feed the softmax, after encodings, caps and biases
    gate       = 1[gate_logit + noise > 0]           noise: standard logistic in training, none in evaluation
    pattern    = softmax(scores) * gate              not renormalised: a query with no open gate writes zero
    expected   = sum over visible pairs of sigmoid(gate_logit)
In training the gate's gradient is that of sigmoid(gate_logit + noise) (straight through); in evaluation it has none.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

Scores = Float[Tensor, "batch head query_pos key_pos"]
Noise = Callable[[int, torch.Size, torch.device], Float[Tensor, "batch head query_pos key_pos"]]
EditPoint = Callable[[str, Tensor], Tensor]

_SMALLEST = 2.0**-25  # half a step of float32's torch.rand: keeps log(u) and u / (u + ...) finite


class Gates(NamedTuple):
    """The gates of one attention call, in float32 (float64 if the scores are)."""

    logits: Scores  # -inf where the key is not visible
    probs: Scores  # probability that the edge is open under the training noise; its sum is the expected edges
    gate: Scores  # 0 or 1


class GatedPattern(NamedTuple):
    """What a fused attention call returns."""

    pattern: Scores
    expected: Float[Tensor, "batch head"]  # edges; carries the gradient
    open: Scores  # 0 or 1: is the edge open?


def uniform_noise(layer: int, shape: torch.Size, device: torch.device) -> Scores:  # noqa: ARG001 - of type Noise
    """Fresh uniform numbers from the device's default generator, as dropout draws them."""
    return torch.rand(shape, device=device)


def seed_from(*parts: int) -> int:
    """One seed from several numbers, without patterns between neighbours. 32 bits: CPU generators ignore the rest."""
    key = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "big")


@dataclass(frozen=True)
class RowNoise:
    """Uniform numbers that depend only on (seed, step, layer, row of the global batch).

    However the rows are split over processes, micro-batches or a checkpointed recomputation, a row meets the same
    noise; so a resumed run, a run in two processes and a run in one are the same run.
    """

    seed: int
    step: int
    first_row: int = 0

    def __call__(self, layer: int, shape: torch.Size, device: torch.device) -> Scores:
        """The numbers of one layer for `shape[0]` rows from `first_row` on."""
        seeds = [seed_from(self.seed, self.step, layer, self.first_row + row) for row in range(shape[0])]
        if device.type == "cpu":
            return _uniform_on_cpu(seeds, shape)
        noise = torch.empty(shape, device=device)
        generator = torch.Generator(device)
        for row, seed in zip(noise, seeds, strict=True):
            row.uniform_(generator=generator.manual_seed(seed))
        return noise


def _uniform_on_cpu(seeds: list[int], shape: torch.Size) -> Tensor:
    """NumPy's SFC64 is three times as fast as torch's Mersenne twister, which would take longer than the softmax."""
    bits = np.empty((len(seeds), math.prod(shape[1:])), dtype=np.int32)
    for row, seed in zip(bits, seeds, strict=True):
        row[:] = np.random.SFC64(seed).random_raw((len(row) + 1) // 2).view(np.int32)[: len(row)]
    # 24 bits, as torch.rand: all that float32 holds
    return torch.from_numpy(bits).view(shape).bitwise_right_shift_(8).float().mul_(2.0**-24).add_(0.5)


@dataclass
class GateSettings:
    """What all attention layers of one gated model share. Not a module: it adds no parameter and no state_dict key."""

    gate_bias: float  # added to the scores in the gate only; large: every gate open, the dense model
    n_layers: int = 0
    noise: Noise = uniform_noise
    recorders: list[Any] = field(default_factory=list[Any])  # open `record_gates` contexts

    def record(
        self,
        layer: int,
        expected: Float[Tensor, "batch head"],
        is_open: Float[Tensor, "batch head query_pos key_pos"] | Bool[Tensor, "batch head query_pos key_pos"],
        visible: Bool[Tensor, "batch heads query_pos key_pos"],
    ) -> None:
        """Tell every open `record_gates` block of one attention call."""
        for recorder in self.recorders:
            recorder.add(layer, expected, is_open, visible)


def is_visible(scores: Scores) -> Bool[Tensor, "batch head query_pos key_pos"]:
    """Which pairs the masks left: frameworks mark the others with -inf or the dtype's smallest number.

    The bound is half precision's in every dtype: GPT-J and others add a mask made in half precision to float32 scores.
    """
    return scores > torch.finfo(torch.float16).min / 2


def _unedited(name: str, value: Tensor) -> Tensor:  # noqa: ARG001 - of type EditPoint
    return value


def attention_gates(
    scores: Scores, gate_bias: float, noise: Scores | None = None, edit: EditPoint = _unedited
) -> Gates:
    """The gates for masked scores, each intermediate value passed through `edit(name, value)`: the reference.

    `noise` holds uniform numbers in (0, 1); None means evaluation.
    """
    exact = scores if scores.dtype == torch.float64 else scores.float()
    logits = edit("hook_gate_logits", (exact + gate_bias).masked_fill(~is_visible(scores), -torch.inf))
    probs = edit("hook_gate_probs", torch.sigmoid(logits))
    if noise is None:
        return Gates(logits, probs, edit("hook_gate", (logits > 0).to(logits.dtype)))
    uniform = noise.to(logits).clamp_min(_SMALLEST)
    soft = torch.sigmoid(logits + torch.log(uniform) - torch.log1p(-uniform))
    hard = (soft > 0.5).to(soft.dtype)
    return Gates(logits, probs, edit("hook_gate", hard + (soft - soft.detach())))


def gated_softmax(scores: Scores, gate_bias: float, noise: Scores | None = None) -> GatedPattern:
    """Softmax and gate of one attention call in one differentiable step.

    Equals `softmax(scores) * attention_gates(scores, gate_bias, noise).gate` in value and gradient, with a third of the
    passes over memory and four saved tensors instead of nine.
    """
    exact = scores if scores.dtype == torch.float64 else scores.float()
    return GatedPattern(*_GatedSoftmax.apply(exact, gate_bias, noise))  # pyright: ignore


class _GatedSoftmax(torch.autograd.Function):
    """The gradient by formula instead of by nine saved tensors.

    With G = dLoss/dPattern, p the softmax, m the hard gate, s = gate_logit + noise and o_i = sum_k p_ik m_ik G_ik:
    dScore_ij = p_ij ((sigmoid'(s_ij) + m_ij) G_ij - o_i) + dExpected sigmoid'(gate_logit_ij)

    Written in place wherever it can be: on a CPU a fresh tensor of this size costs more than the arithmetic on it.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, gate_bias: float, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        softmax = torch.softmax(scores, dim=-1).nan_to_num_(nan=0.0)  # NaN: a row without any visible key
        logits = scores + gate_bias
        prob = torch.sigmoid(logits)
        if noise is None:
            is_open = (logits > 0).to(prob.dtype)
            pattern = through_gate = softmax * is_open
        else:
            soft = _noisy(prob, logits.neg_().sigmoid_(), noise.to(prob))
            is_open = soft.round()  # a half rounds to 0; comparing gives booleans, which are slow to multiply with
            pattern = softmax * is_open
            through_gate = _slope(soft).mul_(softmax).add_(pattern)
        expected = prob.sum((-2, -1))
        ctx.save_for_backward(softmax, through_gate, pattern, _slope(prob))
        ctx.mark_non_differentiable(is_open)
        return pattern, expected, is_open

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, d_pattern: Tensor, d_expected: Tensor, _: Tensor
    ) -> tuple[Tensor, None, None]:
        softmax, through_gate, pattern, prob_slope = ctx.saved_tensors
        out = torch.linalg.vecdot(pattern, d_pattern).unsqueeze(-1)
        d_scores = torch.mul(through_gate, d_pattern).addcmul_(softmax, out, value=-1)
        return d_scores.addcmul_(prob_slope, d_expected[..., None, None]), None, None


def _noisy(prob: Tensor, complement: Tensor, uniform: Tensor) -> Tensor:
    """sigmoid(logit + log u - log(1 - u)) without a logarithm: u p / (u p + (1 - u)(1 - p)). Overwrites `complement`.

    1 - p is its own sigmoid(-logit): where p is nearly one, subtracting it from one would leave nothing but rounding.
    """
    for_open = uniform.clamp_min(_SMALLEST).mul_(prob)
    either = complement.addcmul_(complement, uniform, value=-1).add_(for_open)
    return for_open.div_(either)


def _slope(sigmoid: Tensor) -> Tensor:
    """The derivative of a sigmoid from its value, in place."""
    return sigmoid.addcmul_(sigmoid, sigmoid, value=-1)
