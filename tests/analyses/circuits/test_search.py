"""The smallest faithful circuit, against all circuits of top edges; and invalid input."""

import pytest
import torch

from sparselens.analyses import attribute_edges, faithful_circuit, faithfulness
from sparselens.analyses.circuits import circuit_runs
from sparselens.analyses.circuits import search as search_module
from sparselens.analyses.engine import request
from sparselens.analyses.engine.residual_stream import read_model
from sparselens.prompts.metrics import logit_difference
from tests.analyses.small_models import tiny_pairs, two_layer_pairs, two_layers
from tests.tiny_models import tiny_bridge


@pytest.mark.parametrize("goal", [0.5, 0.8, 1.0])
def test_it_reaches_the_goal_and_one_edge_fewer_does_not(goal: float):
    model, pairs = tiny_bridge("llama"), tiny_pairs()
    scores = attribute_edges(model, pairs, logit_difference, "exact", progress=False)
    circuit, found = faithful_circuit(model, pairs, scores, logit_difference, goal)
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
    circuit, found = faithful_circuit(model, pairs, scores, logit_difference, goal=1.0)
    assert found.mean == pytest.approx(1.0)
    assert "input->a0.h0<v>" in circuit.edges and len(circuit) <= scores.graph.n_edges


@pytest.mark.parametrize("goal", [0.0, 1.5])
def test_a_goal_out_of_range_is_named(goal: float):
    model, pairs = two_layers(), two_layer_pairs()
    scores = attribute_edges(model, pairs, logit_difference, progress=False)
    with pytest.raises(ValueError, match=f"goal must be above 0 and at most 1, not {goal}"):
        faithful_circuit(model, pairs, scores, logit_difference, goal)


def test_the_model_is_read_once_and_runs_that_all_circuits_share_are_made_once(monkeypatch: pytest.MonkeyPatch):
    model, pairs = tiny_bridge("llama"), tiny_pairs()
    scores = attribute_edges(model, pairs, logit_difference, progress=False)
    calls: list[str] = []

    def counted(name: str) -> None:
        whole = getattr(circuit_runs, name)
        monkeypatch.setattr(circuit_runs, name, lambda *args, **more: (calls.append(name), whole(*args, **more))[1])

    for name in ("ablated_by", "run_circuits"):
        counted(name)
    monkeypatch.setattr(request, "read_model", lambda model: (calls.append("read_model"), read_model(model))[1])
    circuit, _ = faithful_circuit(model, pairs, scores, logit_difference, progress=False)
    assert len(circuit) > 8  # so at least four were tried
    assert calls.count("read_model") == 1
    assert calls.count("ablated_by") == 1
    assert calls.count("run_circuits") >= 4


def test_little_memory_takes_longer_and_gives_the_same(monkeypatch: pytest.MonkeyPatch):
    model, pairs = tiny_bridge("llama"), tiny_pairs(5)
    scores = attribute_edges(model, pairs, logit_difference, progress=False)
    with pytest.raises(ValueError, match=r"too small: one prompt takes \d+") as refused:
        faithful_circuit(model, pairs, scores, logit_difference, memory=1)
    least = int(str(refused.value).rsplit(" ", 1)[1]) + 2**14
    (one, found), (other, again) = (
        faithful_circuit(model, pairs, scores, logit_difference, memory=memory, progress=False)
        for memory in (least, 2**30)
    )
    assert one.edges == other.edges
    torch.testing.assert_close(found.circuit, again.circuit, rtol=1e-4, atol=1e-5)


def test_a_search_that_takes_long_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(search_module, "DELAY", 0.0)
    monkeypatch.setattr("sparselens.bars.is_watched", lambda: True)
    model, pairs = tiny_bridge("llama"), tiny_pairs()
    scores = attribute_edges(model, pairs, logit_difference, progress=False)
    faithful_circuit(model, pairs, scores, logit_difference)
    shown = capsys.readouterr().err
    assert "search:" in shown and " edges: " in shown


def test_the_old_order_of_pairs_and_scores_warns_and_works():
    model, pairs = two_layers(), two_layer_pairs()
    scores = attribute_edges(model, pairs, logit_difference, progress=False)
    with pytest.warns(DeprecationWarning, match=r"faithful_circuit\(model, scores, pairs, \.\.\.\) is now"):
        old, _ = faithful_circuit(model, scores, pairs, logit_difference, progress=False)  # type: ignore[arg-type]
    assert old.edges == faithful_circuit(model, pairs, scores, "logit_difference", progress=False)[0].edges
