"""Layout of the token x layer drawing, independent of whether matplotlib or the page draws it.

Positions run left to right, layers bottom to top; each row is a model, each column a prompt. An attention edge of layer
l is a curve from its key, on the line below the layer, to its query, on the line above; the curves of different heads
start and end side by side. All lengths are in points (1/72 inch), and y grows downward.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from sparselens.analyses.attribution.attention_edges import AttentionEdges

WIDTH = 486.0  # 6.75 inches: the text width of ICML and NeurIPS
SIZE, LINE = 7.0, 10.0  # font size, line height
SMALLEST = 4.5  # font size of a heading
LEFT, GUTTER, ROW_GAP, ARROW_SPACE = 36.0, 14.0, 9.0, 13.0
CHARACTER = 0.64  # width of a character / font size, an overestimate
NODE_HEIGHT = 2.4
# Colours of heads in light and dark mode, close to Okabe and Ito's; the first four also differ in greyscale.
# They repeat from the ninth head on, as the legend says; dashes would not do, since they mean negative scores.
COLOURS = (
    ("#004f8c", "#5aa9ea"),
    ("#d05500", "#f0803c"),
    ("#2bb58a", "#2ec49a"),
    ("#e6a321", "#f3c35b"),
    ("#9a4a8f", "#d98cc6"),
    ("#56b4e9", "#a5d8f8"),
    ("#555555", "#b5b9bf"),
    ("#8c6d31", "#c9a55c"),
)

Curve = Float[np.ndarray, "4 2"]


class Row(NamedTuple):
    """One model: its name, its edges on all prompts, and the smallest weight that is drawn."""

    name: str
    edges: AttentionEdges
    threshold: float = 0.0


class Prompt(NamedTuple):
    """One column: the texts below and above each position, and (from, to) positions of arrows above."""

    tokens: Sequence[str]
    title: str = ""
    outputs: Sequence[str] = ()
    arrows: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True)
class Label:
    """A text, vertically centred at y. Upright labels are rotated to read from bottom to top."""

    x: float
    y: float
    text: str
    anchor: Literal["start", "middle", "end"] = "middle"
    size: float = SIZE
    upright: bool = False
    bold: bool = False
    position: int | None = None  # the position whose token it is
    head: int | None = None  # the head whose colour this legend entry shows


class Arrow(NamedTuple):
    """A curved arrow: its line and its triangular tip."""

    line: Curve
    tip: Float[np.ndarray, "3 2"]


@dataclass(frozen=True)
class Panel:
    """One model on one prompt. Coordinates are relative to (x, y), the left end of the line of input tokens."""

    row: int
    column: int
    x: float
    y: float
    name: str  # of the model
    tokens: Sequence[str]
    total: int  # number of edges, including those not drawn
    edges: AttentionEdges  # the drawn edges, faintest first
    curves: Float[np.ndarray, "edge 4 2"]  # control points of cubic Bezier curves
    header: Label
    labels: Sequence[Label]
    arrows: Sequence[Arrow]


@dataclass(frozen=True)
class Layout:
    """The whole drawing. Its labels are relative to the top left corner, those of a panel to the panel."""

    width: float
    height: float
    row_end: float  # y at which the first row ends
    threshold: float  # smallest weight drawn in the first row
    band: float  # height of a layer
    column_x: Sequence[float]
    column_width: float
    node_x: Float[np.ndarray, " pos"]  # relative to the panel
    node_width: float
    panels: Sequence[Panel]
    titles: Sequence[Label]  # one for each column
    rulers: Sequence[Label]  # names of layers
    legend: Sequence[Label]

    @property
    def pitch(self) -> float:
        """Distance between neighbouring positions."""
        return self.column_width / len(self.node_x)


def heading(name: str, drawn: int, total: int) -> str:
    """A panel's header: how many edges are drawn, and how many there are."""
    if drawn == total:
        return f"{name}: {total:,} edge{'s' * (total != 1)}"
    return f"{name}: {drawn:,} of {total:,} edges drawn"


