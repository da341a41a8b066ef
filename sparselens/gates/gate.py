"""The gates of one attention call: from scores to gated pattern, expected edges and hard gates.

    gate_logit = scores + gate_bias                  scores as the softmax gets them: after encodings, caps and biases
    gate       = 1[gate_logit + t * noise > 0]       noise: standard logistic in training, none in evaluation
    pattern    = softmax(scores) * gate              not renormalised: a query with no open gate writes zero
    expected   = sum over visible pairs of sigmoid(gate_logit / t)
In training the gate's gradient is that of sigmoid(gate_logit / t + noise) (straight-through estimator); in evaluation
it has none. The paper's noise temperature t is 1; `post_train` lowers it (`PostTrainConfig.noise_temperature`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from sparselens.gates.noise import Noise, uniform_noise
from sparselens.gates.spans import Spans

Scores = Float[Tensor, "batch head query_pos key_pos"]
Mask = Shaped[Tensor, "_batch _heads query_pos key_pos"]  # boolean (True: visible) or additive; batch, heads may be 1
EditPoint = Callable[[str, Tensor], Tensor]


class Gates(NamedTuple):
    """The gates of one attention call, in float32 (float64 if the scores are)."""

    logits: Scores  # -inf where the key is not visible
    probs: Scores  # probability that the edge is open under the training noise; the sum is the expected edges
    gate: Scores  # 0 or 1


class GatedPattern(NamedTuple):
    """The gated pattern of one attention call and its edge counts."""

    pattern: Scores
    expected: Float[Tensor, "batch head"]  # expected number of open edges; differentiable
    opened: Float[Tensor, "batch head"]  # number of open edges


def finite_bias(value: Any) -> float:
    """The gate bias as a float.

    Raises:
        ValueError: it is not a finite number. A config.json may hold anything here, and NaN would close every gate.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"gate_bias must be a finite number, not {value!r} (3e4 opens every gate)")
    return float(value)


@dataclass
class GateSettings:
    """State shared by the attention layers of a gated model. Not a module: adds no parameter and no state_dict key."""

    gate_bias: float  # added to the scores in the gate only; if large, every gate is open, as in the dense model
    n_layers: int = 0
    noise: Noise = uniform_noise
    temperature: float = 1.0  # of the training noise, in units of the scores
    recorders: list[Any] = field(default_factory=list[Any])  # active `record_gates` contexts
    implementation: str = "auto"  # one of `fused.IMPLEMENTATIONS`; TransformerLens models are always "eager"
    eager_because: str = ""  # why the last call ran eagerly although a fused implementation was chosen
    # which tokens are not padding; set only while the gates of a TransformerLens model are recorded
    real: Bool[Tensor, "batch pos"] | None = None

    def record(
        self,
        layer: int,
        expected: Float[Tensor, "batch head"],
        opened: Float[Tensor, "batch head"],
        mask: Mask | Spans,
    ) -> None:
        """Report one attention call to every active `record_gates` block."""
        for recorder in self.recorders:
            recorder.add(layer, expected, opened, mask)

    @property
    def recording(self) -> bool:
        """Whether this forward pass is to be recorded.

        A layer recomputed by gradient checkpointing in the backward pass has been recorded already; recording it again
        would also keep alive the activations that checkpointing frees.
        """
        recomputed = torch._C._current_graph_task_id() != -1  # torch.utils.checkpoint detects a backward pass this way
        return bool(self.recorders) and not recomputed


def is_visible(scores: Scores) -> Bool[Tensor, "batch head query_pos key_pos"]:
    """Which pairs are not masked; frameworks mask with -inf or the dtype's most negative number.

    The bound is half precision's for every dtype, since GPT-J and others add a half-precision mask to float32 scores.
    """
    return scores > torch.finfo(torch.float16).min / 2


def count_open(gate: Scores) -> Float[Tensor, "batch head"]:
    """Number of open gates."""
    return (gate > 0.5).sum((-2, -1)).to(gate.dtype)


def _unedited(name: str, value: Tensor) -> Tensor:  # noqa: ARG001 - of type EditPoint
    return value


