"""Selecting the edges of a circuit by their scores."""

import pytest
import torch

from sparselens.circuits.graph import Graph
from sparselens.circuits.selection import edges_to_reach, greedy, smallest, top

ONE = Graph.of_shape(1, 1)


def scored(**scores: float) -> torch.Tensor:
    """Scores of a one-layer, one-head graph by the names of its edges, with x for the arrow."""
    matrix = torch.zeros(ONE.exists.shape)
    for name, score in scores.items():
        source, destination = name.split("_to_")
        end = "a0.h0<" + destination[-1] + ">" if destination in "qkv" else destination
        matrix[ONE.edge(f"{source.replace('a0', 'a0.h0')}->{end}")] = score
    return matrix


SCORES = scored(input_to_q=-4, input_to_v=1, input_to_m0=3, a0_to_logits=0.5, a0_to_m0=-1, m0_to_logits=2)


@pytest.mark.parametrize(
    ("share", "edges"),
    [
        (0.3, ["input->a0.h0<q>"]),
        (0.7, ["input->a0.h0<q>", "input->m0", "m0->logits"]),  # 4 + 3 + 2 of 11.5
        (9 / 11.5, ["input->a0.h0<q>", "input->m0", "m0->logits"]),
        (1.0, ["input->a0.h0<q>", "input->a0.h0<v>", "input->m0", "a0.h0->m0", "a0.h0->logits", "m0->logits"]),
    ],
)
def test_smallest_reaches_the_share_with_the_fewest_edges(share: float, edges: list[str]):
    found = smallest(ONE, SCORES, share)
    assert found.edges == edges
    assert found.score_share >= share - 1e-9


def test_top_takes_the_largest_sizes():
    assert top(ONE, SCORES, 2).edges == ["input->a0.h0<q>", "input->m0"]
    assert len(top(ONE, SCORES, ONE.n_edges)) == ONE.n_edges
    assert len(top(ONE, SCORES, 0)) == 0


def test_greedy_grows_from_the_logits():
    # m0->logits (2) opens the edges into m0: input->m0 (3), a0.h0->m0 (1) opens those into a0.h0: q (4)
    order = ["m0->logits", "input->m0", "a0.h0->m0", "input->a0.h0<q>"]
    for n in range(5):
        assert set(greedy(ONE, SCORES, n).edges) == set(order[:n])
    assert len(greedy(ONE, SCORES, ONE.n_edges)) == ONE.n_edges


def test_greedy_circuits_need_no_pruning():
    graph = Graph.of_shape(3, 2)
    scores = torch.randn(graph.exists.shape)
    chosen = greedy(graph, scores, 40)
    reaches_logits = chosen.pruned()
    assert len(chosen) == 40
    assert len(reaches_logits) > 0


@pytest.mark.parametrize("n", [-1, 9])
def test_a_number_beyond_the_graph_is_refused(n: int):
    for choose in (top, greedy):
        with pytest.raises(ValueError, match=f"n = {n}: the graph has 8 edges"):
            choose(ONE, SCORES, n)


@pytest.mark.parametrize("share", [0.0, 1.1, -0.5])
def test_an_impossible_share_is_refused(share: float):
    with pytest.raises(ValueError, match="share must be"):
        smallest(ONE, SCORES, share)


def test_only_the_edges_to_choose_from_are_chosen():
    some = ONE.matrix(["input->a0.h0<v>", "a0.h0->logits", "input->m0", "a0.h0->m0"])
    assert smallest(ONE, SCORES, 0.7, some).edges == ["input->a0.h0<v>", "input->m0"]  # 1 + 3 of 5.5
    assert top(ONE, SCORES, 2, some).edges == ["input->a0.h0<v>", "input->m0"]
    assert top(ONE, SCORES, 4, some).kept.equal(some)
    assert set(greedy(ONE, SCORES, 2, some).edges) == {"a0.h0->logits", "input->a0.h0<v>"}  # m0 leads nowhere
    with pytest.raises(ValueError, match="only 2 of the edges to choose from are on a path"):
        greedy(ONE, SCORES, 3, some)
    for choose in (top, greedy):
        with pytest.raises(ValueError, match="n = 5: the graph has 8 edges, of which 4 have a score"):
            choose(ONE, SCORES, 5, some)


def test_signed_scores_put_harm_last():
    assert top(ONE, SCORES, 2, signed=True).edges == ["input->m0", "m0->logits"]
    assert "input->a0.h0<q>" not in top(ONE, SCORES, 7, signed=True)


def test_all_zero_scores_need_no_edge():
    assert edges_to_reach(torch.zeros(5), 0.9) == 0
    assert len(smallest(ONE, torch.zeros(ONE.exists.shape))) == 0


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        top(ONE, SCORES * torch.nan, 1)


def test_edges_without_a_score_are_never_chosen():
    known = SCORES.masked_fill(SCORES.abs() < 2, torch.nan)
    assert top(ONE, known, 3, total=11.5).edges == ["input->a0.h0<q>", "input->m0", "m0->logits"]
    assert smallest(ONE, known, 0.7, total=11.5).edges == ["input->a0.h0<q>", "input->m0", "m0->logits"]
    with pytest.raises(ValueError, match="n = 4: the graph has 8 edges, of which 3 have a score"):
        top(ONE, known, 4, total=11.5)
    with pytest.raises(ValueError, match="only the 3 largest scores are known"):
        smallest(ONE, known, 0.9, total=11.5)
    with pytest.raises(ValueError, match=r"scores have shape \[3, 4\]"):
        top(ONE, known[:, :4], 2, total=11.5)
