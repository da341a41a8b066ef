"""The multiplier, by hand."""

import math

import pytest
import torch

import sparselens as sl


def test_one_update_by_hand():
    geco = sl.Geco(target=2.0, rate=0.5, smoothing=0.9, limit=0.1)
    geco.update(2.04)
    assert geco.ema == pytest.approx(0.04)
    assert geco.multiplier == pytest.approx(math.exp(0.5 * 0.4))
    geco.update(1.84)  # ema: 0.9 * 0.04 - 0.1 * 0.16
    assert geco.ema == pytest.approx(0.02)
    assert geco.multiplier == pytest.approx(math.exp(0.5 * 0.4 + 0.5 * 0.2))


def test_allowance_counts_as_met():
    geco = sl.Geco(target=2.0, rate=0.5, limit=0.1)
    geco.update(2.05, allowance=0.1)
    assert geco.multiplier == pytest.approx(math.exp(-0.5 * 0.5))


def test_loss_is_the_lagrangian_with_gradients_of_one_size():
    geco = sl.Geco(target=2.0, multiplier=3.0)
    geco.relative_to(0.1)
    edges, task = torch.tensor(0.5, requires_grad=True), torch.tensor(2.2, requires_grad=True)
    loss = geco.loss(edges, task)
    loss.backward()
    assert float(loss.detach()) == pytest.approx((0.5 / 0.1 + 3.0 * 0.2) / 4)
    assert edges.grad is not None and task.grad is not None
    assert [float(edges.grad), float(task.grad)] == pytest.approx([1 / 0.1 / 4, 3 / 4])


def test_edges_are_relative_to_the_last_ones_and_to_one_at_first():
    geco = sl.Geco(target=2.0, multiplier=1.0)
    one, at_target = torch.tensor(1.0), torch.tensor(2.0)
    assert geco.loss(one, at_target).item() == pytest.approx(1 / 2)
    geco.relative_to(0.25)
    assert geco.loss(one, at_target).item() == pytest.approx(4 / 2)
    geco.relative_to(0.0)
    assert geco.loss(one, at_target).isfinite()


def test_one_bad_batch_counts_as_the_limit():
    calm, wild = (sl.Geco(target=2.0, limit=0.1) for _ in range(2))
    calm.update(2.1)
    wild.update(1e6)
    assert wild.multiplier == pytest.approx(calm.multiplier)


@pytest.mark.parametrize(("loss", "bound"), [(9.0, 1.5), (0.0, 0.5)])
def test_multiplier_stays_within_its_bounds(loss: float, bound: float):
    geco = sl.Geco(target=2.0, rate=5.0, limit=0.1, bounds=(0.5, 1.5))
    for _ in range(9):
        geco.update(loss)
    assert geco.multiplier == bound


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_infinite_loss_leaves_the_multiplier_alone(loss: float):
    geco = sl.Geco(target=2.0)
    geco.update(2.01)
    before = geco.state_dict()
    with pytest.raises(ValueError, match=r"the task loss is -?(nan|inf)"):
        geco.update(loss)
    assert geco.state_dict() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [("target", math.nan), ("target", math.inf), ("smoothing", 1.0), ("multiplier", 0.0), ("limit", 0.0)],
)
def test_senseless_settings_are_refused(name: str, value: float):
    with pytest.raises(ValueError, match=name):
        sl.Geco(**{"target": 2.0, name: value})


def test_state_round_trip():
    first, second = (sl.Geco(target=2.0) for _ in range(2))
    first.update(2.1)
    second.load_state_dict(first.state_dict())
    for geco in (first, second):
        geco.update(1.7)
    assert first.state_dict() == second.state_dict()
