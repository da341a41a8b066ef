"""The token x layer drawing (the paper's Fig. 1): a column per prompt, a line per attention edge; dense over sparse.

`token_view` takes results, never models, and lays them out once; `save` draws the layout with matplotlib, `save_html`
writes the interactive page, `show` puts the page into a notebook.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from sparselens.analyses.attribution.attention_edges import AttentionEdges
from sparselens.analyses.engine.renamed import renamed_argument
from sparselens.analyses.figures.given import refuse_others
from sparselens.analyses.figures.notebook import Page, framed
from sparselens.analyses.figures.paper import encoded, form_of, style
from sparselens.analyses.figures.token_layout import (
    COLOURS,
    NODE_HEIGHT,
    Label,
    Layout,
    Panel,
    Prompt,
    Row,
    lay_out,
    stroke,
)
from sparselens.analyses.figures.token_page import token_page
from sparselens.files.whole import write_file

INK, NODES, ARROW = "#222222", "#c4c7cb", "#444444"
DRAWN = 5000  # edges of a panel


@dataclass(frozen=True)
class TokenView(Page):
    """A drawing that is laid out; see `token_view`."""

    layout: Layout
    title: str

    def save(self, path: str | FilePath, dpi: int = 300) -> FilePath:
        """Write a .pdf, .svg or .png of 6.75 inches width, completely or not at all."""
        path = FilePath(path)
        return write_file(path, self._drawn(form_of(path), dpi))

    @cached_property
    def html(self) -> str:
        """The interactive page."""
        return token_page(self.layout, self.title)

    def _repr_html_(self) -> str:
        return framed(self.html, self._drawn("png", dpi=160), self.title, room="11em")

    def _drawn(self, kind: str, dpi: int) -> bytes:
        from matplotlib.figure import Figure

        layout = self.layout
        with style():
            figure = Figure(figsize=(layout.width / 72, layout.height / 72))
            axes = figure.add_axes((0, 0, 1, 1), xlim=(0, layout.width), ylim=(layout.height, 0))
            axes.set_axis_off()
            for panel in layout.panels:
                _draw_panel(axes, layout, panel)
            for label in (*layout.titles, *layout.rulers, *layout.legend):
                _draw_label(axes, label)
            return encoded(figure, kind, dpi)


@renamed_argument("dense", "edges")
@renamed_argument("sparse", "other")
def token_view(
    edges: AttentionEdges,
    other: AttentionEdges | None = None,
    tokens: Sequence[Sequence[str]] = (),
    *,
    titles: Sequence[str] | None = None,
    outputs: Sequence[Sequence[str]] | None = None,
    arrows: Sequence[Sequence[tuple[int, int]]] | None = None,
    row_names: Sequence[str] | None = None,
    title: str = "Attention edges",
    arrow_name: str = "carry",
    dense_threshold: float = 0.0,
    max_edges: int = DRAWN,
) -> TokenView:
    """Lay out the attention edges of a model on a few prompts, or of a dense model above those of a sparse one.

    >>> token_view(attention_edges(model, pairs[:2]), tokens=pairs.token_strings[:2])

    Args:
        other: of a second model, below the first
        tokens: the strings below the positions, for every prompt.
        outputs: the strings above them, such as the model's answers; "" for none.
        arrows: for every prompt, (from, to) positions of arrows above, such as the carries of a sum.
        row_names: of the models; default: model, or dense and sparse
        dense_threshold: smallest attention weight that is drawn in the first row; the page has a slider.
        max_edges: at most so many per panel are drawn, the strongest. Headers say how many there are.

    Raises:
        ValueError: the edges, tokens, titles, outputs and arrows do not belong to the same prompts and the same shape.
    """
    refuse_others(AttentionEdges, edges, other)
    columns = [
        Prompt(prompt, *rest)
        for prompt, *rest in zip(
            tokens,
            _for_each("titles", titles, "", tokens),
            _for_each("outputs", outputs, (), tokens),
            _for_each("arrows", arrows, (), tokens),
            strict=True,
        )
    ]
    every = [edges] if other is None else [edges, other]
    _check_shapes(every, columns)
    names = row_names or (("model",) if other is None else ("dense", "sparse"))
    rows = [Row(name, one, dense_threshold * (one is edges)) for name, one in zip(names, every, strict=True)]
    return TokenView(lay_out(rows, columns, arrow_name, max_edges), title)


def _for_each(name: str, given: Sequence[Any] | None, default: Any, tokens: Sequence[Any]) -> Sequence[Any]:
    if given is not None and len(given) != len(tokens):
        raise ValueError(f"{len(given)} {name} for {len(tokens)} prompts: want one for each")
    return [default] * len(tokens) if given is None else given


def _check_shapes(every: Sequence[AttentionEdges], columns: Sequence[Prompt]) -> None:
    dense = every[0]
    shapes = [(edges.n_prompts, edges.n_layers, edges.n_heads, edges.n_pos) for edges in every]
    if shapes[0] != shapes[-1]:
        raise ValueError(
            f"dense and sparse edges differ in (prompts, layers, heads, positions): {shapes[0]}, {shapes[1]}"
        )
    if not columns or len(columns) != dense.n_prompts:
        raise ValueError(f"tokens of {len(columns)} prompts for edges of {dense.n_prompts}: want as many, at least one")
    for prompt in columns:
        if len(prompt.tokens) != dense.n_pos or len(prompt.outputs) not in (0, dense.n_pos):
            raise ValueError(
                f"{len(prompt.tokens)} tokens and {len(prompt.outputs)} outputs for {dense.n_pos} positions: "
                f"{''.join(prompt.tokens)!r}"
            )
        if any(not 0 <= position < dense.n_pos for arrow in prompt.arrows for position in arrow):
            raise ValueError(f"arrows {prompt.arrows} leave the {dense.n_pos} positions")


def _draw_panel(axes: Any, layout: Layout, panel: Panel) -> None:
    """All as plain artists: of a patch matplotlib would work out how far it reaches, which the layout has decided."""
    from matplotlib.collections import PathCollection
    from matplotlib.colors import to_rgba
    from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
    from matplotlib.path import Path

    origin = np.array([panel.x, panel.y])
    round_ends = f"round,pad=0,rounding_size={NODE_HEIGHT / 2}"
    cubic = [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
    for line in range(panel.edges.n_layers + 1):
        for x in layout.node_x:
            corner = (panel.x + x - layout.node_width / 2, panel.y - layout.band * line - NODE_HEIGHT / 2)
            axes.add_artist(FancyBboxPatch(corner, layout.node_width, NODE_HEIGHT, boxstyle=round_ends, fc=NODES, lw=0))
    strokes = np.array([stroke(float(weight), len(panel.edges)) for weight in panel.edges.weight]).reshape(-1, 2)
    colours = np.array([to_rgba(light) for light, _ in COLOURS])[panel.edges.head % len(COLOURS)]
    colours[:, 3] = strokes[:, 1]
    axes.add_collection(
        PathCollection(
            [Path(curve + origin, cubic) for curve in panel.curves],
            facecolors="none",
            edgecolors=colours,
            linewidths=strokes[:, 0],
            capstyle="butt",
        ),
        autolim=False,
    )
    for arrow in panel.arrows:
        axes.add_artist(PathPatch(Path(arrow.line + origin, cubic), fc="none", ec=ARROW, lw=0.8))
        axes.add_artist(Polygon(arrow.tip + origin, closed=True, fc=ARROW, lw=0))
    for label in (panel.header, *panel.labels):
        _draw_label(axes, label, panel.x, panel.y)


def _draw_label(axes: Any, label: Label, x: float = 0, y: float = 0) -> None:
    x, y = label.x + x, label.y + y
    if label.head is not None:
        colour = COLOURS[label.head % len(COLOURS)][0]
        axes.plot((x - 13, x - 3), (y, y), color=colour, lw=1.6)
    align = {"start": "left", "middle": "center", "end": "right"}[label.anchor]
    vertical = {"start": "bottom", "middle": "center", "end": "top"}[label.anchor]
    axes.text(
        x,
        y,
        label.text,
        size=label.size,
        color=INK,
        weight="bold" if label.bold else "normal",
        rotation=90 if label.upright else 0,
        ha="center" if label.upright else align,
        va=vertical if label.upright else "center_baseline",
        parse_math=False,  # a token may hold a dollar sign
    )
