"""Where everything in the layer x head drawing of circuits goes: one layout that the figure and the page both draw.

The input stands at the bottom, above it every layer's heads, its MLP to their right, the logits on top; all panels have
the same places, so that circuits line up node for node. An edge leaves its source upright and enters its destination
upright: a head's queries at its left, keys in its middle, values at its right; on its way it runs through no node.
All lengths are points (1/72 inch), y grows downward, and nothing here knows who draws.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sparselens.analyses.figures.lanes import Lanes, Place, lanes
from sparselens.analyses.figures.palette import MODELS, NEGATIVE, POSITIVE, SHARED, Ink
from sparselens.analyses.figures.token_layout import LINE, SIZE, Label, printable, stroke
from sparselens.circuits.circuit import Circuit
from sparselens.circuits.graph import INPUT, LOGITS, RECEIVERS, Graph

PANEL = 234.0  # 3.25 inches: one column of ICML and NeurIPS
COLUMN, PAGE = 3.25, 6.75  # inches: panels above each other, or side by side
LEFT, HEADER, SWATCH = 19.0, LINE + 3, 16.0
NODE_WIDTH, NODE_HEIGHT = 13.0, 9.5
CHARACTER, BOLD = 0.52 * SIZE, 0.68  # width of a character on average; of a bold one over its size
FAINTEST = 0.15  # the attention weight whose stroke the weakest edge has
WIDEST_NAME = 24  # characters


class Style(NamedTuple):
    """How a kind of edge is drawn: colour and dashes, so that it is told from others without colour too."""

    ink: Ink
    dash: tuple[float, ...]


DASH = (3.2, 1.4)  # everywhere: an edge of negative score
SIGNS = (Style(POSITIVE, ()), Style(NEGATIVE, DASH))
KINDS = (MODELS["dense"], MODELS["sparse"], SHARED)  # of edges in a difference: only here, only there, in both
DIFFERENCES = tuple(Style(ink, dash) for dash in ((), DASH) for ink in KINDS)


class Node(NamedTuple):
    """A box with a text; (x, y) is its middle."""

    name: str  # input, a0.h1, m0, logits
    kind: Literal["input", "head", "mlp", "logits"]
    text: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Skeleton:
    """All that the panels of one graph share. Relative to the left end of a panel and the line of the input."""

    graph: Graph
    nodes: Sequence[Node]
    rulers: Sequence[Label]
    leaves: Float[np.ndarray, "source 2"]  # where the edges of each source start
    enters: Float[np.ndarray, "destination 2"]  # where the edges into each destination end
    lanes: Lanes
    top: float  # y of the highest point of a node
    bottom: float

    def paths(
        self, source: Int[np.ndarray, " edge"], destination: Int[np.ndarray, " edge"]
    ) -> Float[np.ndarray, "edge 8 2"]:
        """Points of two cubic curves with a straight line between them, for every edge (see `Lanes.paths`)."""
        return self.lanes.paths(self.leaves[source], self.enters[destination], source, destination)


class Swatch(NamedTuple):
    """A piece of line that the legend explains."""

    x: float
    y: float
    style: Style


@dataclass(frozen=True)
class CircuitPanel:
    """The edges of one circuit, weakest first, relative to (x, y): the left end of the line of the input."""

    x: float
    y: float
    header: Label
    used: frozenset[str]  # nodes that an edge touches
    paths: Float[np.ndarray, "edge 8 2"]
    styles: Sequence[Style]
    strokes: Sequence[tuple[float, float]]  # width and opacity


@dataclass(frozen=True)
class CircuitLayout:
    """The whole drawing."""

    width: float
    height: float
    skeleton: Skeleton
    panels: Sequence[CircuitPanel]
    legend: Sequence[Label]
    swatches: Sequence[Swatch]


class Edges(NamedTuple):
    """What one panel draws."""

    heading: str
    source: Int[np.ndarray, " edge"]
    destination: Int[np.ndarray, " edge"]
    size: Float[np.ndarray, " edge"]  # |score| over the largest of all panels
    style: Int[np.ndarray, " edge"]  # place in SIGNS or DIFFERENCES


def lay_out_circuits(circuits: Sequence[Circuit], names: Sequence[str], width: float = PAGE) -> CircuitLayout:
    """Circuits of one graph side by side (6.75 inches) or above each other (3.25 inches)."""
    largest = max(_largest(circuit) for circuit in circuits)
    panels = [_signed(circuit, name, largest) for circuit, name in zip(circuits, names, strict=True)]
    texts = ["positive: corrupting it lowers the metric", "negative"]
    return _arranged(circuits[0].graph, panels, list(zip(SIGNS, texts, strict=True)), width, SIGNS)


def lay_out_difference(first: Circuit, second: Circuit, names: Sequence[str]) -> CircuitLayout:
    """One panel with the edges that are in only one of two circuits, and those in both."""
    one, two = first.kept.cpu().numpy(), second.kept.cpu().numpy()
    kind = np.where(one & two, 2, np.where(two, 1, 0))
    source, destination = np.nonzero(one | two)
    largest = max(_largest(first), _largest(second))
    scores = [_array(circuit) * circuit.kept.cpu().numpy() / largest for circuit in (first, second)]
    score = np.where(np.abs(scores[0]) >= np.abs(scores[1]), *scores)[source, destination]
    counts = (int((one & ~two).sum()), int((two & ~one).sum()), int((one & two).sum()))
    styles = kind[source, destination] + len(KINDS) * (score < 0)
    panel = Edges(difference_heading(names, counts), source, destination, np.abs(score), styles)
    texts = [f"only in {shortened(names[0])}", f"only in {shortened(names[1])}", "in both"]
    entries = [*zip(DIFFERENCES, texts, strict=False), (Style(SHARED, DASH), "negative")]
    return _arranged(first.graph, [panel], entries, COLUMN, DIFFERENCES)


def heading(name: str, drawn: int, total: int, share: float) -> str:
    """What a panel's header says: how many edges are drawn, how many there are, and what share of |score| is shown."""
    return f"{shortened(name)}: {drawn:,} of {total:,} edges, {100 * share:.1f} % of |score|"


