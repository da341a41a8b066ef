"""The layer x head drawing of circuits on paper: matplotlib draws what the layout says, without a browser."""

from typing import Any

import numpy as np

from sparselens.analyses.figures.circuit_layout import CircuitLayout, CircuitPanel, Node, Style
from sparselens.analyses.figures.palette import INK, QUIET
from sparselens.analyses.figures.paper import drawing_area, encoded, style
from sparselens.analyses.figures.token_drawing import draw_label
from sparselens.analyses.figures.token_layout import Label

FILL = {"input": "#e4e6e9", "head": "#ffffff", "mlp": "#f3ead2", "logits": "#e4e6e9"}
UNUSED = 0.28  # opacity of nodes without edges


def draw_circuits(layout: CircuitLayout, kind: str, dpi: int) -> bytes:
    """The content of a .pdf, .svg or .png file; the same layout gives the same bytes."""
    with style():
        axes = drawing_area(layout.width, layout.height)
        for panel in layout.panels:
            _draw_panel(axes, layout, panel)
        for label in layout.legend:
            draw_label(axes, label)
        for x, y, look in layout.swatches:
            axes.plot((x, x + 12), (y, y), color=look.ink.light, lw=1.3, ls=_dash(look))
        return encoded(axes.get_figure(), kind, dpi)


def _draw_panel(axes: Any, layout: CircuitLayout, panel: CircuitPanel) -> None:
    from matplotlib.collections import PathCollection
    from matplotlib.colors import to_rgba
    from matplotlib.path import Path

    curve = [Path.CURVE4] * 3
    route = [Path.MOVETO, *curve, Path.LINETO, *curve]
    strokes = list(zip(panel.styles, panel.strokes, strict=True))
    axes.add_collection(
        PathCollection(
            [Path(path + np.array([panel.x, panel.y]), route) for path in panel.paths],
            facecolors="none",
            edgecolors=[to_rgba(style.ink.light, opacity) for style, (_, opacity) in strokes],
            linewidths=[width for _, (width, _) in strokes],
            linestyles=[_dash(style) for style in panel.styles] or "-",
            capstyle="butt",
            zorder=1,
        ),
        autolim=False,
    )
    for node in layout.skeleton.nodes:
        _draw_node(axes, node, panel)
    for label in (panel.header, *layout.skeleton.rulers):
        draw_label(axes, label, panel.x, panel.y)


def _draw_node(axes: Any, node: Node, panel: CircuitPanel) -> None:
    from matplotlib.patches import FancyBboxPatch

    alpha = 1.0 if node.name in panel.used else UNUSED
    x, y, radius = panel.x + node.x, panel.y + node.y, node.height / 2 if node.kind == "head" else 1.5
    corner = (x - node.width / 2, y - node.height / 2)
    shape = f"round,pad=0,rounding_size={min(radius, node.width / 2)}"
    look: Any = {"fc": FILL[node.kind], "ec": INK if alpha == 1 else QUIET, "lw": 0.5, "alpha": alpha, "zorder": 2}
    axes.add_artist(
        FancyBboxPatch(corner, node.width, node.height, boxstyle=shape, **look)
    )  # add_patch would also update the limits
    size = min(7.0, node.height / 1.25, 1.45 * node.width / len(node.text))
    draw_label(axes, Label(x, y, node.text, size=size), alpha=alpha)


def _dash(style: Style) -> Any:
    return (0, style.dash) if style.dash else "solid"
