"""Circuits: how their edges are chosen, compared, pruned and kept in files."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from sparselens.circuits.circuit import (
    Circuit,
    edges_to_reach,
    greedy,
    smallest,
    top,
)
from sparselens.circuits.graph import Block, Graph

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


def circuit(*edges: str) -> Circuit:
    return Circuit(ONE, ONE.matrix(edges), SCORES)


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
    with pytest.raises(ValueError, match="only 2 of the edges to choose from lead to the logits"):
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


def test_pruning_keeps_paths_from_input_to_logits():
    assert circuit("input->a0.h0<q>", "m0->logits").pruned().edges == []
    path = ("input->a0.h0<v>", "a0.h0->m0", "m0->logits")
    assert circuit(*path).pruned().edges == list(path)
    assert circuit(*path, "a0.h0->logits").pruned().edges == [*path[:2], "a0.h0->logits", path[2]]
    assert circuit("a0.h0->m0", "m0->logits").pruned().edges == []
    assert circuit("input->logits", "input->m0").pruned().edges == ["input->logits"]


def test_pruning_follows_paths_through_many_layers():
    graph = Graph.of_shape(5, 1)
    nodes = ["input", *(name for layer in range(5) for name in (f"a{layer}.h0", f"m{layer}")), "logits"]
    path = [f"{a}->{b}" + ("<v>" if b.startswith("a") else "") for a, b in pairwise(nodes)]
    whole = Circuit(graph, graph.matrix(path), torch.zeros(graph.exists.shape))
    assert set(whole.pruned().edges) == set(path)
    cut = Circuit(graph, graph.matrix(path[:4] + path[5:]), whole.scores)
    assert len(cut.pruned()) == 0


def test_the_complement_is_everything_else():
    chosen = circuit("input->m0")
    assert set(chosen.edges) | set(chosen.complement().edges) == set(ONE.edge_names(ONE.exists))
    assert len(chosen) + len(chosen.complement()) == ONE.n_edges


def test_jaccard_by_hand():
    first, second = circuit("input->m0", "m0->logits"), circuit("input->m0", "input->logits")
    assert first.jaccard(second) == pytest.approx(1 / 3)
    assert first.jaccard(first) == 1
    assert circuit().jaccard(circuit()) == 1


def test_rank_correlation_by_hand():
    def with_scores(*values: float) -> Circuit:
        scores = torch.zeros(ONE.exists.shape)
        scores[ONE.exists] = torch.tensor(values, dtype=torch.float32)
        return Circuit(ONE, ONE.matrix([]), scores)

    rising = with_scores(1, 2, 3, 4, 5, 6, 7, 8)
    assert rising.rank_correlation(with_scores(-1, 4, -9, 16, 25, 36, 49, 64)) == pytest.approx(1)
    assert rising.rank_correlation(with_scores(8, 7, 6, 5, 4, 3, 2, 1)) == pytest.approx(-1)
    # equal scores share the mean of their ranks
    tied = torch.tensor([1.5, 1.5, 3, 4, 5, 6, 7, 8])
    expected = torch.corrcoef(torch.stack([torch.arange(1, 9.0), tied]))[0, 1]
    assert rising.rank_correlation(with_scores(2, 2, 3, 4, 5, 6, 7, 8)) == pytest.approx(float(expected))


def test_circuits_of_different_models_are_not_compared():
    other = Graph.of_shape(1, 1, parallel=True)
    stranger = Circuit(other, torch.zeros_like(other.exists), torch.zeros(other.exists.shape))
    for compare in (Circuit.jaccard, Circuit.rank_correlation):
        with pytest.raises(ValueError, match="different models"):
            compare(circuit(), stranger)


def test_edges_by_name_or_by_mask():
    named = Circuit(ONE, ["input->m0", "m0->logits"])
    assert torch.equal(named.kept, circuit("input->m0", "m0->logits").kept) and not named.scores.any()
    assert repr(named) == f"Circuit(2 of {ONE.n_edges} edges, 1 layer of 1 heads)"
    assert len(Circuit(ONE, [])) == 0
    with pytest.raises(ValueError, match="no such source: 'm7'"):
        Circuit(ONE, ["m7->logits"])


def test_a_circuit_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="another model's"):
        Circuit(ONE, torch.zeros(4, 5, dtype=torch.bool), torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"no such edge: 'a0.h0->a0.h0<q>'"):
        Circuit(ONE, ~ONE.exists, SCORES)


@pytest.mark.parametrize("graph", [ONE, Graph.of_shape(2, 4, 2), Graph.of_shape(2, 2, mlp=False, parallel=True)])
def test_a_saved_circuit_comes_back(graph: Graph, tmp_path: Path):
    chosen = top(graph, torch.randn(graph.exists.shape), 5)
    loaded = Circuit.load(chosen.save(tmp_path / "circuit.json"))
    assert loaded.graph == graph
    assert loaded.edges == chosen.edges
    torch.testing.assert_close(loaded.scores[graph.exists], chosen.scores[graph.exists], rtol=0, atol=0)
    assert list(tmp_path.iterdir()) == [tmp_path / "circuit.json"]


def test_a_file_in_eap_igs_format_is_read(tmp_path: Path):
    file = tmp_path / "graph.json"
    cfg = {"n_layers": 1, "n_heads": 1, "parallel_attn_mlp": False, "d_model": 8}
    edges = {name: {"score": 0.5, "in_graph": name == "m0->logits"} for name in ONE.edge_names(ONE.exists)}
    edges["input->m0"]["score"] = None  # pyright: ignore
    file.write_text(json.dumps({"cfg": cfg, "nodes": {"m0": {"in_graph": True}}, "edges": edges}))
    loaded = Circuit.load(file)
    assert loaded.edges == ["m0->logits"]
    assert loaded.scores[ONE.edge("input->m0")] == 0
    assert loaded.scores[ONE.edge("m0->logits")] == 0.5


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cfg": {}, "edges": {}}', '{"cfg": null, "edges": {}}'])
def test_a_file_without_a_circuit_is_refused(text: str, tmp_path: Path):
    file = tmp_path / "graph.json"
    file.write_text(text)
    with pytest.raises(ValueError, match="holds no circuit"):
        Circuit.load(file)


def test_a_model_of_unequal_blocks_has_no_file(tmp_path: Path):
    graph = Graph((Block(2), Block(3)))
    chosen = top(graph, torch.randn(graph.exists.shape), 3)
    with pytest.raises(ValueError, match="blocks of this model differ"):
        chosen.save(tmp_path / "circuit.json")