def stroke(weight: float, n_drawn: int) -> tuple[float, float]:
    """Width and opacity of an edge of this attention weight.

    The width depends on the weight only. The opacity of weak edges falls with the number of edges, so that strong ones
    stand out among thousands, while each of a few is clearly visible.
    """
    faintest = 0.04 + 0.66 / (1 + n_drawn / 50)
    return 0.35 + 1.25 * weight, faintest + (0.95 - faintest) * weight


def lay_out(rows: Sequence[Row], prompts: Sequence[Prompt], arrow_name: str, max_edges: int) -> Layout:
    """Lay out all rows and prompts, with at most `max_edges` edges per panel, the strongest."""
    return _Geometry(rows, prompts).layout(arrow_name, max_edges)


class _Geometry:
    """Measurements shared by all panels, so that rows and columns line up."""

    def __init__(self, rows: Sequence[Row], prompts: Sequence[Prompt]) -> None:
        self.rows, self.prompts = rows, prompts
        self.n_layers, self.n_heads, n_pos = rows[0].edges.n_layers, rows[0].edges.n_heads, rows[0].edges.n_pos
        self.width = (WIDTH - LEFT) / len(prompts) - GUTTER
        self.pitch = self.width / n_pos
        self.column_x = [LEFT + i * (self.width + GUTTER) for i in range(len(prompts))]
        self.node_x = self.pitch * (np.arange(n_pos) + 0.5)
        self.head_x = (np.arange(self.n_heads) - (self.n_heads - 1) / 2) * min(2.4, 0.5 * self.pitch / self.n_heads)
        self.band = float(np.clip((56 + 164 / len(prompts)) / self.n_layers, 10, 34))
        self.below = _fit([prompt.tokens for prompt in prompts], self.pitch)
        self.above = _fit([prompt.outputs for prompt in prompts], self.pitch)
        self.arrows = ARROW_SPACE * any(prompt.arrows for prompt in prompts)
        self.bands = self.band * self.n_layers
        self.row_height = LINE + 2 + self.arrows + self.above.height + self.bands + self.below.height + ROW_GAP

    def layout(self, arrow_name: str, max_edges: int) -> Layout:
        rows, columns = range(len(self.rows)), range(len(self.prompts))
        legend = list(self._legend(self._floor(rows[-1]) + self.below.height + ROW_GAP, arrow_name))
        return Layout(
            width=WIDTH,
            height=legend[-1].y + LINE / 2 + 2,
            row_end=self._floor(0) + self.below.height + 2,
            threshold=self.rows[0].threshold,
            band=self.band,
            column_x=self.column_x,
            column_width=self.width,
            node_x=self.node_x,
            node_width=0.66 * self.pitch,
            panels=[self._panel(row, column, max_edges) for row in rows for column in columns],
            titles=[self._fitted(self.column_x[i], LINE / 2, self.prompts[i].title, bold=True) for i in columns],
            rulers=[label for row in rows for label in self._rulers(self._floor(row))],
            legend=legend,
        )

    def _floor(self, row: int) -> float:
        """Y of the line of input tokens."""
        return LINE + 3 + (row + 1) * self.row_height - ROW_GAP - self.below.height

    def _panel(self, row: int, column: int, max_edges: int) -> Panel:
        name, edges, threshold = self.rows[row]
        prompt, of_prompt = self.prompts[column], edges.of_prompt(column)
        drawn = strongest(of_prompt, threshold, max_edges)
        top = -self.bands - self.above.height
        header = self._fitted(0.0, top - self.arrows - LINE / 2 - 2, heading(name, len(drawn), len(of_prompt)))
        below = self._along(prompt.tokens, self.below, 0.0, down=1)
        above = self._along(prompt.outputs, self.above, -self.bands, down=-1)
        return Panel(
            row=row,
            column=column,
            x=self.column_x[column],
            y=self._floor(row),
            name=name,
            tokens=[printable(token) for token in prompt.tokens],
            total=len(of_prompt),
            edges=drawn,
            curves=self._curves(drawn),
            header=header,
            labels=[*below, *above],
            arrows=[_arrow(self.node_x[start], self.node_x[end], top - 1) for start, end in prompt.arrows],
        )

    def _curves(self, edges: AttentionEdges) -> Float[np.ndarray, "edge 4 2"]:
        """Curves that leave the key and enter the query vertically, at the head's own offset."""
        port = self.head_x[edges.head]
        x_key, x_query = self.node_x[edges.key_pos] + port, self.node_x[edges.query_pos] + port
        bottom = -self.band * edges.layer - NODE_HEIGHT / 2
        top = bottom - self.band + NODE_HEIGHT
        bend = 0.55 * (top - bottom)
        return np.stack(
            [
                np.stack([x_key, bottom], -1),
                np.stack([x_key, bottom + bend], -1),
                np.stack([x_query, top - bend], -1),
                np.stack([x_query, top], -1),
            ],
            axis=1,
        )

    def _along(self, texts: Sequence[str], fit: "_Fit", y: float, down: int) -> Iterator[Label]:
        """Labels below (down = 1) or above (down = -1) a line of nodes at y."""
        anchor = ("end" if down > 0 else "start") if fit.upright else "middle"
        distance = 3 if fit.upright else LINE / 2 + 2
        for position, text in enumerate(texts):
            if text:
                x = float(self.node_x[position])
                yield Label(x, y + down * distance, printable(text), anchor, fit.size, fit.upright, position=position)

    def _rulers(self, floor: float) -> list[Label]:
        size = min(SIZE, 0.8 * self.band)
        return [
            Label(LEFT - 4, floor - self.band * (layer + 0.5), f"layer {layer}", "end", size)
            for layer in range(self.n_layers)
        ]

    def _fitted(self, x: float, y: float, text: str, bold: bool = False) -> Label:
        """A heading, shrunk to fit its column, and truncated if it would become illegible."""
        room, length = self.width + GUTTER / 2, (1.05 if bold else 0.9) * _text_width(text)
        size = min(SIZE, SIZE * room / max(1, length))
        if size < SMALLEST:
            text, size = text[: int(len(text) * size / SMALLEST) - 1] + "…", SMALLEST
        return Label(x, y, text, "start", size, bold=bold)

    def _legend(self, y: float, arrow_name: str) -> Iterator[Label]:
        x = LEFT
        coloured = [range(first, self.n_heads, len(COLOURS)) for first in range(min(self.n_heads, len(COLOURS)))]
        entries: list[tuple[int | None, str]] = [(some[0], f"head {', '.join(map(str, some))}") for some in coloured]
        entries.append((None, "line width and opacity: attention weight"))
        if self.arrows:
            entries.append((None, f"curved arrow: {arrow_name}"))
        for head, text in entries:
            swatch = 16 if head is not None else 0
            length = swatch + 0.85 * _text_width(text)
            if x + length > WIDTH:
                x, y = LEFT, y + LINE
            yield Label(x + swatch, y, text, "start", head=head)
            x += length + 8


