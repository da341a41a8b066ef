"""Tests that edges of the layer x head drawing avoid all nodes but their own, for graphs of any shape."""

import numpy as np
import pytest
from jaxtyping import Float

from sparselens.analyses.figures.circuit_layout import skeleton
from sparselens.circuits.graph import Block, Graph

UNEVEN = Graph((Block(3), Block(1, mlp=False), Block(2), Block(4)))
SHAPES = {
    "even heads": Graph.of_shape(5, 8),
    "odd heads": Graph.of_shape(4, 3),
    "without MLPs": Graph.of_shape(3, 4, mlp=False),
    "parallel MLPs": Graph.of_shape(4, 4, parallel=True),
    "uneven": UNEVEN,
    "GPT-2 small": Graph.of_shape(12, 12),
    "SmolLM2 135M": Graph.of_shape(30, 9),
}


def points_on(paths: Float[np.ndarray, "edge 8 2"], pieces: int = 12) -> Float[np.ndarray, "edge point 2"]:
    """Points along the two cubic curves and the line between them."""
    t = np.linspace(0, 1, pieces)[:, None]
    weights = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3]
    curves = [sum(w * paths[:, i + k, None] for k, w in enumerate(weights)) for i in (0, 4)]
    line = paths[:, 3, None] * (1 - t) + paths[:, 4, None] * t
    return np.concatenate([curves[0], line, curves[1]], axis=1)


@pytest.mark.parametrize("graph", SHAPES.values(), ids=SHAPES.keys())
def test_no_edge_runs_through_a_node_that_it_does_not_touch(graph: Graph):
    frame = skeleton(graph)
    source, destination = (axis.numpy() for axis in graph.exists.nonzero(as_tuple=True))
    some = np.random.default_rng(0).permutation(len(source))[:4000]
    source, destination = source[some], destination[some]
    points = points_on(frame.paths(source, destination))
    starts = np.array(graph.sources)[source]
    ends = np.array([name.partition("<")[0] for name in graph.destinations])[destination]
    for node in frame.nodes:
        inside = np.abs(points - [node.x, node.y]) < np.array([node.width / 2, node.height / 2]) - 0.05
        through = inside.all(-1).any(-1) & (starts != node.name) & (ends != node.name)
        assert not through.any(), (node.name, starts[through][0], ends[through][0])


@pytest.mark.parametrize("graph", SHAPES.values(), ids=SHAPES.keys())
def test_an_edge_only_goes_up_and_stays_on_the_paper(graph: Graph):
    frame = skeleton(graph)
    source, destination = (axis.numpy() for axis in graph.exists.nonzero(as_tuple=True))
    paths = frame.paths(source[:5000], destination[:5000])
    np.testing.assert_allclose(paths[:, 0], frame.leaves[source[:5000]])
    np.testing.assert_allclose(paths[:, 7], frame.enters[destination[:5000]])
    assert (np.diff(points_on(paths)[..., 1], axis=1) < 1e-6).all()
    assert paths[..., 0].min() > 0 and paths[..., 0].max() < 234


def test_edges_of_one_lane_lie_beside_each_other():
    graph = Graph.of_shape(4, 4)
    frame = skeleton(graph)
    edges = [graph.edge(f"a0.h{head}->a3.h3<v>") for head in range(3)]
    lanes = frame.paths(*np.array(edges).T)[:, 4, 0]
    assert len(set(lanes.round(2))) == 3 and np.ptp(lanes) < frame.lanes.pitch - frame.nodes[1].width


def test_what_passes_no_row_is_one_curve():
    graph = Graph.of_shape(3, 2)
    frame = skeleton(graph)
    names = ("input->a0.h1<q>", "a0.h0->m0", "m0->a1.h0<v>", "m0->m1", "a2.h0->logits", "m2->logits")
    paths = frame.paths(*np.array([graph.edge(name) for name in names]).T)
    assert (paths[:, 3:] == paths[:, 7:]).all()
    (across,) = frame.paths(*np.array([graph.edge("a0.h1->a2.h1<k>")]).T)
    assert across[3, 0] == across[4, 0] > across[0, 0] + frame.nodes[1].width / 2 and across[3, 1] > across[4, 1]
