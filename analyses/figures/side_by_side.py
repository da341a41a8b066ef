"""Plots of several results side by side on a common scale, for example of a dense and a sparse model."""

from collections.abc import Mapping
from typing import Any

from sparselens.analyses.attribution.attention_edges import AttentionEdges
from sparselens.analyses.figures.plot_plotly import escaped, look
from sparselens.results import Result

_ROOM = 80  # characters that fit in all titles together
_CHARACTER = 0.0075  # width of a character / width of the figure
_PLACE = ("anchor", "domain")  # properties of an axis that place it in its own figure


def side_by_side(results: Mapping[str, Result], **options: Any) -> Any:
    """The `plot()` of every result in one figure: heat maps with one colour scale, curves with one axis.

    >>> heads = {name: patch_heads(model, pairs) for name, model in {"dense": dense, "sparse": sparse}.items()}
    >>> side_by_side(heads)
    >>> side_by_side({"dense": attention_edges(dense, pairs), "sparse": attention_edges(sparse, pairs)}, prompt=1)

    Attention edges, which are token x layer drawings, are placed one below the other.

    If a plot shows only one head, each result shows its own largest one unless `head` is given.

    Args:
        results: two or more results of the same type, by the names shown in the figure
        options: passed to their `plot()`

    Raises:
        ValueError: there are fewer than two results, their types differ, or they have no `plot()`.
    """
    kinds = sorted({type(result).__name__ for result in results.values()})
    if len(results) < 2 or len(kinds) > 1:
        raise ValueError(f"{len(results)} results of types {', '.join(kinds) or 'none'}: want two or more of one type")
    every: list[Any] = list(results.values())
    if not hasattr(every[0], "plot"):
        raise ValueError(f"a {kinds[0]} has no plot()")
    if isinstance(every[0], AttentionEdges):
        first, *others = every
        if len(others) > 1:
            raise ValueError(f"token x layer drawings of {len(every)} models: want two")
        return first.plot(other=others[0], names=tuple(results), **options)
    return _joined({name: result.plot(**options) for name, result in zip(results, every, strict=True)})


def _joined(figures: Mapping[str, Any]) -> Any:
    from plotly.subplots import make_subplots

    titles = {name: figure.layout.title.text or "" for name, figure in figures.items()}
    alike = len({*titles.values()}) == 1
    shown = [
        escaped(name) if alike or len(f"{name}: {title}") * len(titles) > _ROOM else f"{escaped(name)}: {title}"
        for name, title in titles.items()
    ]
    longest = max(len(str(label)) for figure in figures.values() for trace in figure.data for label in _rows(trace))
    spacing = min(0.3, 0.06 + longest * _CHARACTER) / (len(figures) - 1)
    joined = make_subplots(1, len(figures), subplot_titles=shown, horizontal_spacing=spacing)
    maps = [trace for figure in figures.values() for trace in figure.data if trace.type == "heatmap"]
    for column, figure in enumerate(figures.values(), 1):
        for trace in figure.data:
            if trace.type == "heatmap":
                limits = {"zmin": min(other.zmin for other in maps), "zmax": max(other.zmax for other in maps)}
                trace.update(**limits, showscale=column == len(figures))
            else:
                trace.update(showlegend=bool(trace.showlegend) and column == 1)
            joined.add_trace(trace, 1, column)
        x, y = (axis.to_plotly_json() for axis in (figure.layout.xaxis, figure.layout.yaxis))
        if y.get("scaleanchor"):
            y |= {"scaleanchor": f"x{column}" if column > 1 else "x", "constrain": "domain"}
        joined.update_xaxes({key: value for key, value in x.items() if key not in _PLACE}, col=column)
        joined.update_yaxes({key: value for key, value in y.items() if key not in _PLACE}, col=column)
    if not maps:
        joined.update_yaxes(matches="y")
    title = next(iter(titles.values())) if alike else ""  # already escaped
    return joined.update_layout(look("")).update_layout(title_text=title)


def _rows(trace: Any) -> list[Any]:
    """Row labels of a heat map."""
    return list(trace.y) if trace.type == "heatmap" else [""]
