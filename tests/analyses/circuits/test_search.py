"""The smallest faithful circuit: against all circuits of top edges, and what is refused."""

import pytest

from sparselens.analyses import attribute_edges, faithful_circuit, faithfulness
from sparselens.metrics import logit_difference
from tests.analyses.small_models import tiny_pairs, two_layer_pairs, two_layers
from tests.tiny_models import tiny_bridge


@pytest.mark.parametrize("goal", [0.5, 0.8, 1.0])
def test_it_reaches_the_goal_and_one_edge_fewer_does_not(goal: float):
    model, pairs = tiny_bridge("llama"), tiny_pairs()
    scores = attribute_edges(model, pairs, logit_difference, "exact", progress=False)
    circuit, found = faithful_circuit(model, scores, pairs, logit_difference, goal)
    assert found.mean >= goal - 1e-6
    assert circuit.edges == scores.top(len(circuit)).edges
    again = faithfulness(model, circuit, pairs, logit_difference, progress=False)
    assert again.mean == pytest.approx(found.mean)
    fewer = faithfulness(model, scores.top(len(circuit) - 1), pairs, logit_difference, progress=False)
    assert fewer.mean < goal


def test_by_hand():
    # corrupted metric -11, clean -3: the edges into the logits carry input 1, a0.h0 3 and a1.h0 4 of the 8
    model, pairs = two_layers(), two_layer_pairs()
    scores = attribute_edges(model, pairs, logit_difference, progress=False)
    circuit, found = faithful_circuit(model, scores, pairs, logit_difference, goal=1.0)
    assert found.mean == pytest.approx(1.0)
    assert "input->a0.h0<v>" in circuit.edges and len(circuit) <= scores.graph.n_edges


@pytest.mark.parametrize("goal", [0.0, 1.5])
def test_a_goal_out_of_range_is_named(goal: float):
    model, pairs = two_layers(), two_layer_pairs()
    scores = attribute_edges(model, pairs, logit_difference, progress=False)
    with pytest.raises(ValueError, match=f"goal must be above 0 and at most 1, not {goal}"):
        faithful_circuit(model, scores, pairs, logit_difference, goal)
