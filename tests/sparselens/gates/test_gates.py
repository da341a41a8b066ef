"""The maths of one attention call: the fused step against the reference, and both against the formulas."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sparselens.gates.gate import (
    GateSettings,
    attention_gates,
    count_open,
    gated_softmax,
    is_visible,
)
from sparselens.gates.noise import RowNoise, uniform_noise

BIAS = 0.4
SHAPE = torch.Size([2, 3, 5, 5])


def draw(dtype: torch.dtype = torch.float64, seed: int = 0, mask: str = "causal") -> tuple[Tensor, Tensor]:
    """Masked scores and uniform noise."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(SHAPE, generator=generator, dtype=torch.float64).mul(2).to(dtype)
    noise = torch.rand(SHAPE, generator=generator, dtype=torch.float64)
    return hide(scores, mask), noise.to(torch.float32 if dtype.itemsize < 4 else dtype)


def hide(scores: Tensor, mask: str) -> Tensor:
    if mask == "none":
        return scores
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    if mask == "empty row":
        hidden = hidden | (torch.arange(5) == 2)[:, None]
    filler = -torch.inf if mask == "-inf" else torch.finfo(scores.dtype).min
    return scores.masked_fill(hidden, filler)


def reference(scores: Tensor, noise: Tensor | None, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    gates = attention_gates(scores, BIAS, noise, temperature=temperature)
    softmax = torch.softmax(scores.to(gates.gate.dtype), dim=-1)
    return softmax * gates.gate, gates.probs.sum((-2, -1)), count_open(gates.gate)


def fused(
    scores: Tensor, noise: Tensor | None, bias: float = BIAS, temperature: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    own = None if noise is None else noise.clone()  # it overwrites its noise
    return gated_softmax(scores, bias, own, temperature)


def gradient(function: Any, scores: Tensor, noise: Tensor | None) -> Tensor:
    scores = scores.detach().clone().requires_grad_()
    pattern, expected, _ = function(scores, noise)
    weights = torch.randn(SHAPE, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(pattern.dtype)
    ((pattern * weights).sum() + (expected * weights[..., 0, 0]).sum()).backward()
    assert scores.grad is not None
    return scores.grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mask", ["none", "causal", "-inf", "empty row"])
@pytest.mark.parametrize("training", [True, False])
def test_fused_step_equals_the_reference(dtype: torch.dtype, mask: str, training: bool) -> None:
    scores, noise = draw(dtype, mask=mask)
    noise = noise if training else None
    for ours, wanted in zip(fused(scores, noise), reference(scores, noise), strict=True):
        torch.testing.assert_close(ours, wanted)
        assert ours.isfinite().all()
    ours, wanted = gradient(fused, scores, noise), gradient(reference, scores, noise)
    assert ours.dtype == dtype
    assert ours.isfinite().all()
    tolerance = {} if dtype.itemsize >= 4 else {"atol": 4 * torch.finfo(dtype).eps, "rtol": 4 * torch.finfo(dtype).eps}
    torch.testing.assert_close(ours, wanted, **tolerance)
    assert not ours[~is_visible(scores)].any()


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mask", ["none", "causal", "-inf"])
def test_gradient_is_the_published_formula(training: bool, mask: str, temperature: float) -> None:
    """dScore_ij = p_ij ((sigmoid'(s_ij) / t + m_ij) g_v - o) + dExpected sigmoid'(z_ij) / t, value by value.

    With gate_logit = scores + bias, z = gate_logit / t and s = z + noise; the paper's t is 1.
    """
    scores, noise = draw(mask=mask)
    d_head = 4
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(2, 3, 5, d_head, generator=generator, dtype=torch.float64)
    d_out = torch.randn(2, 3, 5, d_head, generator=generator, dtype=torch.float64)
    d_expected = torch.randn(2, 3, generator=generator, dtype=torch.float64)

    visible = scores > -1e30
    p = torch.softmax(scores, -1)
    gate_logit = torch.where(visible, (scores + BIAS) / temperature, -torch.inf)
    s = gate_logit + (torch.log(noise) - torch.log(1 - noise)) if training else gate_logit
    m = (s > 0).double()
    slope = s.sigmoid() * (1 - s.sigmoid()) / temperature if training else torch.zeros_like(s)
    out = (p * m) @ values
    wanted = torch.zeros(SHAPE, dtype=torch.float64)
    for b, h, i, j in torch.cartesian_prod(*(torch.arange(n) for n in SHAPE)).tolist():
        g_v = d_out[b, h, i] @ values[b, h, j]
        o = d_out[b, h, i] @ out[b, h, i]
        prob = gate_logit[b, h, i, j].sigmoid()
        wanted[b, h, i, j] = p[b, h, i, j] * ((slope[b, h, i, j] + m[b, h, i, j]) * g_v - o)
        wanted[b, h, i, j] += d_expected[b, h] * prob * (1 - prob) / temperature

    for function in (fused, reference):
        leaf = scores.clone().requires_grad_()
        pattern, expected, _ = function(leaf, noise if training else None, temperature=temperature)
        ((pattern @ values * d_out).sum() + (expected * d_expected).sum()).backward()
        torch.testing.assert_close(leaf.grad, wanted, atol=1e-6, rtol=1e-6)


def test_gradcheck_of_the_smooth_parts() -> None:
    scores = draw(mask="none")[0][:1, :2, :3, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: gated_softmax(x, BIAS).expected, scores)
    # gates held fixed: nothing crosses the threshold, so the pattern is smooth
    for bias in (50.0, BIAS):
        assert torch.autograd.gradcheck(lambda x, b=bias: gated_softmax(x, b).pattern, scores)


def test_temperature_leaves_the_gates_of_evaluation_alone() -> None:
    scores, noise = draw(torch.float32)
    assert torch.equal(attention_gates(scores, BIAS).gate, attention_gates(scores, BIAS, temperature=0.1).gate)
    for one, other in zip(fused(scores, None)[::2], fused(scores, None, temperature=0.1)[::2], strict=True):
        assert torch.equal(one, other)
    assert torch.equal(attention_gates(scores, BIAS, noise, temperature=1e-4).gate, attention_gates(scores, BIAS).gate)


def test_open_and_closed() -> None:
    scores, noise = draw(torch.float32)
    for given in (None, noise):
        torch.testing.assert_close(fused(scores, given, 1e4)[0], torch.softmax(scores, -1))
        assert not fused(scores, given, -1e4)[0].any()
        assert attention_gates(scores, 1e4, given).gate.sum() == 2 * 3 * 15


def test_hard_gates_are_exactly_zero_or_one() -> None:
    scores, noise = draw(torch.float32)
    for given in (None, noise):
        assert set(attention_gates(scores, BIAS, given).gate.unique().tolist()) == {0.0, 1.0}


def test_evaluation_is_the_sign_of_the_gate_logit() -> None:
    scores = torch.tensor([[[[-0.5, -0.3], [0.0, 7.0]]]])
    gates = attention_gates(scores, 0.4)
    assert gates.gate.tolist() == [[[[0.0, 1.0], [1.0, 1.0]]]]
    assert not gates.gate.requires_grad
    assert (gated_softmax(scores, 0.4).pattern > 0).tolist() == [[[[False, True], [True, True]]]]
    assert gated_softmax(scores, 0.4).opened.tolist() == [[3.0]]


def test_edits_act_on_everything_after_them() -> None:
    scores, noise = draw(torch.float32)

    def edit(name: str, value: Tensor) -> Tensor:
        return torch.full_like(value, -3.0) if name == "hook_gate_logits" else value

    for given in (None, noise):
        gates = attention_gates(scores, BIAS, given, edit)
        torch.testing.assert_close(gates.probs, torch.full(SHAPE, 1 / (1 + math.e**3)))
    assert not attention_gates(scores, BIAS, None, edit).gate.any()


@pytest.mark.parametrize("gate_logit", [-2.0, 0.0, 1.0, 3.0])
def test_noise_opens_an_edge_with_the_stated_probability(gate_logit: float) -> None:
    n = 200
    noise = torch.rand(1, 1, n, n, generator=torch.Generator().manual_seed(4))
    gates = attention_gates(torch.full((1, 1, n, n), gate_logit - BIAS), BIAS, noise)
    prob = 1 / (1 + math.exp(-gate_logit))
    four_sigma = 4 * math.sqrt(prob * (1 - prob)) / n
    assert gates.gate.mean().item() == pytest.approx(prob, abs=four_sigma)
    assert gates.probs.mean().item() == pytest.approx(prob)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_extreme_values_stay_finite(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max / 4
    row = torch.tensor([largest, -largest, 0.0, 88.0, -torch.inf], dtype=dtype)
    scores = row.expand(1, 2, 5, 5)
    noise = torch.tensor([2**-25, 2**-17, 0.5, 1 - 2**-17, 1 - 2**-24]).expand(1, 2, 5, 5)
    for bias in (-100.0, 0.0, 100.0):
        for given in (None, noise, noise.flip(-1)):
            for function in (lambda x, n, b=bias: fused(x, n, b), reference):
                leaf = scores.clone().requires_grad_()
                pattern, expected, _ = function(leaf, given)
                (pattern.sum() + expected.sum()).backward()
                assert leaf.grad is not None
                assert all(t.isfinite().all() for t in (pattern, expected, leaf.grad))


def test_masks_of_half_precision_hide_in_every_dtype() -> None:
    for mask in (torch.float16, torch.bfloat16, torch.float32):
        for dtype in (torch.float32, torch.float64):
            scores = torch.full((1, 1, 1, 2), 1.0, dtype=dtype)
            scores[..., 1] += torch.finfo(mask).min
            assert is_visible(scores).tolist() == [[[[True, False]]]]


def test_row_noise_does_not_depend_on_the_split() -> None:
    cpu = torch.device("cpu")
    whole = RowNoise(seed=1, step=2)(0, torch.Size([4, 2, 3, 3]), cpu)  # 18 numbers a row: not a multiple of four
    parts = [RowNoise(1, 2, first_row=row)(0, torch.Size([2, 2, 3, 3]), cpu) for row in (0, 2)]
    assert torch.equal(torch.cat(parts), whole)
    others = [
        RowNoise(2, 2)(0, whole.shape, cpu),
        RowNoise(1, 3)(0, whole.shape, cpu),
        RowNoise(1, 2)(1, whole.shape, cpu),
    ]
    assert not any(torch.equal(other, whole) for other in others)
    assert not torch.equal(whole[0], whole[1])


def test_row_noise_is_uniform_and_leaves_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    noise = RowNoise(seed=0, step=0)(0, torch.Size([50, 4, 20, 20]), torch.device("cpu"))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert noise.mean().item() == pytest.approx(0.5, abs=0.005)
    assert noise.var().item() == pytest.approx(1 / 12, abs=0.002)
    assert noise.min() > 0
    assert noise.max() < 1


def test_default_noise_follows_the_seed() -> None:
    settings = GateSettings(0.0)
    torch.manual_seed(0)
    first = settings.noise(0, SHAPE, torch.device("cpu"))
    torch.manual_seed(0)
    assert torch.equal(uniform_noise(1, SHAPE, torch.device("cpu")), first)
