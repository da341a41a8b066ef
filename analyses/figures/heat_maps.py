"""Plotly heat maps of one number per head, per position or per pair of names; zero is white.

`figure.write_html(path, include_plotlyjs=True)` writes a page that needs no network.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sparselens.analyses.figures.palette import NEGATIVE, POSITIVE
from sparselens.analyses.figures.plot_plotly import axis, escaped, look
from sparselens.circuits.graph import head_of

_COLUMNS = {"head": ("head", "a%{y}.h%{x}"), "pos": ("position", "layer %{y}, position %{x}")}  # label, hover


def heat_map(
    values: Float[Tensor, "layer column"],
    title: str,
    *,
    columns: str | Sequence[str] = "head",
    rows: Sequence[str] | None = None,
    upward: bool | None = None,
    value_label: str = "change of the metric",
    limit: float | None = None,
) -> Any:
    """A plotly heat map of numbers by layer, such as the effect of patching each head: blue above zero, red below.

    >>> heat_map(patch_activations(model, pairs, site="residual", by_position=True).mean, "Residual", columns="pos")

    Args:
        values: NaN is drawn white.
        columns: the second axis of `values`: "head" or "pos" (as in `PatchingResult.mean`), or a unique name for every
            column, such as `TokenizedPairs.labels`
        rows: a unique name for every row; default: layer numbers
        upward: put the first row at the bottom; default: only if rows are layer numbers
        limit: the |value| of full colour, to compare several maps; default: the largest |value|

    Raises:
        ValueError: `columns` is unknown, no value is finite, or `limit` is not above zero.
    """
    import plotly.graph_objects as go

    if isinstance(columns, str) and columns not in _COLUMNS:
        raise ValueError(f"no such columns: {columns!r} (want {', '.join(_COLUMNS)}, or names)")
    row_label = "layer" if rows is None else ""
    label, hover = _COLUMNS[columns] if isinstance(columns, str) else ("", f"{row_label} %{{y}}, %{{x}}".strip())
    numbers = values.detach().float().cpu().numpy()
    if not np.isfinite(numbers).any():
        raise ValueError(f"heat map {title!r} has no finite value among its {numbers.shape} values")
    top = float(np.abs(numbers[np.isfinite(numbers)]).max()) or 1.0 if limit is None else limit
    if not top > 0:
        raise ValueError(f"limit = {limit}: want a value above zero")
    signed = limit is not None or bool((numbers < 0).any())
    upward = rows is None if upward is None else upward  # the queries of a pattern run downward
    layers, places = (
        list(range(n)) if names is None or isinstance(names, str) else [escaped(name) for name in names]
        for n, names in zip(numbers.shape, (rows, columns), strict=True)
    )
    figure = go.Figure(
        go.Heatmap(
            x=places,
            y=layers,
            z=np.where(np.isfinite(numbers), numbers, np.nan),
            zmin=-top if signed else 0.0,  # without negative values, the upper half of the same colours
            zmax=top,
            colorscale=[*[(0, NEGATIVE.light)] * signed, (0.5 * signed, "#ffffff"), (1, POSITIVE.light)],
            colorbar={"title": {"text": escaped(value_label), "side": "right"}, "thickness": 12},
            xgap=1,
            ygap=1,
            hovertemplate=f"{hover}: %{{z:.4g}}<extra></extra>",
        )
    )
    figure.update_layout(
        **look(title),
        xaxis=axis(label) | {"dtick": 1 if len(places) <= 16 else None, "showgrid": False, "constrain": "domain"},
        yaxis=axis(row_label)
        | {
            "dtick": 1 if len(layers) <= 16 else None,
            "showgrid": False,
            "autorange": True if upward else "reversed",
            "scaleanchor": "x",
        },
    )
    return figure


def written_on(figure: Any, texts: Sequence[Sequence[str]]) -> Any:
    """Write a text into every cell of a heat map, and let the cells grow wide enough for it."""
    figure.update_traces(text=[[escaped(text) for text in row] for row in texts], texttemplate="%{text}")
    figure.update_traces(hovertemplate="%{y}, %{x}: %{text} %{z:.3g}<extra></extra>")
    return figure.update_yaxes(scaleanchor=None)


def pattern_map(
    values: Float[Tensor, "layer head query_pos key_pos"],
    head: str | None,
    positions: Sequence[str] = (),
    value_label: str = "change of the metric",
) -> Any:
    """The heat map of one head, such as `a0.h1`, by query and key; default: the head with the largest |value|.

    Raises:
        ValueError: there is no such head.
    """
    n_heads, n_pos = values.shape[1:3]
    known = values.nan_to_num().abs().amax((-2, -1)).flatten()
    layer, number = divmod(int(known.argmax()), n_heads) if head is None else head_of(head, values.shape)
    names = positions or [str(place) for place in range(n_pos)]
    return heat_map(values[layer, number], f"a{layer}.h{number}", rows=names, columns=names, value_label=value_label)
