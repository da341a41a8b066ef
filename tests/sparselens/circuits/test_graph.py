"""Names, order and numbers of a graph's nodes and edges."""

import pytest
import torch

from sparselens.analyses.engine.residual_stream import read_model
from sparselens.circuits.graph import Block, Graph
from tests.tiny_models import tiny_bridge


def count(n_layers: int, n_heads: int, parallel: bool = False) -> int:
    """The formula of the docstring, written out."""
    total = 0
    for layer in range(n_layers):
        written = 1 + layer * (n_heads + 1)
        total += 3 * n_heads * written + written + (0 if parallel else n_heads)
    return total + 1 + n_layers * (n_heads + 1)


# as counted by EAP-IG, auto-circuit and TransformerLens (GPT-2), or by the formula
COUNTS = {
    "gpt2-small": ((12, 12), {}, 32_491),
    "gpt2-medium": ((24, 16), {}, 231_877),
    "gpt2-xl": ((48, 25), {}, 2_235_025),
    "pythia-70m": ((6, 8), {"parallel": True}, 3_580),
    "pythia-160m": ((12, 12), {"parallel": True}, 32_347),
    "pythia-1b": ((16, 8), {"parallel": True}, 27_545),
    "pythia-2.8b": ((32, 32), {"parallel": True}, 1_591_857),
    "qwen2.5-0.5b": ((24, 14, 2), {}, 179_749),
    "llama-3.2-1b": ((16, 32, 8), {}, 386_713),
    "llama-3.1-8b": ((32, 32, 8), {}, 1_592_881),
    "gemma-2-2b": ((26, 8, 4), {}, 74_218),
}


@pytest.mark.parametrize("name", COUNTS)
def test_number_of_edges(name: str):
    shape, options, edges = COUNTS[name]
    graph = Graph.of_shape(*shape, **options)
    assert graph.n_edges == edges == count(*shape[:2], **options)
    if edges < 50_000:
        assert int(graph.exists.sum()) == edges


def test_a_small_graph_written_out():
    graph = Graph.of_shape(1, 1)
    assert graph.sources == ("input", "a0.h0", "m0")
    assert graph.destinations == ("a0.h0<q>", "a0.h0<k>", "a0.h0<v>", "m0", "logits")
    assert graph.edge_names(graph.exists) == [
        "input->a0.h0<q>",
        "input->a0.h0<k>",
        "input->a0.h0<v>",
        "input->m0",
        "input->logits",
        "a0.h0->m0",
        "a0.h0->logits",
        "m0->logits",
    ]


def test_a_parallel_mlp_does_not_read_its_own_layer():
    graph = Graph.of_shape(2, 2, parallel=True)
    assert not graph.exists[graph.source("a1.h0"), graph.destination("m1")]
    assert graph.exists[graph.source("a0.h0"), graph.destination("m1")]


def test_blocks_may_differ():
    graph = Graph((Block(2), Block(3, mlp=False)))
    assert graph.sources == ("input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "a1.h2")
    assert graph.reads.tolist() == [1] * 6 + [3] + [4] * 9 + [7]
    assert graph.sources[graph.head_sources(1)] == ("a1.h0", "a1.h1", "a1.h2")
    assert graph.destinations[graph.head_destinations(1)][::3] == ("a1.h0<q>", "a1.h0<k>", "a1.h0<v>")


def test_names_go_there_and_back():
    graph = Graph.of_shape(3, 2, 1)
    names = graph.edge_names(graph.exists)
    assert len(names) == len(set(names)) == graph.n_edges
    assert torch.equal(graph.matrix(names), graph.exists)


def test_a_node_reads_through_its_own_receivers():
    graph = Graph.of_shape(2, 2)
    read_through = graph.receivers[graph.source("a1.h1")]
    assert [graph.destinations[i] for i in read_through.nonzero()[:, 0]] == ["a1.h1<q>", "a1.h1<k>", "a1.h1<v>"]
    assert not graph.receivers[graph.source("input")].any()
    assert not graph.receivers[:, graph.destination("logits")].any()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a0.h1", "no such edge: 'a0.h1'"),
        ("a9h6->logits", "no such source: 'a9h6'"),
        ("logits->m0", "no such source: 'logits'"),
        ("input->a0.h0", "no such destination: 'a0.h0'"),
        ("input->a0.h2<q>", "no such destination: 'a0.h2<q>' .* 2 layers of 2 heads"),
        ("m1->a0.h0<q>", "a0.h0<q> reads before m1 writes"),
        ("m0->m0", "m0 reads before m0 writes"),
    ],
)
def test_an_unknown_edge_is_refused(name: str, message: str):
    with pytest.raises(ValueError, match=message):
        Graph.of_shape(2, 2).edge(name)


@pytest.mark.parametrize("shape", [(0, 2), (2, 0), (2, 4, 3), (2, 4, -1)])
def test_an_impossible_shape_is_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="no such model"):
        Graph.of_shape(*shape)


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_the_graph_of_a_model_is_that_of_its_scores(family: str):
    model = tiny_bridge(family)
    graph = Graph.of_model(model)
    assert graph == read_model(model).graph
    assert graph.blocks[0].parallel == (family == "neox") and graph.blocks[0].n_heads == model.cfg.n_heads


def test_only_models_of_transformerlens_have_a_graph():
    with pytest.raises(ValueError, match="want a TransformerBridge or HookedTransformer, not a Linear"):
        Graph.of_model(torch.nn.Linear(2, 2))