class _Fit(NamedTuple):
    """How the texts along a line of nodes are set so that neighbours do not overlap."""

    size: float
    upright: bool
    height: float


def _fit(texts: Sequence[Sequence[str]], pitch: float) -> _Fit:
    longest = max((_text_width(printable(text)) for row in texts for text in row), default=0)
    if longest <= pitch + 1:
        return _Fit(SIZE, False, LINE * (longest > 0))
    size = min(SIZE, max(3.0, 0.9 * pitch))
    return _Fit(size, True, longest * size / SIZE + 4)


def strongest(edges: AttentionEdges, threshold: float, max_edges: int) -> AttentionEdges:
    """The strongest edges of at least that weight, at most `max_edges`; faintest first, to draw strong ones on top."""
    order = np.argsort(edges.weight, kind="stable")
    return edges.take(order[edges.weight[order] >= threshold][-max_edges:])


def printable(token: str) -> str:
    """The token on one line, with unprintable characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in token)


def _text_width(text: str) -> float:
    return CHARACTER * SIZE * len(text)


def _arrow(start: float, end: float, y: float) -> Arrow:
    """An arrow over the labels from one position to another; its tip points down."""
    height = ARROW_SPACE - 3
    line = np.array([(start, y), (start, y - height), (end, y - height), (end, y - 3)])
    tip = np.array([(end - 1.7, y - 3.2), (end + 1.7, y - 3.2), (end, y)])
    return Arrow(line, tip)
