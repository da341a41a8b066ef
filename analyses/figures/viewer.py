"""The circuit viewer: layer x head graphs of one model, or of a dense and a sparse one with their difference.

`circuit_viewer` takes results, never models, and computes one layout: `save` draws it with matplotlib, `save_html`
writes the interactive page, `show` displays the page in a notebook. The page also has attention patterns and plots.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from sparselens.analyses.attribution.attention_edges import AttentionEdges
from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.circuits.pruning import PrunedCircuit
from sparselens.analyses.engine.renamed import renamed_argument
from sparselens.analyses.figures.circuit_layout import (
    COLUMN,
    PAGE,
    CircuitLayout,
    lay_out_circuits,
    lay_out_difference,
    skeleton,
)
from sparselens.analyses.figures.given import model_names, refuse_others
from sparselens.analyses.figures.notebook import Page, framed
from sparselens.analyses.figures.paper import form_of
from sparselens.analyses.figures.plot import Plot
from sparselens.analyses.figures.token_view import token_view
from sparselens.analyses.figures.viewer_edges import edges_of, ranked_edges, scored
from sparselens.analyses.figures.viewer_page import graph_data, model_data, plot_data, viewer_page
from sparselens.analyses.figures.viewer_patterns import patterns_data
from sparselens.circuits.circuit import Circuit
from sparselens.circuits.graph import Graph
from sparselens.files.whole import write_file

TOKEN_EDGES = 1500  # drawn in each panel of the page's token view
LISTED = 3000  # edges of a model that the page stores
View = Literal["circuit", "difference"]


@dataclass(frozen=True, eq=False)
class Viewer(Page):
    """The layout of one or two circuits, and their page; see `circuit_viewer`."""

    circuits: tuple[Circuit, ...]
    names: tuple[str, ...]
    title: str
    html: str = field(repr=False)  # the interactive page

    def layout(self, view: View = "circuit", width: float = PAGE) -> CircuitLayout:
        """The circuits side by side (6.75 inches) or one above the other (3.25), or their difference (always 3.25).

        A single circuit is always 3.25 inches wide.

        Raises:
            ValueError: unknown view or width, or the difference of a single circuit.
        """
        if view not in ("circuit", "difference") or width not in (COLUMN, PAGE):
            raise ValueError(f"no view {view!r} of {width} inches: want 'circuit' or 'difference', 3.25 or 6.75")
        if view == "difference":
            if len(self.circuits) == 1:
                raise ValueError("a difference needs two circuits: give circuit_viewer the scores of a second model")
            return lay_out_difference(self.circuits[0], self.circuits[1], self.names)
        return lay_out_circuits(self.circuits, self.names, width)

    def save(self, path: str | Path, view: View = "circuit", width: float = PAGE, dpi: int = 300) -> Path:
        """Write a .pdf, .svg or .png, either completely or not at all. A difference is always 3.25 inches wide."""
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


@renamed_argument("dense", "scores")
@renamed_argument("sparse", "other")
def circuit_viewer(
    scores: EdgeScores,
    other: EdgeScores | None = None,
    *,
    share: float = 0.9,
    edges: int | None = None,
    faithful: Sequence[tuple[int, float] | None] = (),
    pruned: PrunedCircuit | Sequence[PrunedCircuit | tuple[Circuit, float] | None] = (),
    ablation: str = "corrupted",
    names: Sequence[str] | None = None,
    title: str = "Circuits",
    attention: AttentionEdges | tuple[AttentionEdges, AttentionEdges] | None = None,
    tokens: Sequence[Sequence[str]] = (),
    outputs: Sequence[Sequence[str]] | None = None,
    arrows: Sequence[Sequence[tuple[int, int]]] | None = None,
    titles: Sequence[str] | None = None,
    labels: Mapping[str, str] | tuple[Mapping[str, str], Mapping[str, str]] | None = None,
    plots: Sequence[Plot] = (),
    max_edges: int = LISTED,
) -> Viewer:
    """Lay out the circuit of one model, or of a dense and a sparse one with the same graph, as a figure and a page.

    >>> circuit_viewer(attribute_edges(model, pairs)).save_html("circuit.html")

    Args:
        other: edge scores of a second model, shown next to the first.
        share: share of the total |mean score| that each circuit keeps (`EdgeScores.smallest`), unless `edges`,
            `faithful` or `pruned` is given.
        edges: start with this many of the largest edges instead (`EdgeScores.top`, without edges of score 0).
        faithful: for each model, the number of largest edges that form its smallest faithful circuit, and that
            circuit's faithfulness; None if there is none. The page starts with these, and its menu returns to them.
        pruned: for each model, the result of `pruned_circuit`, or a circuit and its faithfulness on held-out prompts.
            The page then starts with these circuits.
        ablation: how edges outside a circuit are ablated. Dead ends, which have no effect, are hidden: edges on no path
            to the logits, and under "corrupted" also those on no path from the input (`Circuit.pruned`).
        names: names of the models; default: model, or dense and sparse.
        attention: the attention edges of each model on a few prompts, for the patterns and the token view.
        tokens, outputs, arrows, titles: for these prompts, as in `token_view`.
        labels: for each model, labels of nodes, such as {"a0.h1": "previous token 0.93"}.
        plots: shown in the page's last tab.
        max_edges: the page stores at most this many edges of each model, those of largest |score|, and says so.

    Raises:
        ValueError: the scores have different graphs, or another argument does not fit these models and prompts.
    """
    refuse_others(EdgeScores, scores, other)
    every = [scores] if other is None else [scores, other]
    _check_models(every, max_edges)
    chosen = model_names(names, len(every))
    known = [dict[str, str]() for _ in every] if labels is None else _each(labels, Mapping)
    _check_labels(scores.graph, known)
    found, cut = _for_each("faithful", faithful, every), _scored(_for_each("pruned", pruned, every), every)
    circuits = tuple(
        _circuit(one, share, edges, its, small).pruned(ablation == "corrupted")
        for one, its, small in zip(every, found, cut, strict=True)
    )
    shown = None if other is None else lay_out_difference(circuits[0], circuits[1], chosen)
    data: dict[str, Any] = {
        "share": share,
        "begin": edges,
        "from_input": ablation == "corrupted",
        **graph_data(lay_out_circuits(circuits, chosen), shown),
        "models": [
            model_data(ranked_edges(one, max_edges), name, of_nodes, its, small and (edges_of(small[0]), small[1]))
            for one, name, of_nodes, its, small in zip(every, chosen, known, found, cut, strict=True)
        ],
        "plots": [plot_data(plot) for plot in plots],
    }
    if attention is not None:
        patterns = _each(attention, AttentionEdges)
        _check_attention(scores.graph, patterns, tokens, len(every))
        data["patterns"] = patterns_data(patterns, tokens, titles or ())
        if tokens:
            prompts: dict[str, Any] = {"titles": titles, "outputs": outputs, "arrows": arrows, "row_names": chosen}
            two = (patterns[0], patterns[1] if patterns[1:] else None)
            view = token_view(*two, tokens, **prompts, title="Attention edges", max_edges=TOKEN_EDGES)
            data["tokens"] = view.html
    return Viewer(circuits, chosen, title, viewer_page(title, data))


def _circuit(
    scores: EdgeScores,
    share: float,
    edges: int | None,
    faithful: tuple[int, float] | None,
    pruned: tuple[Circuit, float] | None,
) -> Circuit:
    """The circuit that the page shows first, including dead ends."""
    if edges is None and pruned is not None:
        return pruned[0]
    n = faithful[0] if edges is None and faithful is not None else edges
    if n is None:
        return scores.smallest(share)
    found = scores.top(n)
    return replace(found, kept=found.kept & (found.scores != 0))  # like the page, which stores no edges of score 0


def _for_each(name: str, given: Any, every: Sequence[EdgeScores]) -> Sequence[Any]:
    given = _each(given, PrunedCircuit)
    if given and len(given) != len(every):
        raise ValueError(f"{name} circuits of {len(given)} models for scores of {len(every)}")
    return given or [None] * len(every)


def _scored(pruned: Sequence[Any], every: Sequence[EdgeScores]) -> list[tuple[Circuit, float] | None]:
    """The pruned circuits with the viewer's own scores, and their faithfulness."""
    pairs = [(one.circuit, one.held_out.mean) if isinstance(one, PrunedCircuit) else one for one in pruned]
    for found in pairs:
        if found is not None and found[0].graph != every[0].graph:
            raise ValueError(f"the pruned circuit has {found[0].graph}, but the scores have {every[0].graph}")
    return [found and (scored(found[0], one), found[1]) for found, one in zip(pairs, every, strict=True)]


