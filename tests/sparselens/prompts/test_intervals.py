"""Bootstrap intervals: against the normal one, on known ratios, and what is refused."""

import numpy as np
import pytest
import torch

from sparselens import mean_interval, ratio_interval
from sparselens.prompts.intervals import Interval, bootstrap_interval, proportion_interval


def test_agrees_with_the_normal_interval_of_many_values():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = mean_interval(values.tolist())
    assert found.mean == pytest.approx(values.mean())
    assert found.standard_error == pytest.approx(values.std(ddof=1) / 20)
    assert found.low == pytest.approx(found.mean - 1.96 * found.standard_error, abs=0.03)
    assert found.high == pytest.approx(found.mean + 1.96 * found.standard_error, abs=0.03)
    assert found.n == 400


def test_holds_the_true_mean_about_as_often_as_it_says():
    draws = np.random.default_rng(1).exponential(1.0, (200, 60))
    held = [low <= 1.0 <= high for low, high in ((i.low, i.high) for i in map(mean_interval, draws.tolist()))]
    assert 0.87 <= np.mean(held) <= 0.99


def test_is_repeatable_and_widens_with_the_level():
    values = torch.rand(30)
    assert mean_interval(values) == mean_interval(values) != mean_interval(values, seed=1)
    narrow, wide = mean_interval(values, level=0.5), mean_interval(values, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_equal_values_leave_no_doubt():
    assert (mean_interval([2.0] * 5).low, mean_interval([2.0] * 5).high) == (2.0, 2.0)


@pytest.mark.parametrize(
    "found",
    [
        mean_interval([3.0]),
        ratio_interval([3.0], [1.0]),
        bootstrap_interval(lambda weights: weights @ np.array([3.0]), 1),
    ],
)
def test_one_prompt_has_no_interval(found: Interval):
    assert np.isnan([found.low, found.high, found.standard_error]).all()
    assert (found.mean, found.n, str(found)) == (3.0, 1, "3")


@pytest.mark.parametrize("below", [[-1.0, 1.0, 3.0], [-2.1, 1.0, 3.2], [2.1, -1.0, -3.2]])
def test_a_ratio_whose_denominator_has_no_sign_is_not_known(below: list[float]):
    found = ratio_interval([1.0, 2.0, 3.0], below)
    assert np.isnan([found.low, found.high, found.standard_error]).all()
    assert found.mean == pytest.approx(6 / sum(below)) and str(found) == f"{found.mean:.3g}"
    below_zero = ratio_interval([1.0, 2.0, 3.0], [-1.0, -2.0, -3.0])
    assert (below_zero.low, below_zero.high, str(below_zero)) == (-1.0, -1.0, "-1 [-1, -1]")


def test_a_ratio_resamples_both_together():
    below = torch.rand(50) + 0.5
    found = ratio_interval(3 * below, below)
    assert found.low == pytest.approx(3.0) and found.high == pytest.approx(3.0)
    loose = ratio_interval(3 * below.flip(0), below)
    assert loose.mean == pytest.approx(3.0) and loose.low < 2.9 < 3.1 < loose.high


def test_many_values_are_resampled_in_chunks():
    values = torch.arange(10_000).double()
    found = mean_interval(values)
    assert found.high - found.low == pytest.approx(2 * 1.96 * found.standard_error, rel=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), "at least one prompt"),
        (lambda: mean_interval([1.0, float("nan")]), "the value of prompt 1 is nan"),
        (lambda: mean_interval([1.0], level=95.0), "level must be between 0 and 1, not 95"),
        (lambda: ratio_interval([1.0, 2.0], [1.0]), "2 and 1 values"),
        (lambda: ratio_interval([1.0, 2.0], [0.0, 0.0]), "zero"),
    ],
)
def test_mistakes_name_the_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_any_statistic_by_weights_agrees_with_the_mean():
    values = np.random.default_rng(2).normal(1.0, 1.0, 200)
    found, wanted = bootstrap_interval(lambda weights: weights @ values, 200), mean_interval(values.tolist())
    assert found.mean == pytest.approx(wanted.mean) and found.n == 200
    assert found.low == pytest.approx(wanted.low, abs=0.02) and found.high == pytest.approx(wanted.high, abs=0.02)
    assert found == bootstrap_interval(lambda weights: weights @ values, 200)


def test_a_statistic_of_few_prompts_has_a_caution_and_of_fewer_no_interval():
    """The median lies between the smallest and the largest of five values 94 times in a hundred."""

    def found(n: int, level: float = 0.95) -> Interval:
        values = np.arange(float(n))
        return bootstrap_interval(lambda weights: weights @ values, n, level)

    assert np.isnan([found(5).low, found(5).high]).all() and found(5).mean == 2 and "too few" in found(5).caution
    assert str(found(5)) == "2" and found(6).low < 2.5 < found(6).high and "at least 30" in found(6).caution
    assert np.isfinite(found(4, 0.8).low) and np.isnan(found(6, 0.99).low) and not found(30).caution


def test_clusters_may_be_a_tensor():
    """Elements of a tensor are equal, and no two have one hash."""
    values, labels = [1.0, 2.0, 4.0, 8.0, 3.0, 5.0], [0, 0, 1, 1, 2, 2]
    by_tensor, by_list = (mean_interval(values, clusters=some) for some in (torch.tensor(labels), labels))
    assert by_tensor == by_list and by_tensor.distinct == 3
    assert proportion_interval([1.0, 0.0], clusters=torch.tensor([4, 4])).distinct == 1


def test_a_statistic_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"), np.errstate(all="ignore"):
        bootstrap_interval(lambda weights: weights[:, 0] / weights[:, 1], 2)
    with pytest.raises(ValueError, match="want at least one prompt, not 0"):
        bootstrap_interval(lambda weights: weights[:, 0], 0)
