"""The token x layer drawing on paper: matplotlib draws what the layout says, without a browser."""

from typing import Any

import numpy as np

from sparselens.analyses.figures.palette import INK
from sparselens.analyses.figures.paper import drawing_area, encoded, style
from sparselens.analyses.figures.token_layout import COLOURS, NODE_HEIGHT, Label, Layout, Panel, stroke

NODES, ARROW = "#c4c7cb", "#444444"


def draw_tokens(layout: Layout, kind: str, dpi: int) -> bytes:
    """The content of a .pdf, .svg or .png file; the same layout gives the same bytes."""
    with style():
        axes = drawing_area(layout.width, layout.height)
        for panel in layout.panels:
            _draw_panel(axes, layout, panel)
        for label in (*layout.titles, *layout.rulers, *layout.legend):
            draw_label(axes, label)
        return encoded(axes.get_figure(), kind, dpi)


def _draw_panel(axes: Any, layout: Layout, panel: Panel) -> None:
    """Uses `add_artist`, since `add_patch` would compute the extent of each patch, which the layout already fixes."""
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
        draw_label(axes, label, panel.x, panel.y)


def draw_label(axes: Any, label: Label, x: float = 0.0, y: float = 0.0, alpha: float = 1.0) -> None:
    """Draw a label whose position is relative to (x, y)."""
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
        alpha=alpha,
        weight="bold" if label.bold else "normal",
        rotation=90 if label.upright else 0,
        ha="center" if label.upright else align,
        va=vertical if label.upright else "center_baseline",
        parse_math=False,  # a token may contain a dollar sign
    )
