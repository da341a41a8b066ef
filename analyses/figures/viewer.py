"""The circuit viewer: dense beside sparse as a layer x head graph, their difference, their patterns, and curves.

`circuit_viewer` takes results, never models, and lays them out once; `save` draws the layout with matplotlib,
`save_html` writes the interactive page, `show` puts the page into a notebook.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from sparselens.analyses.attribution.attention_edges import AttentionEdges
from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.figures.circuit_layout import (
    COLUMN,
    PAGE,
    CircuitLayout,
    lay_out_circuits,
    lay_out_difference,
    skeleton,
)
from sparselens.analyses.figures.notebook import Page, framed
from sparselens.analyses.figures.paper import form_of
from sparselens.analyses.figures.plot import Plot
from sparselens.analyses.figures.token_view import token_view
from sparselens.analyses.figures.viewer_edges import ranked_edges
from sparselens.analyses.figures.viewer_page import graph_data, model_data, plot_data, viewer_page
from sparselens.analyses.figures.viewer_patterns import patterns_data
from sparselens.circuits.circuit import Circuit
from sparselens.circuits.graph import Graph
from sparselens.files.whole import write_file

TOKEN_EDGES = 1500  # drawn in each panel of the token view within the page
View = Literal["circuit", "difference"]


@dataclass(frozen=True, eq=False)
class Viewer(Page):
    """Two circuits, laid out, and the page about them; see `circuit_viewer`."""

    circuits: tuple[Circuit, Circuit]
    names: tuple[str, str]
    title: str
    html: str  # the interactive page

    def layout(self, view: View = "circuit", width: float = PAGE) -> CircuitLayout:
        """Both circuits beside each other (6.75 inches) or above each other (3.25), or their difference (3.25).

        Raises:
            ValueError: there is no such view, or no such width.
        """
        if view not in ("circuit", "difference") or width not in (COLUMN, PAGE):
            raise ValueError(f"no view {view!r} of {width} inches: want 'circuit' or 'difference', 3.25 or 6.75")
        if view == "difference":
            return lay_out_difference(*self.circuits, self.names)
        return lay_out_circuits(self.circuits, self.names, width)

    def save(self, path: str | Path, view: View = "circuit", width: float = PAGE, dpi: int = 300) -> Path:
        """Write a .pdf, .svg or .png, completely or not at all. A difference is one panel of 3.25 inches."""
        path = Path(path)
        return write_file(path, self._drawn(self.layout(view, width), form_of(path), dpi))

    @cached_property
    def _picture(self) -> bytes:
        return self._drawn(self.layout(), "png", dpi=160)

    def _repr_html_(self) -> str:
        return framed(self.html, self._picture, self.title, "52em")

    def _drawn(self, layout: CircuitLayout, kind: str, dpi: int) -> bytes:
        from sparselens.analyses.figures.circuit_drawing import draw_circuits

        return draw_circuits(layout, kind, dpi)


def circuit_viewer(
    dense: EdgeScores,
    sparse: EdgeScores,
    *,
    share: float = 0.9,
    names: tuple[str, str] = ("dense", "sparse"),
    title: str = "Circuits, dense and sparse",
    attention: tuple[AttentionEdges, AttentionEdges] | None = None,
    tokens: Sequence[Sequence[str]] = (),
    outputs: Sequence[Sequence[str]] | None = None,
    arrows: Sequence[Sequence[tuple[int, int]]] | None = None,
    titles: Sequence[str] | None = None,
    labels: tuple[Mapping[str, str], Mapping[str, str]] | None = None,
    plots: Sequence[Plot] = (),
    max_edges: int = 3000,
) -> Viewer:
    """Lay out the circuits of a dense and a sparse model, which have the same graph, and write the page about them.

    Args:
        share: of the sum of |mean score| that each circuit holds at first (`EdgeScores.smallest`).
        attention: the attention edges of both models on a few prompts, for the patterns and the token view.
        tokens, outputs, arrows, titles: of these prompts, as in `token_view`.
        labels: for each model, what is known of a node, such as {"a0.h1": "previous token 0.93"}.
        plots: drawn in the page's last tab.
        max_edges: the page holds at most so many edges of each model, those of largest |score|, and says so.

    Raises:
        ValueError: the scores are of different graphs, or what comes with them is not of these models and prompts.
    """
    if dense.graph != sparse.graph:
        raise ValueError(f"the models differ: {dense.graph} and {sparse.graph}; want scores of one graph")
    if max_edges < 1:
        raise ValueError(f"max_edges must be at least 1, not {max_edges}")
    known = labels or ({}, {})
    _check_labels(dense.graph, known)
    circuits = dense.smallest(share), sparse.smallest(share)
    data: dict[str, Any] = {
        "share": share,
        **graph_data(lay_out_circuits(circuits, names), lay_out_difference(*circuits, names)),
        "models": [
            model_data(ranked_edges(scores, max_edges), name, of_nodes)
            for scores, name, of_nodes in zip((dense, sparse), names, known, strict=True)
        ],
        "plots": [plot_data(plot) for plot in plots],
    }
    if attention is not None:
        _check_attention(dense.graph, attention, tokens)
        data["patterns"] = patterns_data(attention, tokens, titles or ())
    if attention is not None and tokens:
        prompts: dict[str, Any] = {"titles": titles, "outputs": outputs, "arrows": arrows, "row_names": names}
        view = token_view(*attention, tokens, **prompts, title="Attention edges", max_edges=TOKEN_EDGES)
        data["tokens"] = view.html
    return Viewer(circuits, names, title, viewer_page(title, data))


def _check_labels(graph: Graph, labels: tuple[Mapping[str, str], Mapping[str, str]]) -> None:
    nodes = {node.name for node in skeleton(graph).nodes}
    for name in (*labels[0], *labels[1]):
        if name not in nodes:
            raise ValueError(f"label of {name!r}: no such node (want input, a0.h1, m0 or logits within {graph})")


def _check_attention(
    graph: Graph, attention: tuple[AttentionEdges, AttentionEdges], tokens: Sequence[Sequence[str]]
) -> None:
    shapes = [(edges.n_prompts, edges.n_layers, edges.n_heads, edges.n_pos) for edges in attention]
    if shapes[0] != shapes[1]:
        raise ValueError(f"attention edges differ in (prompts, layers, heads, positions): {shapes[0]}, {shapes[1]}")
    n_prompts, n_layers, n_heads, n_pos = shapes[0]
    if n_layers != len(graph.blocks) or n_heads != max(block.n_heads for block in graph.blocks):
        raise ValueError(f"attention edges of {n_layers} layers of {n_heads} heads for a graph of {graph}")
    if tokens and [len(prompt) for prompt in tokens] != [n_pos] * n_prompts:
        raise ValueError(f"tokens of {len(tokens)} prompts: want {n_prompts} of {n_pos} each")
