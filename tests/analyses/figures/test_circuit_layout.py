"""Tests of the layer x head layout, computed by hand for two layers of two heads, and of the files drawn from it."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.figures.circuit_drawing import draw_circuits
from sparselens.analyses.figures.circuit_layout import (
    COLUMN,
    DASH,
    PAGE,
    PANEL,
    SIGNS,
    CircuitLayout,
    difference_heading,
    edge_stroke,
    heading,
    lay_out_circuits,
    lay_out_difference,
    skeleton,
)
from sparselens.circuits.circuit import Circuit
from sparselens.circuits.graph import Graph

GRAPH = Graph.of_shape(2, 2)
NAMES = ("dense", "sparse")


def circuit_of(scores: dict[str, float], graph: Graph = GRAPH) -> Circuit:
    """A circuit with exactly these edges."""
    values = torch.zeros(graph.exists.shape)
    for name, score in scores.items():
        values[graph.edge(name)] = score
    return Circuit(graph, graph.matrix(list(scores)), values)


def random_scores(n_layers: int, n_heads: int, seed: int = 0) -> EdgeScores:
    graph = Graph.of_shape(n_layers, n_heads)
    values = torch.randn(graph.exists.shape, generator=torch.Generator().manual_seed(seed)) ** 3
    return EdgeScores(graph, "eap", values * graph.exists, None, torch.ones(1), torch.zeros(1))


DENSE = circuit_of({"input->a0.h0<q>": 0.25, "a0.h1->a1.h1<v>": -1.0, "m0->logits": 0.5})
SPARSE = circuit_of({"a0.h1->a1.h1<v>": 0.3, "input->m1": -0.2})


def test_layers_go_up_and_heads_to_the_right():
    place = {node.name: node for node in skeleton(GRAPH).nodes}
    assert list(place) == [*GRAPH.sources, "logits"]
    heights = [place[name].y for name in ("input", "a0.h0", "m0", "a1.h0", "m1", "logits")]
    assert heights == sorted(heights, reverse=True) and len(set(heights)) == 6
    for layer in (0, 1):
        first, second, mlp = (place[f"{name}{layer}{head}"] for name, head in (("a", ".h0"), ("a", ".h1"), ("m", "")))
        assert first.y == second.y and first.x < second.x < mlp.x
    assert place["a0.h1"].x == place["a1.h1"].x and place["input"].x == place["logits"].x


def test_a_parallel_mlp_stands_beside_its_heads():
    place = {node.name: node for node in skeleton(Graph.of_shape(2, 2, parallel=True)).nodes}
    assert place["m0"].y == place["a0.h0"].y


def test_panels_line_up_node_for_node():
    wide, narrow = (lay_out_circuits([DENSE, SPARSE], NAMES, width) for width in (PAGE, COLUMN))
    assert [panel.x for panel in wide.panels] == [0, 72 * PAGE - PANEL] and wide.width == 72 * PAGE
    assert wide.panels[0].y == wide.panels[1].y
    assert [panel.x for panel in narrow.panels] == [0, 0] and narrow.width == 72 * COLUMN == PANEL
    assert narrow.panels[1].y > narrow.panels[0].y and narrow.height > 1.7 * wide.height


def test_an_edge_leads_from_the_top_of_its_source_to_the_receiver():
    frame = skeleton(GRAPH)
    place = {node.name: node for node in frame.nodes}
    source, destination = (np.array([place]) for place in GRAPH.edge("input->a0.h0<q>"))
    (path,) = frame.paths(source, destination)
    start, end = place["input"], place["a0.h0"]
    np.testing.assert_allclose(path[0], [start.x, start.y - start.height / 2])
    np.testing.assert_allclose(path[7], [end.x - 0.27 * end.width, end.y + end.height / 2])
    assert (path[1, 0], path[2, 0]) == (path[0, 0], path[3, 0])  # vertical at both ends


def test_queries_keys_and_values_arrive_left_to_right():
    enters = skeleton(GRAPH).enters
    q, k, v = (enters[GRAPH.destination(f"a1.h0<{receiver}>")] for receiver in "qkv")
    assert q[0] < k[0] < v[0] and q[1] == k[1] == v[1]


def test_weak_edges_are_drawn_first_with_the_style_of_their_sign():
    panel = lay_out_circuits([DENSE, SPARSE], NAMES).panels[0]
    assert list(panel.styles) == [SIGNS[0], SIGNS[0], SIGNS[1]] and SIGNS[0].dash != SIGNS[1].dash
    assert [width for width, _ in panel.strokes] == sorted(width for width, _ in panel.strokes)
    assert panel.used == {"input", "a0.h0", "a0.h1", "a1.h1", "m0", "logits"}


def test_both_panels_share_one_scale():
    dense, sparse = lay_out_circuits([DENSE, SPARSE], NAMES).panels
    assert dense.strokes[-1] == edge_stroke(1.0, 3)
    assert sparse.strokes[-1] == pytest.approx(edge_stroke(0.3, 2))


def test_headers_say_what_is_drawn():
    scores = random_scores(3, 4)
    circuit = scores.smallest(0.8)
    layout = lay_out_circuits([circuit, circuit], NAMES)
    assert len(layout.panels[0].paths) == len(circuit)
    assert layout.panels[0].header.text == heading("dense", len(circuit), scores.graph.n_edges, circuit.score_share)
    assert heading("dense", 1234, 32491, 0.9004) == "dense: 1,234 of 32,491 edges, 90.0 % of |score|"


def test_the_difference_of_two_circuits():
    layout = lay_out_difference(DENSE, SPARSE, NAMES)
    (panel,) = layout.panels
    assert panel.header.text == "only dense: 2, only sparse: 1, both: 1 edges" == difference_heading(NAMES, (2, 1, 1))
    assert sorted((style.ink.light, style.dash) for style in panel.styles) == [
        ("#004f8c", DASH), ("#8f959c", DASH), ("#d05500", ()), ("#d05500", ()),
    ]  # fmt: skip
    assert len({label.text for label in layout.legend} & {"only in dense", "only in sparse", "in both"}) == 3
    assert [swatch.style.dash for swatch in layout.swatches] == [(), (), (), DASH]  # dashes: negative, as in circuits


def test_names_cannot_break_a_header():
    text = heading("a\n$x$" + "y" * 99, 1, 2, 0.5)
    assert text.startswith("a\\n$x$yy") and "…: 1 of 2" in text and "\n" not in text


def figure_of(layout: CircuitLayout, monkeypatch: pytest.MonkeyPatch) -> Figure:
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (figures.append(figure), save(figure, *a, **k)))
    draw_circuits(layout, "png", 40)
    return figures[0]


@pytest.mark.parametrize("width", [COLUMN, PAGE])
@pytest.mark.parametrize("shape", [(2, 2), (4, 8), (12, 12)])
@pytest.mark.parametrize("name", ["dense", "a model of a very long name indeed"])
def test_no_label_is_clipped_and_no_two_touch(
    shape: tuple[int, int], width: float, name: str, monkeypatch: pytest.MonkeyPatch
):
    circuit = random_scores(*shape).top(20)
    figure = figure_of(lay_out_circuits([circuit, circuit], (name, name), width), monkeypatch)
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = np.array([text.get_window_extent(renderer).extents for text in figure.axes[0].texts])
    width_px, height_px = figure.get_size_inches() * figure.dpi
    assert boxes[:, :2].min() >= 0 and boxes[:, 2].max() <= width_px and boxes[:, 3].max() <= height_px
    overlap = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    touching = (overlap > 0.3).all(-1) & ~np.eye(len(boxes), dtype=bool)
    assert not touching.any()
    sizes = {text.get_fontsize() for text in figure.axes[0].texts}
    assert min(sizes) >= 5 and 7.0 in sizes


@pytest.mark.parametrize("graph", [GRAPH, Graph.of_shape(1, 1, mlp=False)])
@pytest.mark.parametrize("kind", ["pdf", "svg", "png"])
def test_empty_circuits_are_drawn(kind: str, graph: Graph):
    empty = circuit_of({}, graph)
    layout = lay_out_circuits([empty, empty], NAMES)
    assert layout.panels[0].header.text.endswith("edges, 0.0 % of |score|") and not layout.panels[0].used
    assert len(draw_circuits(layout, kind, 40)) > 1000
    assert len(draw_circuits(lay_out_difference(empty, empty, NAMES), kind, 40)) > 1000


def test_pdf_keeps_its_text():
    content = draw_circuits(lay_out_circuits([DENSE, SPARSE], NAMES), "pdf", 40)
    assert content.startswith(b"%PDF") and b"/Type3" not in content and re.search(rb"/CIDFontType2|/TrueType", content)


def test_svg_has_the_labels_as_text_and_dashes(tmp_path: Path):
    svg = draw_circuits(lay_out_circuits([DENSE, SPARSE], ("<b>", "$x$")), "svg", 40).decode()
    assert "&lt;b&gt;: 3 of" in svg and "$x$: 2 of" in svg and "stroke-dasharray" in svg


def test_the_same_input_gives_the_same_bytes():
    layouts = [lay_out_circuits([DENSE, SPARSE], NAMES) for _ in range(2)]
    first, second = (draw_circuits(layout, "svg", 40) for layout in layouts)
    assert first == second  # all formats: test_plot_drawing.py
