"""The token x layer drawing as an HTML page that needs no network: the layout as JSON in a template.

The page draws the given layout and computes none itself. To keep it small, it stores every curve once, for all panels
and layers, as the x of its two ends; the control points of all curves have the same four heights. An edge is then a
pair (curve, weight in thousandths).
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sparselens.analyses.figures.page import page
from sparselens.analyses.figures.token_layout import COLOURS, GUTTER, NODE_HEIGHT, Label, Layout, Panel, stroke


def token_page(layout: Layout, title: str) -> str:
    """The HTML of the page."""
    return page("tokens", title, page_data(layout))


def page_data(layout: Layout) -> dict[str, Any]:
    """The data that the page's script reads."""
    edges = layout.panels[0].edges
    codes = [_curve_codes(panel) for panel in layout.panels]
    curves, first = np.unique(np.concatenate(codes), return_index=True)
    ends = np.concatenate([panel.curves[:, [0, 3], 0] for panel in layout.panels])[first]
    places = [np.unravel_index(code, (edges.n_heads, edges.n_pos, edges.n_pos)) for code in curves]
    return {
        "width": layout.width,
        "height": round(layout.height, 2),
        "band": round(layout.band, 2),
        "pitch": round(layout.pitch, 2),
        "left": layout.column_x[0],
        "columnWidth": round(layout.column_width, 2),
        "gutter": GUTTER,
        "rowEnd": round(layout.row_end, 2),
        "nodes": _rounded(layout.node_x),
        "node": [round(layout.node_width, 2), NODE_HEIGHT],
        "heads": edges.n_heads,
        "layers": edges.n_layers,
        "rows": list(dict.fromkeys(panel.name for panel in layout.panels)),
        "threshold": layout.threshold,
        "colours": COLOURS,
        "titles": [_label(label) for label in layout.titles],
        "rulers": [_label(label) for label in layout.rulers],
        "legend": [_label(label) for label in layout.legend],
        "tokens": [panel.tokens for panel in layout.panels if panel.row == 0],
        "curves": [[*map(int, place), *_rounded(x)] for place, x in zip(places, ends, strict=True)],
        "heights": next((_rounded(_heights(panel, layout.band)) for panel in layout.panels if len(panel.edges)), []),
        "panels": [
            _panel(panel, np.searchsorted(curves, panel_codes))
            for panel, panel_codes in zip(layout.panels, codes, strict=True)
        ],
    }


def path(points: Float[np.ndarray, "point 2"]) -> str:
    """An SVG path: four points as a Bezier curve, three as a triangle."""
    pairs = [f"{x:.4g} {y:.4g}" for x, y in points]
    return f"M{pairs[0]}C{' '.join(pairs[1:])}" if len(pairs) == 4 else f"M{'L'.join(pairs)}Z"


def _curve_codes(panel: Panel) -> Int[np.ndarray, " edge"]:
    """A number for (head, query, key); edges with the same number have the same curve, shifted by layers."""
    edges = panel.edges
    return (edges.head * edges.n_pos + edges.query_pos) * edges.n_pos + edges.key_pos


def _heights(panel: Panel, band: float) -> Float[np.ndarray, " 4"]:
    """Y of the four control points of curves in layer 0; in layer l they are l bands higher."""
    return panel.curves[0, :, 1] + band * panel.edges.layer[0]


def _rounded(values: Float[np.ndarray, " any"]) -> list[float]:
    return [round(float(value), 2) for value in values]


def _panel(panel: Panel, curve: Int[np.ndarray, " edge"]) -> dict[str, Any]:
    edges = panel.edges
    numbers = np.stack([curve, np.rint(1000 * edges.weight).astype(int)], axis=-1)
    return {
        "row": panel.row,
        "column": panel.column,
        "x": round(panel.x, 2),
        "y": round(panel.y, 2),
        "name": panel.name,
        "total": panel.total,
        "header": _label(panel.header),
        "labels": [_label(label) for label in panel.labels if label.text],
        "arrows": [[path(arrow.line), path(arrow.tip)] for arrow in panel.arrows],
        "strokes": [[round(value, 2) for value in stroke(i / 100, len(edges))] for i in range(101)],
        "edges": [numbers[edges.layer == layer].ravel().tolist() for layer in range(edges.n_layers)],
    }


def _label(label: Label) -> dict[str, Any]:
    said = {name: value for name, value in vars(label).items() if value is not None and value is not False}
    return {name: round(value, 2) if isinstance(value, float) else value for name, value in said.items()}