def attention_gates(
    scores: Scores,
    gate_bias: float,
    noise: Scores | None = None,
    edit: EditPoint = _unedited,
    temperature: float = 1.0,
) -> Gates:
    """The gates for masked scores: the reference implementation.

    Args:
        noise: uniform numbers in (0, 1); None in evaluation
        edit: called as `edit(name, value)` on each intermediate value, returns the value to use
    """
    exact = scores if scores.dtype == torch.float64 else scores.float()
    logits = edit("hook_gate_logits", (exact + gate_bias).masked_fill(~is_visible(scores), -torch.inf))
    scaled = logits / temperature
    probs = edit("hook_gate_probs", torch.sigmoid(scaled))
    if noise is None:
        return Gates(logits, probs, edit("hook_gate", (logits > 0).to(logits.dtype)))
    uniform = noise.to(scaled)
    soft = torch.sigmoid(scaled + torch.log(uniform) - torch.log1p(-uniform))
    hard = (soft > 0.5).to(soft.dtype)
    return Gates(logits, probs, edit("hook_gate", hard + (soft - soft.detach())))


def gated_softmax(
    scores: Scores, gate_bias: float, noise: Scores | None = None, temperature: float = 1.0
) -> GatedPattern:
    """Softmax and gate of one attention call in one differentiable step. Overwrites `noise`.

    Equals `softmax(scores) * attention_gates(scores, ...).gate` in value and gradient, with a third of the memory
    traffic. It allocates only four tensors, those that the gradient needs.
    """
    exact = scores if scores.dtype == torch.float64 else scores.float()
    return GatedPattern(*_GatedSoftmax.apply(exact, gate_bias, noise, temperature))  # pyright: ignore


class _GatedSoftmax(torch.autograd.Function):
    """The gradient in closed form, where autograd would save nine tensors.

    With G = dLoss/dPattern, p the softmax, m the hard gate, t the temperature, z = gate_logit / t, s = z + noise and
    o_i = sum_k p_ik m_ik G_ik:
    dScore_ij = p_ij ((sigmoid'(s_ij) / t + m_ij) G_ij - o_i) + dExpected sigmoid'(z_ij) / t

    In place wherever possible: on a CPU, allocating a tensor of this size costs more than the arithmetic on it.
    """

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, gate_bias: float, noise: Tensor | None, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        softmax = torch.softmax(scores, dim=-1).nan_to_num_(nan=0.0)  # NaN: a row without any visible key
        logits = torch.add(scores.new_tensor(gate_bias / temperature), scores, alpha=1 / temperature)
        if noise is None:
            is_open = (logits > 0).to(logits.dtype)
            opened = is_open.sum((-2, -1))
            pattern = through_gate = is_open.mul_(softmax)
            prob = logits.sigmoid_()
        else:
            prob = logits.sigmoid_()
            soft, spare = _noisy(prob, noise.to(prob))
            is_open = torch.round(soft, out=spare)  # 0.5 rounds to 0; multiplying by a boolean tensor is slow
            opened = is_open.sum((-2, -1))
            pattern = is_open.mul_(softmax)
            slope = _slope(soft)
            through_gate = torch.addcmul(pattern, slope, softmax, value=1 / temperature, out=slope)
        expected = prob.sum((-2, -1))
        ctx.save_for_backward(softmax, through_gate, pattern, _slope(prob))
        ctx.temperature = temperature
        ctx.mark_non_differentiable(opened)
        return pattern, expected, opened

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, d_pattern: Tensor, d_expected: Tensor, _: Tensor
    ) -> tuple[Tensor, None, None, None]:
        softmax, through_gate, pattern, prob_slope = ctx.saved_tensors
        d_scores = pattern * d_pattern
        out = d_scores.sum(-1, keepdim=True)
        torch.mul(through_gate, d_pattern, out=d_scores).addcmul_(softmax, out, value=-1)
        d_scores.addcmul_(prob_slope, d_expected[..., None, None], value=1 / ctx.temperature)
        return d_scores, None, None, None


def _noisy(prob: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """sigmoid(logit + log u - log(1 - u)) without logarithms, as u p / (u p + (1 - u)(1 - p)), and a spare buffer.

    Overwrites `uniform`.
    """
    complement = 1 - uniform
    either = torch.lerp(complement, uniform, prob, out=complement)
    return uniform.mul_(prob).div_(either), either


def _slope(sigmoid: Tensor) -> Tensor:
    """The derivative of a sigmoid, computed in place from its value."""
    return sigmoid.addcmul_(sigmoid, sigmoid, value=-1)
