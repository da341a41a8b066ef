"""Layout of the layer x head drawing of circuits, independent of whether matplotlib or the page draws it.

The input is at the bottom, then one row of heads per layer with the MLP on the right, and the logits on top. Nodes have
the same positions in all panels, so that circuits line up. Edges leave and enter nodes vertically (a head's queries on
its left, keys in the middle, values on its right) and avoid all other nodes. All lengths are in points (1/72 inch), and
y grows downward.
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
COLUMN, PAGE = 3.25, 6.75  # inches: panels one above the other, or side by side
LEFT, HEADER, SWATCH = 19.0, LINE + 3, 16.0
NODE_WIDTH, NODE_HEIGHT = 13.0, 9.5
CHARACTER, BOLD = 0.52 * SIZE, 0.68  # average width of a character; of a bold one / font size
FAINTEST = 0.15  # the weakest edge is drawn like this attention weight
WIDEST_NAME = 24  # characters


class Style(NamedTuple):
    """How a kind of edge is drawn: colour, and dashes for readers who cannot rely on colour."""

    ink: Ink
    dash: tuple[float, ...]


DASH = (3.2, 1.4)  # edges of negative score, in all figures
SIGNS = (Style(POSITIVE, ()), Style(NEGATIVE, DASH))
KINDS = (
    MODELS["dense"],
    MODELS["sparse"],
    SHARED,
)  # of edges: only in the first circuit, only in the second, in both
DIFFERENCES = tuple(Style(ink, dash) for dash in ((), DASH) for ink in KINDS)


class Node(NamedTuple):
    """A box with a text, centred at (x, y)."""

    name: str  # input, a0.h1, m0, logits
    kind: Literal["input", "head", "mlp", "logits"]
    text: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Skeleton:
    """What all panels of a graph share. Coordinates are relative to a panel's left end and the line of the input."""

    graph: Graph
    nodes: Sequence[Node]
    rulers: Sequence[Label]
    leaves: Float[np.ndarray, "source 2"]  # where the edges of each source start
    enters: Float[np.ndarray, "destination 2"]  # where the edges into each destination end
    lanes: Lanes
    top: float  # y of the top of the highest node
    bottom: float

    def paths(
        self, source: Int[np.ndarray, " edge"], destination: Int[np.ndarray, " edge"]
    ) -> Float[np.ndarray, "edge 8 2"]:
        """For every edge, the points of two cubic curves with a straight line between them (see `Lanes.paths`)."""
        return self.lanes.paths(self.leaves[source], self.enters[destination], source, destination)


class Swatch(NamedTuple):
    """A sample line in the legend."""

    x: float
    y: float
    style: Style


@dataclass(frozen=True)
class CircuitPanel:
    """The edges of one circuit, weakest first. Coordinates are relative to (x, y), the left end of the input's line."""

    x: float
    y: float
    header: Label
    used: frozenset[str]  # nodes with at least one edge
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
    """The edges that one panel draws."""

    heading: str
    source: Int[np.ndarray, " edge"]
    destination: Int[np.ndarray, " edge"]
    size: Float[np.ndarray, " edge"]  # |score| / the largest |score| in any panel
    style: Int[np.ndarray, " edge"]  # index into SIGNS or DIFFERENCES


def lay_out_circuits(circuits: Sequence[Circuit], names: Sequence[str], width: float = PAGE) -> CircuitLayout:
    """Circuits of one graph, side by side (6.75 inches) or one above the other (3.25 inches)."""
    largest = max(_largest(circuit) for circuit in circuits)
    panels = [_signed(circuit, name, largest) for circuit, name in zip(circuits, names, strict=True)]
    texts = ["positive: corrupting it lowers the metric", "negative"]
    return _arranged(circuits[0].graph, panels, list(zip(SIGNS, texts, strict=True)), width, SIGNS)


