"""Circuits: comparing, pruning, saving and loading."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from sparselens.circuits.circuit import Circuit
from sparselens.circuits.graph import Block, Graph
from sparselens.circuits.selection import top
from tests.sparselens.circuits.test_selection import ONE, SCORES


def circuit(*edges: str) -> Circuit:
    return Circuit(ONE, ONE.matrix(edges), SCORES)


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
    with pytest.raises(ValueError, match="belongs to another model"):
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


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"cfg": {}, "edges": {}}', '{"cfg": null, "edges": {}}', "[" * 10**5]
)
def test_a_file_without_a_circuit_is_refused(text: str, tmp_path: Path):
    file = tmp_path / "graph.json"
    file.write_text(text)
    with pytest.raises(ValueError, match="holds no circuit"):
        Circuit.load(file)


@pytest.mark.parametrize("edge", [{"score": "1", "in_graph": True}, {"score": 1, "in_graph": "false"}])
def test_an_edge_of_other_types_is_refused(edge: dict[str, object], tmp_path: Path):
    file = tmp_path / "graph.json"
    file.write_text(json.dumps({"cfg": {"n_layers": 1, "n_heads": 1}, "edges": {"input->m0": edge}}))
    with pytest.raises(ValueError, match=r"graph\.json: input->m0 has in_graph .* and score"):
        Circuit.load(file)


def test_a_file_cannot_ask_for_a_graph_beyond_memory(tmp_path: Path):
    file = tmp_path / "graph.json"
    file.write_text(json.dumps({"cfg": {"n_layers": 10**9, "n_heads": 2}, "edges": {}}))
    with pytest.raises(ValueError, match=r"2,000,000,000 heads: at most 32,768"):
        Circuit.load(file)
    with pytest.raises(ValueError, match="at most 32,768"):
        Graph((Block(10**9),))


def test_a_model_of_unequal_blocks_has_no_file(tmp_path: Path):
    graph = Graph((Block(2), Block(3)))
    chosen = top(graph, torch.randn(graph.exists.shape), 3)
    with pytest.raises(ValueError, match="the blocks of this model differ"):
        chosen.save(tmp_path / "circuit.json")