def _each(given: Any, kind: type) -> list[Any]:
    """The given values as a list, one per model; a single value needs no list around it."""
    return [given] if isinstance(given, kind) else list(given)


def _check_models(every: Sequence[EdgeScores], max_edges: int) -> None:
    if every[0].graph != every[-1].graph:
        raise ValueError(f"the models differ: {every[0].graph} and {every[-1].graph}; want scores of the same graph")
    if max_edges < 1:
        raise ValueError(f"max_edges must be at least 1, not {max_edges}")


def _check_labels(graph: Graph, labels: Sequence[Mapping[str, str]]) -> None:
    nodes = {node.name for node in skeleton(graph).nodes}
    for name in (name for known in labels for name in known):
        if name not in nodes:
            raise ValueError(f"label for {name!r}: no such node (want input, a0.h1, m0 or logits, of {graph})")


def _check_attention(
    graph: Graph, attention: Sequence[AttentionEdges], tokens: Sequence[Sequence[str]], n_models: int
) -> None:
    if len(attention) != n_models:
        raise ValueError(f"attention edges of {len(attention)} models for scores of {n_models}: want one for each")
    shapes = [(edges.n_prompts, edges.n_layers, edges.n_heads, edges.n_pos) for edges in attention]
    if shapes[0] != shapes[-1]:
        raise ValueError(f"attention edges differ in (prompts, layers, heads, positions): {shapes[0]}, {shapes[1]}")
    n_prompts, n_layers, n_heads, n_pos = shapes[0]
    if n_layers != len(graph.blocks) or n_heads != max(block.n_heads for block in graph.blocks):
        raise ValueError(f"attention edges have {n_layers} layers of {n_heads} heads, but the scores have {graph}")
    if tokens and [len(prompt) for prompt in tokens] != [n_pos] * n_prompts:
        raise ValueError(f"tokens of {len(tokens)} prompts: want {n_prompts} prompts of {n_pos} tokens each")
