"""The circuit viewer as an HTML page that needs no network: layout and edges as JSON in a template.

The page stores the position of every node once, the edges from the largest |score| down as columns of bytes, and the
attention patterns as packed by `viewer_patterns`. Scores are exact, so that the page's thresholds give the same
circuits as `EdgeScores.smallest` and `.top`; edges of score 0 are not stored.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np

from sparselens.analyses.figures import circuit_layout as layout
from sparselens.analyses.figures import lanes
from sparselens.analyses.figures.circuit_layout import CircuitLayout, Node, Style
from sparselens.analyses.figures.page import page, read
from sparselens.analyses.figures.palette import MODELS, NEGATIVE, POSITIVE, SHARED, WEIGHT
from sparselens.analyses.figures.plot import Plot
from sparselens.analyses.figures.thinning import thinned
from sparselens.analyses.figures.viewer_edges import RankedEdges
from sparselens.analyses.figures.viewer_patterns import in_base64


def viewer_page(title: str, data: Mapping[str, Any]) -> str:
    """The HTML of the page."""
    return page("viewer", title, data, colours=colours(), patterns=read("patterns.css"))


def colours() -> str:
    """The palette as CSS variables, for light and dark mode."""
    inks = {f"--{name}": ink for name, ink in MODELS.items()} | {
        "--positive": POSITIVE,
        "--negative": NEGATIVE,
        "--shared": SHARED,
        "--weight": WEIGHT,
    }
    light = "".join(f"{name}: {ink.light};" for name, ink in inks.items())
    dark = "".join(f"{name}: {ink.dark};" for name, ink in inks.items())
    return f":root {{ {light} }} @media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"


def graph_data(circuits: CircuitLayout, difference: CircuitLayout | None) -> dict[str, Any]:
    """Names and coordinates of all nodes, edge ends and legends."""
    frame = circuits.skeleton
    return {
        "sources": frame.graph.sources,
        "destinations": frame.graph.destinations,
        "nodes": [_node(node) for node in frame.nodes],
        "rulers": [[round(label.x, 2), round(label.y, 2), label.text, label.size] for label in frame.rulers],
        "leaves": np.round(frame.leaves, 2).ravel().tolist(),
        "enters": np.round(frame.enters, 2).ravel().tolist(),
        "lanes": {
            **{name: np.round(value, 3).tolist() for name, value in vars(frame.lanes).items()},
            "bend": lanes.BEND,
            "spread": lanes.SPREAD,
        },
        "band": -frame.rulers[0].y,
        "faintest": layout.FAINTEST,
        "top": round(frame.top, 2),
        "bottom": frame.bottom,
        "panel": layout.PANEL,
        "header": layout.HEADER,
        "styles": {"circuit": _styles(layout.SIGNS), "difference": _styles(layout.DIFFERENCES)},
        "legends": {"circuit": _legend(circuits)} | ({"difference": _legend(difference)} if difference else {}),
        "markers": {name: ink.marker for name, ink in MODELS.items()},
        "cfg": frame.graph.config(),
    }


def model_data(
    edges: RankedEdges,
    name: str,
    labels: Mapping[str, str],
    faithful: tuple[int, float] | None,
    pruned: tuple[RankedEdges, float] | None,
) -> dict[str, Any]:
    """The edges of one model.

    Args:
        faithful: number of edges of its faithful circuit, and the circuit's faithfulness; None if there is none
        pruned: its pruned circuit, and the circuit's faithfulness; None if there is none
    """
    return {
        "name": layout.shortened(name),
        "edges": edges.n_edges,
        "total": edges.total,
        **_columns(edges),
        "labels": dict(labels),
        "faithful": None if faithful is None else {"edges": faithful[0], "mean": round(float(faithful[1]), 4)},
        "pruned": None if pruned is None else {**_columns(pruned[0]), "mean": _known(pruned[1])},
    }


def _known(faithfulness: float) -> float | None:
    """Rounded for the page; None if undefined, since clean and ablated runs score the same."""
    return round(float(faithfulness), 4) if isfinite(faithfulness) else None


def _columns(edges: RankedEdges) -> dict[str, Any]:
    return {
        "source": in_base64(edges.source.astype(np.uint16)),
        "destination": in_base64(edges.destination.astype(np.uint16)),
        "score": in_base64(edges.score),
        "double": edges.score.dtype == np.float64,
    }


def plot_data(plot: Plot) -> dict[str, Any]:
    """A plot with numbers rounded to five digits and curves thinned to what is visible."""
    said = {name: value for name, value in vars(plot).items() if name != "series"}
    series = [
        {name: _numbers(value) if name in ("x", "y", "low", "high") else value for name, value in vars(one).items()}
        for one in (thinned(series, plot.log_x) for series in plot.series)
    ]
    return {**said, "guides": _numbers(plot.guides), "series": series}


def _node(node: Node) -> list[Any]:
    return [node.name, node.kind, node.text, *(round(value, 2) for value in node[3:])]


def _numbers(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


INKS = {ink: name for name, ink in {**MODELS, "positive": POSITIVE, "negative": NEGATIVE, "shared": SHARED}.items()}


def _styles(styles: Sequence[Style]) -> list[list[Any]]:
    return [[INKS[style.ink], style.dash] for style in styles]


def _legend(drawn: CircuitLayout) -> dict[str, Any]:
    """Texts and swatches below the panels, relative to the panels' lower end."""
    floor = drawn.panels[-1].y + drawn.skeleton.bottom
    return {
        "height": round(drawn.height - floor, 2),
        "labels": [[round(label.x, 2), round(label.y - floor, 2), label.text] for label in drawn.legend],
        "swatches": [[round(x, 2), round(y - floor, 2), INKS[style.ink], style.dash] for x, y, style in drawn.swatches],
        "width": drawn.width,
    }