def lay_out_difference(first: Circuit, second: Circuit, names: Sequence[str]) -> CircuitLayout:
    """One panel with the edges of either circuit; styles show which are in one only, and which in both."""
    one, two = first.kept.cpu().numpy(), second.kept.cpu().numpy()
    kind = np.where(one & two, 2, np.where(two, 1, 0))
    source, destination = np.nonzero(one | two)
    largest = max(_largest(first), _largest(second))
    scores = [_scores(circuit) * circuit.kept.cpu().numpy() / largest for circuit in (first, second)]
    score = np.where(np.abs(scores[0]) >= np.abs(scores[1]), *scores)[source, destination]
    counts = (int((one & ~two).sum()), int((two & ~one).sum()), int((one & two).sum()))
    styles = kind[source, destination] + len(KINDS) * (score < 0)
    panel = Edges(difference_heading(names, counts), source, destination, np.abs(score), styles)
    texts = [f"only in {shortened(names[0])}", f"only in {shortened(names[1])}", "in both"]
    entries = [*zip(DIFFERENCES, texts, strict=False), (Style(SHARED, DASH), "negative")]
    return _arranged(first.graph, [panel], entries, COLUMN, DIFFERENCES)


def heading(name: str, drawn: int, total: int, share: float) -> str:
    """A panel's header: the number of edges drawn, of all edges, and the share of |score| that is drawn."""
    return f"{shortened(name)}: {drawn:,} of {total:,} edges, {100 * share:.1f} % of |score|"


def difference_heading(names: Sequence[str], counts: tuple[int, int, int]) -> str:
    """The header of a difference: how many edges are in only one circuit, and how many in both."""
    first, second = shortened(names[0]), shortened(names[1])
    return f"only {first}: {counts[0]:,}, only {second}: {counts[1]:,}, both: {counts[2]:,} edges"


def shortened(name: str) -> str:
    """A model's name on one line, truncated to fit a header."""
    name = printable(name)
    return name if len(name) <= WIDEST_NAME else name[: WIDEST_NAME - 1] + "…"


def edge_stroke(size: float, n_drawn: int) -> tuple[float, float]:
    """Width and opacity of an edge by its relative |score|; with a square root, since few scores are large."""
    return stroke(FAINTEST + (1 - FAINTEST) * size**0.5, n_drawn)


def skeleton(graph: Graph) -> Skeleton:
    """Lay out all nodes of a graph."""
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
    """All nodes: first the sources in the order of the graph, then the logits."""
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
    """Width and height of a head, with room for edges between columns, and between heads and the MLP above."""
    return min(NODE_WIDTH, 0.7 * pitch), min(NODE_HEIGHT, 0.4 * band)


def _entrance(place: dict[str, Node], destination: str) -> tuple[float, float]:
    name, _, receiver = destination.partition("<")
    node = place[name]
    port = RECEIVERS.index(receiver[0]) - 1 if receiver else 0
    return node.x + 0.27 * node.width * port, node.y + node.height / 2


def _signed(circuit: Circuit, name: str, largest: float) -> Edges:
    kept, scores = circuit.kept.cpu().numpy(), _scores(circuit)
    source, destination = np.nonzero(kept)
    score = scores[source, destination]
    share = circuit.score_share if scores.any() else 0.0
    said = heading(name, len(score), circuit.graph.n_edges, share)
    return Edges(said, source, destination, np.abs(score) / largest, (score < 0).astype(int))


def _scores(circuit: Circuit) -> Float[np.ndarray, "source destination"]:
    scores = circuit.scores.detach().cpu().double().masked_fill(~circuit.graph.exists, 0.0)
    return (scores if circuit.total is None else scores.nan_to_num(0.0)).numpy()  # unmeasured edges are not drawn


def _largest(circuit: Circuit) -> float:
    return float(np.abs(_scores(circuit)).max()) or 1.0


def _arranged(
    graph: Graph,
    panels: Sequence[Edges],
    entries: Sequence[tuple[Style, str]],
    width: float,
    styles: Sequence[Style],
) -> CircuitLayout:
    """Panels side by side or one above the other, with the legend below."""
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
    """Legend entries, as many per line as fit."""
    labels: list[Label] = []
    swatches: list[Swatch] = []
    x = 1.0
    said: list[tuple[Style | None, str]] = [*entries, (None, "width, opacity: |score|, on the same scale")]
    said.append((None, "number: head, with q, k, v entering from left to right; m: MLP"))
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
