"""Pruned circuits: no edge can be removed, they are evaluated on other prompts, and the limit of runs is kept."""

import math

import pytest
import torch

from sparselens.analyses import attribute_edges, faithful_circuit, faithfulness, minimality, pruned_circuit
from sparselens.analyses.circuits import pruning as pruning_module
from sparselens.analyses.circuits.pruning import halves
from sparselens.prompts.metrics import logit_difference
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.tasks import TASKS
from tests.analyses.small_models import shipped, tiny_pairs, two_layer_pairs, two_layers
from tests.tiny_models import tiny_bridge


def four_pairs() -> TokenizedPairs:
    """Those of `two_layer_pairs` and three more, whose clean prompts are others."""
    clean, corrupted = torch.tensor([[0, 1], [1, 0], [0, 0], [1, 1]]), torch.tensor([[2, 1], [2, 0], [2, 0], [2, 1]])
    return TokenizedPairs(clean, corrupted, torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.long))


def test_edges_that_no_answer_needs_go_by_hand():
    """Of the whole graph only the edges into values and logits act: queries and keys of these heads are zero."""
    model, pairs = two_layers(), four_pairs()
    scores = attribute_edges(model, pairs, logit_difference, progress=False)
    everything = scores.top(scores.graph.n_edges)
    assert len(everything) == 12
    found = pruned_circuit(model, pairs, scores, logit_difference, goal=1.0, progress=False)
    assert found is not None and found.untested == 0
    assert not any("<q>" in edge or "<k>" in edge for edge in found.circuit.edges)
    assert found.circuit.edges == found.circuit.pruned().edges


def test_it_is_smaller_and_no_single_edge_can_go():
    model, goal = shipped("addition"), 0.8
    pairs = TASKS["addition"].tokenize(model.tokenizer, 12)
    scores = attribute_edges(model, pairs, logit_difference, "eap", progress=False)
    found = pruned_circuit(model, pairs, scores, logit_difference, goal, progress=False)
    assert found is not None and found.untested == 0
    chosen = pairs[found.chosen_on]
    prefix, _ = faithful_circuit(
        model, chosen, scores.of_prompts(found.chosen_on), logit_difference, goal, progress=False
    )
    assert found.start == scores.graph.n_edges and len(found.circuit) <= 0.5 * len(prefix)
    alone = faithfulness(model, found.circuit, chosen, logit_difference, progress=False)
    assert alone.mean >= goal
    drops = minimality(model, found.circuit, chosen, logit_difference, progress=False)
    assert min(drop.mean for drop in drops.values()) > alone.mean - goal - 1e-5


def test_other_prompts_judge_it():
    model, pairs = tiny_bridge("gpt2"), tiny_pairs(8)
    scores = attribute_edges(model, pairs, logit_difference, "eap", progress=False)
    found = pruned_circuit(model, pairs, scores, logit_difference, 0.5, progress=False)
    assert found is not None and len(found.chosen_on) == 4
    others = torch.tensor([row for row in range(8) if row not in found.chosen_on.tolist()])
    alone = faithfulness(model, found.circuit, pairs[others], logit_difference, progress=False)
    torch.testing.assert_close(found.held_out.circuit, alone.circuit, rtol=1e-4, atol=1e-5)
    # what the others' scores are makes no difference to the choice
    assert scores.per_prompt is not None
    scores.per_prompt[others] = torch.randn_like(scores.per_prompt[others])
    again = pruned_circuit(model, pairs, scores, logit_difference, 0.5, progress=False)
    assert again is not None and again.circuit.edges == found.circuit.edges
    other = pruned_circuit(model, pairs, scores, logit_difference, 0.5, seed=1, progress=False)
    assert other is not None and other.chosen_on.tolist() != found.chosen_on.tolist()


def test_halves_share_no_clean_prompt():
    pairs = tiny_pairs(6)[torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5])]
    rows, others = halves(pairs, seed=0)
    assert sorted([*rows.tolist(), *others.tolist()]) == list(range(12))
    assert len({row % 6 for row in rows.tolist()}) == len({row % 6 for row in others.tolist()}) == 3
    with pytest.raises(ValueError, match="all pairs have the same clean prompt"):
        halves(two_layer_pairs(), seed=0)


def test_its_size_has_an_interval_over_the_prompts_that_chose_it():
    model = shipped("addition-sparse")
    pairs = TASKS["addition"].tokenize(model.tokenizer, 12)
    scores = attribute_edges(model, pairs, logit_difference, "eap", progress=False)
    found = pruned_circuit(model, pairs, scores, logit_difference, 0.8, progress=False)
    assert found is not None
    size = found.size_interval(0.8)
    assert size is not None and size.mean == len(found.circuit) and size.low <= size.mean <= size.high
    assert size.n == 6 and min(found.tried.n_edges) < len(found.circuit)
    paired = found.size_interval(0.8, clusters=[0, 0, 1, 1, 2, 2])
    assert paired is not None and paired.distinct == 3 and math.isnan(paired.low)


def test_runs_are_counted_and_what_is_left_is_said():
    model = shipped("addition")
    pairs = TASKS["addition"].tokenize(model.tokenizer, 8)
    scores = attribute_edges(model, pairs, logit_difference, "eap", progress=False)
    sizes: list[int] = []
    for runs in (1, 20, 40):  # with enough of them nothing is left, as above
        some = pruned_circuit(model, pairs, scores, logit_difference, 0.8, runs=runs, progress=False)
        assert some is not None and some.untested > 0
        sizes.append(len(some.circuit))
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]


def test_a_long_pruning_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(pruning_module, "DELAY", 0.0)
    for module in ("sparselens.bars", pruning_module.__name__):
        monkeypatch.setattr(f"{module}.is_watched", lambda: True)
    model, pairs = tiny_bridge("gpt2"), tiny_pairs(4)
    scores = attribute_edges(model, pairs, logit_difference, "eap", progress=False)
    pruned_circuit(model, pairs, scores, logit_difference, 0.95)
    shown = capsys.readouterr().err
    assert "pruning:" in shown and f" of {scores.graph.n_edges} edges" in shown


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_under_other_ablations(ablation: str):
    model, pairs = tiny_bridge("gpt2"), tiny_pairs(4)
    scores = attribute_edges(model, pairs, logit_difference, "eap", progress=False)
    found = pruned_circuit(model, pairs, scores, logit_difference, 0.5, ablation, progress=False)
    if found is not None:
        chosen = pairs[found.chosen_on]
        again = faithfulness(model, found.circuit, chosen, logit_difference, ablation, progress=False)
        assert again.mean >= 0.5 - 1e-4


def test_a_metric_without_a_gradient_keeps_the_order_of_the_scores():
    model = shipped("addition")
    pairs = TASKS["addition"].tokenize(model.tokenizer, 12)
    scores = attribute_edges(model, pairs, logit_difference, "eap", progress=False)
    found = pruned_circuit(model, pairs, scores, "accuracy", 0.8, progress=False)
    assert found is not None and found.untested == 0 and len(found.circuit) < 60
    again = faithfulness(model, found.circuit, pairs[found.chosen_on], "accuracy", progress=False)
    assert again.mean >= 0.8


def test_refusals():
    model, pairs = tiny_bridge("gpt2"), tiny_pairs(4)
    scores = attribute_edges(model, pairs, logit_difference, "eap", progress=False)
    with pytest.raises(ValueError, match=r"goal must be above 0 and at most 1, not 2\.0"):
        pruned_circuit(model, pairs, scores, goal=2.0)
    with pytest.raises(ValueError, match=r"runs = 0: want at least 1"):
        pruned_circuit(model, pairs, scores, runs=0)