def difference_heading(names: Sequence[str], counts: tuple[int, int, int]) -> str:
    """How many edges are in only one circuit, and how many in both."""
    first, second = shortened(names[0]), shortened(names[1])
    return f"only {first}: {counts[0]:,}, only {second}: {counts[1]:,}, both: {counts[2]:,} edges"


def shortened(name: str) -> str:
    """A model's name, on one line and not too long for a header."""
    name = printable(name)
    return name if len(name) <= WIDEST_NAME else name[: WIDEST_NAME - 1] + "…"


def edge_stroke(size: float, n_drawn: int) -> tuple[float, float]:
    """Width and opacity of an edge by its |score| over the largest; the root, since few scores are much above all."""
    return stroke(FAINTEST + (1 - FAINTEST) * size**0.5, n_drawn)


def skeleton(graph: Graph) -> Skeleton:
    """Places of all nodes of a graph."""
    n_layers, widest = len(graph.blocks), max(block.n_heads for block in graph.blocks)
    columns = widest + any(block.mlp for block in graph.blocks)
    pitch = min(50.0, (PANEL - LEFT - 10) / columns)
    left = LEFT + (PANEL - LEFT - pitch * columns) / 2
    band = float(np.clip(290 / n_layers, 18, 36))
    nodes = list(_nodes(graph, pitch, left, band, widest))
    place = {node.name: node for node in nodes}
    size = min(SIZE, 0.4 * band)
    places = {name: Place(x, y - height / 2, y + height / 2) for name, _, _, x, y, _, height in nodes}
    ends = [places[name.partition("<")[0]] for name in graph.destinations]
    rows = [places[f"a{layer}.h0"] for layer in range(n_layers)]
    rulers = [Label(left - 4, -band * (layer + 1), f"L{layer}", "end", size) for layer in range(n_layers)]
    return Skeleton(
        graph,
        nodes,
        rulers,
        leaves=np.array([(place[name].x, place[name].y - place[name].height / 2) for name in graph.sources]),
        enters=np.array([_entrance(place, name) for name in graph.destinations]),
        lanes=lanes([places[name] for name in graph.sources], ends, rows, left, pitch, _size(pitch, band)[0]),
        top=nodes[-1].y - NODE_HEIGHT / 2 - 1,
        bottom=NODE_HEIGHT / 2 + 1,
    )


def _nodes(graph: Graph, pitch: float, left: float, band: float, widest: int) -> Iterator[Node]:
    """All nodes in the order of the sources, then the logits."""
    width, height = _size(pitch, band)
    middle = left + pitch * widest / 2
    yield Node(INPUT, "input", "input", middle, 0.0, 30.0, NODE_HEIGHT)
    for layer, block in enumerate(graph.blocks):
        y = -band * (layer + 1)
        for head in range(block.n_heads):
            yield Node(f"a{layer}.h{head}", "head", str(head), left + pitch * (head + 0.5), y, width, height)
        if block.mlp:
            above = 0 if block.parallel else band / 2
            yield Node(f"m{layer}", "mlp", "m", left + pitch * (widest + 0.5), y - above, width, height)
    yield Node(LOGITS, "logits", "logits", middle, -band * (len(graph.blocks) + 1), 30.0, NODE_HEIGHT)


