"""Circuits as attribution graphs of Neuronpedia: the fields that its viewer needs, and reading the circuit back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import sparselens as sl
from sparselens.circuits.circuit import Circuit
from sparselens.circuits.graph import Block, Graph
from sparselens.circuits.selection import top

GRAPH = Graph.of_shape(2, 2)
TEXT = {"prompt": "Mary and John", "tokens": ["Mary", " and", " John"], "slug": "names", "scan": "tiny"}
EDGES = ("input->a0.h1<v>", "a0.h1->a1.h0<q>", "a0.h1->a1.h0<k>", "a0.h1->m1", "a1.h0->logits", "m1->logits")


def circuit() -> Circuit:
    scores = torch.randn(GRAPH.exists.shape, generator=torch.Generator().manual_seed(0)) * GRAPH.exists
    scores[GRAPH.edge("a0.h1->a1.h0<q>")] = 0.5
    scores[GRAPH.edge("a0.h1->a1.h0<k>")] = -0.125
    scores[GRAPH.edge("a1.h0->logits")] = -3.0
    return Circuit(GRAPH, GRAPH.matrix(EDGES), scores)


def written(tmp_path: Path, **options: Any) -> dict[str, Any]:
    return json.loads(sl.write_neuronpedia(circuit(), tmp_path / "graph.json", **TEXT, **options).read_text())


def changed(tmp_path: Path, **keys: Any) -> Path:
    path = tmp_path / "changed.json"
    path.write_text(json.dumps({k: v for k, v in {**written(tmp_path), **keys}.items() if v is not None}))
    return path


def test_a_file_gives_back_the_circuit(tmp_path: Path):
    before = circuit()
    after = sl.read_neuronpedia(sl.write_neuronpedia(before, tmp_path / "deep/graph.json", **TEXT))
    assert after.graph == before.graph
    assert after.edges == list(before.edges)
    assert torch.equal(after.scores, before.scores)
    assert after.score_share == before.score_share


@pytest.mark.parametrize("n", [0, 1, 37, GRAPH.n_edges])
def test_circuits_of_every_size(tmp_path: Path, n: int):
    before = top(GRAPH, circuit().scores, n)
    after = sl.read_neuronpedia(sl.write_neuronpedia(before, tmp_path / "graph.json", **TEXT))
    assert torch.equal(after.kept, before.kept)


def test_blocks_that_differ(tmp_path: Path):
    graph = Graph((Block(2, 1), Block(4, 4, mlp=False), Block(1, 1, parallel=True)))
    before = Circuit(graph, graph.exists.clone(), torch.rand(graph.exists.shape) * graph.exists)
    after = sl.read_neuronpedia(sl.write_neuronpedia(before, tmp_path / "graph.json", **TEXT))
    assert after.graph == graph
    assert after.edges == before.edges


def test_it_has_what_the_schema_requires(tmp_path: Path):
    data = written(tmp_path)
    assert {"metadata", "qParams", "nodes", "links"} < set(data)
    assert data["metadata"] == {
        "slug": "names",
        "scan": "tiny",
        "prompt": "Mary and John",
        "prompt_tokens": ["Mary", " and", " John"],
    }
    kinds = {"node_id": str, "feature": int, "layer": str, "ctx_idx": int, "feature_type": str, "jsNodeId": str}
    for node in data["nodes"]:
        assert {name: type(node[name]) for name in kinds} == kinds
        assert isinstance(node["clerp"], str)
    for link in data["links"]:
        assert (type(link["source"]), type(link["target"]), type(link["weight"])) == (str, str, float)


def test_nodes_are_those_of_the_circuit_and_each_has_its_own_place(tmp_path: Path):
    nodes = {node["node_id"]: node for node in written(tmp_path)["nodes"]}
    assert list(nodes) == ["input", "a0.h1", "a1.h0", "m1", "logits"]
    places = [(node["layer"], node["feature"], node["feature_type"], node["ctx_idx"]) for node in nodes.values()]
    assert places == [
        ("E", 0, "embedding", 2),
        ("0", 1, "attention head", 2),
        ("1", 0, "attention head", 2),
        ("1", 2, "mlp", 2),
        ("2", 0, "logit", 2),
    ]


def test_a_link_for_every_two_nodes_with_the_sum_of_its_scores(tmp_path: Path):
    links = {(link["source"], link["target"]): link for link in written(tmp_path)["links"]}
    assert list(links) == [
        ("input", "a0.h1"),
        ("a0.h1", "a1.h0"),
        ("a0.h1", "m1"),
        ("a1.h0", "logits"),
        ("m1", "logits"),
    ]
    assert links["a0.h1", "a1.h0"] == {
        "source": "a0.h1",
        "target": "a1.h0",
        "weight": 0.375,
        "receivers": ["q", "k"],
    }
    assert links["a1.h0", "logits"] == {"source": "a1.h0", "target": "logits", "weight": -3.0}


def test_labels_and_the_answer(tmp_path: Path):
    plain = {node["node_id"]: node["clerp"] for node in written(tmp_path)["nodes"]}
    assert (plain["a0.h1"], plain["logits"]) == ("a0.h1", "")
    told = written(tmp_path, labels={"a0.h1": "induction 0.82", "m0": "unused"}, answer=(" Mary", 0.75))
    clerps = {node["node_id"]: node["clerp"] for node in told["nodes"]}
    assert (clerps["a0.h1"], clerps["logits"]) == ("a0.h1: induction 0.82", 'Output " Mary" (p=0.750)')
    assert told["nodes"][-1]["token_prob"] == 0.75


def test_what_cannot_be_written(tmp_path: Path):
    path = tmp_path / "graph.json"
    with pytest.raises(ValueError, match="slug must not be empty"):
        sl.write_neuronpedia(circuit(), path, **{**TEXT, "slug": ""})
    with pytest.raises(ValueError, match="tokens must not be empty"):
        sl.write_neuronpedia(circuit(), path, **{**TEXT, "tokens": []})
    with pytest.raises(ValueError, match=r"no such source: 'a9\.h0'"):
        sl.write_neuronpedia(circuit(), path, **TEXT, labels={"a9.h0": "far"})
    broken = circuit()
    broken.scores[0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        sl.write_neuronpedia(broken, path, **TEXT)
    assert not path.exists()


def test_broken_files_say_what_is_wrong(tmp_path: Path):
    empty = tmp_path / "empty.json"
    for text in ("", "[]", "{}", '"sparselens"', "\x00"):
        empty.write_text(text)
        with pytest.raises(ValueError, match=r"empty\.json holds no circuit"):
            sl.read_neuronpedia(empty)
    with pytest.raises(ValueError, match='it has no "sparselens"'):
        sl.read_neuronpedia(changed(tmp_path, sparselens=None))
    with pytest.raises(ValueError, match=r"no such source: 'a7\.h0'"):
        sl.read_neuronpedia(changed(tmp_path, links=[{"source": "a7.h0", "target": "m1", "weight": 1.0}]))
    with pytest.raises(ValueError, match=r"no such destination: 'a1\.h0'"):
        sl.read_neuronpedia(changed(tmp_path, links=[{"source": "input", "target": "a1.h0", "weight": 1.0}]))
    with pytest.raises(ValueError, match="holds no circuit"):
        sl.read_neuronpedia(changed(tmp_path, links=[{"source": "input"}]))
    own = written(tmp_path)["sparselens"]
    for wrong in ({"scores": own["scores"][1:]}, {"scores": ["x"]}, {"blocks": [{"heads": 1}]}, {"blocks": 3}):
        with pytest.raises(ValueError, match="holds no circuit"):
            sl.read_neuronpedia(changed(tmp_path, sparselens=own | wrong))
