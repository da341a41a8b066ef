"""How many edges a goal takes, with its interval, on prompts with hand-made circuits."""

import numpy as np
import pytest
import torch

from sparselens.analyses.circuits.circuit_runs import Faithfulness
from sparselens.analyses.circuits.edges_for_goal import edges_for_goal
from sparselens.analyses.circuits.faithfulness import FaithfulnessCurve


def curve(*shares: list[float]) -> FaithfulnessCurve:
    """Circuits of 1, 2, 4 and 8 edges of 16, by the share of the metric that each keeps of every prompt."""
    n = len(shares[0])
    points = tuple(Faithfulness(torch.tensor(share), torch.ones(n), torch.zeros(n)) for share in shares)
    return FaithfulnessCurve((1, 2, 4, 8)[: len(points)], 16, points)


def test_prompts_that_agree_leave_no_doubt():
    found = edges_for_goal(curve([0.1] * 30, [0.9] * 30, [1.0] * 30), 0.8)
    assert found is not None and (found.mean, found.low, found.high) == (2, 2, 2)


def test_prompts_that_do_not_agree_have_an_interval():
    """Two edges keep all of 25 prompts and nothing of 5: 0.83 of the metric, with other prompts less than 0.8."""
    found = edges_for_goal(curve([0.1] * 30, [1.0] * 25 + [0.0] * 5, [1.0] * 30, [1.0] * 30), 0.8)
    assert found is not None and (found.mean, found.low, found.high) == (2, 2, 4)


def test_where_no_tried_circuit_does_with_other_prompts_all_edges_count():
    found = edges_for_goal(curve([0.1] * 30, [1.0] * 25 + [0.0] * 5), 0.8)
    assert found is not None and found.high == 16


def test_a_goal_that_is_not_reached_has_no_size():
    assert edges_for_goal(curve([0.1] * 30, [0.5] * 30), 0.8) is None


def test_clusters_are_resampled_together():
    shares = [1.0] * 25 + [0.0] * 5
    once = edges_for_goal(curve([0.1] * 30, shares, [1.0] * 30), 0.9)
    alone = edges_for_goal(curve([0.1] * 60, shares * 2, [1.0] * 60), 0.9, clusters=list(range(30)) * 2)
    assert once is not None and alone is not None and (once.low, once.high) == (alone.low, alone.high)
    assert alone.distinct == 30


def test_no_gap_is_refused():
    same = Faithfulness(torch.zeros(4), torch.tensor([1.0, -1.0, 1.0, 1.0]), torch.zeros(4))
    full = Faithfulness(same.clean, same.clean, same.ablated)
    with pytest.raises(ValueError, match="not finite"):
        edges_for_goal(FaithfulnessCurve((1, 2), 4, (same, full)), 0.8)


def test_a_gap_of_the_other_sign_in_a_resample_is_refused():
    """The whole model is better than nothing on average, but not on most prompts: in some resamples it is worse."""
    whole = torch.tensor([9.0] * 3 + [-1.0] * 7)
    points = tuple(Faithfulness(share * whole, whole, torch.zeros(10)) for share in (0.5, 1.0))
    with pytest.raises(ValueError, match="not finite"):
        edges_for_goal(FaithfulnessCurve((1, 2), 4, points), 0.8)
    worse = tuple(Faithfulness(share * torch.full((10,), -1.0), -torch.ones(10), torch.zeros(10)) for share in (0.5, 1))
    always = edges_for_goal(FaithfulnessCurve((1, 2), 4, worse), 0.8)  # of a metric that is low where it is good
    assert always is not None and (always.mean, always.low, always.high) == (2, 2, 2)


def test_clean_prompts_are_the_clusters_by_default():
    shares, one = [1.0] * 25 + [0.0] * 5, torch.ones(60)
    alike = torch.arange(60) % 30
    points = tuple(Faithfulness(torch.tensor(s * 2), one, 0 * one, alike) for s in ([0.1] * 30, shares, [1.0] * 30))
    found = edges_for_goal(FaithfulnessCurve((1, 2, 4), 16, points), 0.9)
    assert found is not None and found.distinct == 30 and points[0].interval().distinct == 30
    assert points[0].interval(clusters=range(60)).distinct == 60


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Circuits of 4 to 23 edges that keep more with each, of every prompt as much more or less: ten reach the goal."""
    generator, one, sizes, held = np.random.default_rng(0), torch.ones(50), range(4, 24), list[bool]()
    for _ in range(400):
        own = torch.from_numpy(generator.normal(scale=0.3, size=50)).float()
        points = tuple(Faithfulness((n - 9.5) / 25 + 0.8 + own, one, 0 * one) for n in sizes)
        found = edges_for_goal(FaithfulnessCurve(tuple(sizes), 100, points), 0.8)
        held.append(found is not None and found.low <= 10 <= found.high)
    assert np.mean(held) >= 0.93  # whole numbers: it may be more than 0.97