def _size(pitch: float, band: float) -> tuple[float, float]:
    """Width and height of a head: they leave room for edges between columns, and between heads and the MLP above."""
    return min(NODE_WIDTH, 0.7 * pitch), min(NODE_HEIGHT, 0.4 * band)


def _entrance(place: dict[str, Node], destination: str) -> tuple[float, float]:
    name, _, receiver = destination.partition("<")
    node = place[name]
    port = RECEIVERS.index(receiver[0]) - 1 if receiver else 0
    return node.x + 0.27 * node.width * port, node.y + node.height / 2


def _signed(circuit: Circuit, name: str, largest: float) -> Edges:
    kept, scores = circuit.kept.cpu().numpy(), _array(circuit)
    source, destination = np.nonzero(kept)
    score = scores[source, destination]
    share = circuit.score_share if scores.any() else 0.0
    said = heading(name, len(score), circuit.graph.n_edges, share)
    return Edges(said, source, destination, np.abs(score) / largest, (score < 0).astype(int))


def _array(circuit: Circuit) -> Float[np.ndarray, "source destination"]:
    scores = circuit.scores.detach().cpu().double().masked_fill(~circuit.graph.exists, 0.0)
    return (scores if circuit.total is None else scores.nan_to_num(0.0)).numpy()  # those not known are not drawn


def _largest(circuit: Circuit) -> float:
    return float(np.abs(_array(circuit)).max()) or 1.0


def _arranged(
    graph: Graph,
    panels: Sequence[Edges],
    entries: Sequence[tuple[Style, str]],
    width: float,
    styles: Sequence[Style],
) -> CircuitLayout:
    """Panels beside or above each other, the legend under them."""
    frame = skeleton(graph)
    height = HEADER + frame.bottom - frame.top
    side_by_side = width > COLUMN and len(panels) > 1
    full = 72 * (width if side_by_side else COLUMN)
    step = (full - PANEL) / max(1, len(panels) - 1) if side_by_side else 0.0
    floors = [HEADER - frame.top + (0 if side_by_side else i * (height + 6)) for i in range(len(panels))]
    placed = [_panel(frame, edges, i * step, floors[i], styles) for i, edges in enumerate(panels)]
    legend, swatches = _legend(floors[-1] + frame.bottom + 9, full, entries)
    return CircuitLayout(full, legend[-1].y + LINE / 2 + 1, frame, placed, legend, swatches)


def _panel(frame: Skeleton, edges: Edges, x: float, y: float, styles: Sequence[Style]) -> CircuitPanel:
    order = np.argsort(edges.size, kind="stable")
    source, destination = edges.source[order], edges.destination[order]
    size = min(SIZE, (PANEL - 3) / max(1, BOLD * len(edges.heading)))
    graph = frame.graph
    ends = {graph.destinations[i].partition("<")[0] for i in destination}
    return CircuitPanel(
        x,
        y,
        Label(1.0, frame.top - HEADER + LINE / 2, edges.heading, "start", size, bold=True),
        frozenset(ends | {graph.sources[i] for i in source}),
        frame.paths(source, destination),
        [styles[i] for i in edges.style[order]],
        [edge_stroke(float(value), len(order)) for value in edges.size[order]],
    )


def _legend(y: float, width: float, entries: Sequence[tuple[Style, str]]) -> tuple[list[Label], list[Swatch]]:
    """Texts one after the other, as many on a line as fit."""
    labels: list[Label] = []
    swatches: list[Swatch] = []
    x = 1.0
    said: list[tuple[Style | None, str]] = [*entries, (None, "width, opacity: |score|, on one scale")]
    said.append((None, "number: head, entered at q, k, v from left to right; m: MLP"))
    for style, text in said:
        start = SWATCH if style else 0.0
        length = start + CHARACTER * len(text)
        if x > 1 and x + length > width:
            x, y = 1.0, y + LINE
        labels.append(Label(x + start, y, text, "start"))
        if style:
            swatches.append(Swatch(x, y, style))
        x += length + 10
    return labels, swatches
