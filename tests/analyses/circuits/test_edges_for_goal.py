"""How many edges a goal takes, and how sure that is: on prompts whose circuits are known by hand."""

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
