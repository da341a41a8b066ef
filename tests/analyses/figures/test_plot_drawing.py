"""Tests of plots: they draw the given numbers, are legible at column width, and give the same file every time."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colors, rcParams
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sparselens.analyses.figures.heat_maps import heat_map
from sparselens.analyses.figures.page import write_page
from sparselens.analyses.figures.palette import MODELS
from sparselens.analyses.figures.paper import encoded, literal, style
from sparselens.analyses.figures.plot import Plot, Series
from sparselens.analyses.figures.plot_drawing import draw, save_plots
from sparselens.analyses.figures.plot_ticks import log_ticks, number
from sparselens.analyses.figures.thinning import thinned
from tests.analyses.figures.legible import assert_legible

N_EDGES = 32_491
HOSTILE = ["$x$", "<b>&amp;", "two\nlines", "שלום", "\u202eabc", "_under", "日本"]


def loss_plot() -> Plot:
    ks = (1, 2, 4, 8, 16, 32, 64)
    share = tuple((64 * k - k * (k - 1) / 2) / 2080 for k in ks)
    dense = (6.56, 5.4, 4.7, 4.2, 3.95, 3.85, 3.78)
    return Plot(
        "loss", "Loss against open attention edges", "share of open attention edges", "loss (nats per token)",
        (
            Series("dense, top-k attention", "dense", share, dense, labels=tuple(f"k = {k}" for k in ks)),
            Series("sparse", "sparse", (0.0032,), (3.53,), joined=False, low=(3.45,), high=(3.6,)),
            Series("dense, trained as long", "control", (1.0,), (3.41,), joined=False, low=(3.33,), high=(3.5,)),
        ),
        log_x=True, percent_x=True,
    )  # fmt: skip


def heads_plot() -> Plot:
    x = np.arange(145.0)

    def kept(name: str, scale: float) -> Series:
        y = 1 - np.exp(-x / scale)
        width = 0.6 * y * (1 - y)
        columns = (tuple(column.tolist()) for column in (x, y, y - width, y + width))
        x_, y_, low, high = columns
        return Series(name, name, x_, y_, low=low, high=high)

    return Plot(
        "heads", "Heads chosen for every prompt", "number of heads that act", "logit difference kept",
        (kept("dense", 40), kept("sparse", 10)), percent_y=True, guides=(0.9,), notes=("3.1x fewer [2.2, 4.0]",),
    )  # fmt: skip


def edges_plot() -> Plot:
    rank = np.arange(1.0, N_EDGES + 1)

    def share(name: str, model: str, power: float, dotted: bool) -> Series:
        y = np.cumsum((rank + 3) ** -power)
        return Series(name, model, tuple(rank.tolist()), tuple((y / y[-1]).tolist()), dotted=dotted)

    return Plot(
        "edges_needed", "Attribution that the largest edges carry", "number of edges", "share of |score|",
        (
            share("dense", "dense", 1.0, False), share("dense, mean scores", "dense", 0.8, True),
            share("sparse", "sparse", 1.6, False), share("sparse, mean scores", "sparse", 1.35, True),
        ),
        log_x=True, percent_y=True, guides=(0.9,), notes=("4.8x fewer [4.1, 5.6]",),
    )  # fmt: skip


PLOTS = {"loss": loss_plot(), "heads": heads_plot(), "edges": edges_plot()}


def drawn(*plots: Plot, width: float = 3.25):
    with style():
        return draw(plots, width)


def lines_of(axes: Axes, series: Series) -> list[Line2D]:
    ink = MODELS[series.model]
    return [line for line in axes.lines if line.get_marker() == ink.marker and line.get_color() == ink.light]


@pytest.mark.parametrize("name", ["loss", "heads"])
def test_the_numbers_drawn_are_the_numbers_given(name: str):
    plot = PLOTS[name]
    (axes,) = drawn(plot).axes
    for series in plot.series:
        (line,) = lines_of(axes, series)
        np.testing.assert_array_equal(line.get_xdata(), series.x)
        np.testing.assert_array_equal(line.get_ydata(), series.y)


def test_a_band_has_the_ends_of_the_intervals():
    (axes,) = drawn(PLOTS["heads"]).axes
    (path,) = axes.collections[0].get_paths()
    series = PLOTS["heads"].series[0]
    given = {*zip(series.x, series.low, strict=True), *zip(series.x, series.high, strict=True)}
    assert {tuple(vertex) for vertex in path.vertices.tolist()} == given


def test_an_error_bar_reaches_from_low_to_high():
    (axes,) = drawn(PLOTS["loss"]).axes
    ends = [bar.get_segments()[0][:, 1].tolist() for bar in axes.collections]
    assert ends == [[3.45, 3.6], [3.33, 3.5]]


def test_a_guide_is_drawn_and_numbered():
    (axes,) = drawn(PLOTS["edges"]).axes
    assert [0.9, 0.9] in [list(line.get_ydata()) for line in axes.lines]
    assert "90 %" in [text.get_text() for text in axes.get_yticklabels()]


def test_dotted_series_are_dotted():
    (axes,) = drawn(PLOTS["edges"]).axes
    styles = [line.get_linestyle() for line in axes.lines if line.get_marker() in "os"]
    assert styles == ["-", "--", "-", "--"]  # matplotlib returns custom dash patterns as "--"


@pytest.mark.parametrize("width", [3.25, 6.75])
@pytest.mark.parametrize("name", list(PLOTS))
def test_every_text_is_legible(name: str, width: float):
    assert_legible(drawn(PLOTS[name], width=width), smallest=7)


@pytest.mark.parametrize("names", [["heads", "edges"], ["loss", "heads", "edges"], ["heads"] * 4])
def test_panels_side_by_side_are_legible(names: list[str]):
    figure = drawn(*(PLOTS[name] for name in names), width=6.75)
    texts = assert_legible(figure, smallest=7)
    assert [text for text in "abcd" if text in texts] == list("abcd"[: len(names)])
    assert len(figure.legends) == 1 and texts.count("dense") == 1
    assert len({axes.get_position().height for axes in figure.axes}) == 1


def test_the_legend_and_the_notes_stand_clear_of_the_curves():
    for plot in PLOTS.values():
        figure = drawn(plot)
        (axes,) = figure.axes
        (legend,) = figure.legends
        renderer = figure.canvas.get_renderer()
        assert legend.get_window_extent(renderer).y0 > axes.get_window_extent().y1
        for note in (text for text in axes.texts if text.get_gid() == "note"):
            box = note.get_window_extent(renderer)
            for line in axes.lines:
                path = line.get_path().transformed(axes.transData)
                assert not path.intersects_bbox(box, filled=False) or line.get_transform() != axes.transData


def test_a_note_gets_room_where_curves_fill_the_panel():
    x = tuple(np.linspace(0, 1, 200).tolist())
    waves = tuple((0.5 + 0.5 * np.sin(150 * np.array(x))).tolist())
    figure = drawn(Plot("p", "", "x", "y", (Series("s", "dense", x, waves),), notes=("a note of some length",)))
    (axes,) = figure.axes
    (note,) = axes.texts
    lowest = axes.transData.inverted().transform(note.get_window_extent(figure.canvas.get_renderer()).p0)[1]
    assert lowest > 1


def test_every_point_has_its_label_beside_it():
    plot = PLOTS["loss"]
    (axes,) = drawn(plot).axes
    labels = {text.get_text(): text for text in axes.texts}
    assert set(labels) == set(plot.series[0].labels)
    for name, x, y in zip(plot.series[0].labels, plot.series[0].x, plot.series[0].y, strict=True):
        assert labels[name].xy == (x, y) and np.hypot(*labels[name].get_position()) < 40


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_drawn_as_it_is(text: str):
    series = replace(PLOTS["loss"].series[0], name=text, labels=(text,) * 7)
    plot = Plot("p", text, text, text, (series,), log_x=True, notes=(text,))
    figure = drawn(plot)
    texts = assert_legible(figure)
    assert texts.count(literal(text)) >= 6
    with style():
        svg = encoded(figure, "svg", 72).decode()
    assert literal(text).replace("&", "&amp;").replace("<", "&lt;") in svg.replace("&gt;", ">")


def test_literal():
    assert literal("a\n$b$ _ש") == "a\\n$b$ _ש"
    assert literal("日\u202e") == "\\u65e5\\u202e"  # no glyph; not printable


def test_long_words_are_broken_into_lines():
    long = "a title that nobody would ever call short, since it goes on and on about edges"
    texts = assert_legible(drawn(replace(PLOTS["heads"], title=long, y_label=long, x_label=long)))
    assert sum(text.replace("\n", " ") == long and "\n" in text for text in texts) == 3


def test_words_that_are_too_long_are_cut():
    name = "a_name_without_a_space" * 5
    plot = replace(PLOTS["heads"], title=name, series=(replace(PLOTS["heads"].series[0], name=name),))
    texts = assert_legible(drawn(plot))
    assert sum(text.replace("\n", "") == name for text in texts) == 2


def test_in_a_notebook_a_plot_is_a_picture():
    assert PLOTS["loss"]._repr_png_().startswith(b"\x89PNG")
    assert len(repr(PLOTS["edges"])) < 1000


@pytest.mark.parametrize("form", ["pdf", "svg", "png"])
def test_the_same_plot_gives_the_same_bytes(form: str, tmp_path: Path):
    first, second = (PLOTS["loss"].save(tmp_path / f"p.{form}", dpi=50).read_bytes() for _ in range(2))
    assert first == second


def test_files_have_text_that_publishers_accept(tmp_path: Path):
    pdf = save_plots([PLOTS["heads"], PLOTS["loss"]], tmp_path / "new" / "two.pdf").read_bytes()
    assert b"/Type3" not in pdf and re.search(rb"/CIDFontType2|/TrueType", pdf)
    svg = PLOTS["loss"].save(tmp_path / "loss.svg").read_text(encoding="utf-8")
    assert "k = 64" in svg and "Loss against open attention edges" in svg


def test_curves_of_many_points_give_small_files(tmp_path: Path):
    assert PLOTS["edges"].save(tmp_path / "edges.pdf").stat().st_size < 40_000
    assert PLOTS["edges"].save(tmp_path / "edges.svg").stat().st_size < 60_000


@pytest.mark.parametrize("log", [True, False])
def test_thinning_cannot_be_seen(log: bool):
    whole = PLOTS["edges"].series[2]
    thin = thinned(whole, log)
    assert len(thin.x) <= 400 and (thin.x[0], thin.x[-1]) == (1, N_EDGES) and thin.y[-1] == whole.y[-1]
    scale = np.log if log else np.array
    x, thin_x = scale(whole.x), scale(thin.x)
    above = np.abs(np.interp(x, thin_x, thin.y) - whole.y)
    beside = np.abs(np.interp(whole.y, thin.y, thin_x) - x) / np.ptp(x)
    assert np.minimum(above, beside).max() < 0.001


def test_thinning_keeps_spikes_and_the_columns_together():
    x = tuple(float(i) for i in range(5000))
    y = tuple(1.0 if i == 2345 else 0.0 for i in range(5000))
    thin = thinned(Series("s", "dense", x, y, low=y, high=y, labels=tuple(map(str, range(5000)))), log_x=False)
    spike = thin.x.index(2345.0)
    assert thin.y[spike] == thin.low[spike] == 1.0 and thin.labels[spike] == "2345"


def test_few_points_and_scattered_ones_are_left_alone():
    few = PLOTS["loss"].series[0]
    many = replace(PLOTS["edges"].series[0], joined=False)
    assert thinned(few, True) is few and thinned(many, True) is many


def test_long_curves_have_few_markers():
    (axes,) = drawn(PLOTS["edges"]).axes
    assert all(line.get_markevery() is not None for line in axes.lines if line.get_marker() in "os")


def test_models_differ_without_colour():
    grey = {name: np.dot(colors.to_rgb(ink.light), (0.2126, 0.7152, 0.0722)) for name, ink in MODELS.items()}
    assert grey["dense"] - grey["sparse"] > 0.1
    assert len({ink.marker for ink in MODELS.values()}) == len(MODELS)


@pytest.mark.parametrize(
    ("value", "percent", "text"),
    [(10_000.0, False, "10,000"), (0.001, False, "0.001"), (0.9, True, "90 %"), (0.0032, True, "0.32 %"),
     (-2.5, False, "\N{MINUS SIGN}2.5"), (0.0, True, "0 %"), (0.29, True, "29 %")],
)  # fmt: skip
def test_numbers(value: float, percent: bool, text: str):
    assert number(value, percent) == text


def test_log_ticks_are_round():
    def all_fit(ticks):
        return True

    assert log_ticks(0.7, 4e4, all_fit) == [1, 10, 100, 1000, 10_000]
    assert log_ticks(0.9, 12.0, all_fit) == [1, 2, 5, 10]
    assert log_ticks(0.7, 4e4, lambda ticks: len(ticks) < 4) == [1, 100, 10_000]
    assert len(log_ticks(3.1, 3.9, all_fit)) > 1


def test_drawing_neither_heeds_nor_changes_settings(tmp_path: Path):
    mine = PLOTS["heads"].save(tmp_path / "a.svg").read_bytes()
    rcParams["font.size"] = 20
    try:
        before = dict(rcParams)
        assert PLOTS["heads"].save(tmp_path / "b.svg").read_bytes() == mine
        assert dict(rcParams) == before
    finally:
        rcParams["font.size"] = 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": (), "y": ()}, "'one' is empty"),
        ({"y": (1.0, float("nan"))}, "'one' has nan in y"),
        ({"x": (1.0, float("inf"))}, "'one' has inf in x"),
        ({"low": (0.0, float("nan")), "high": (2.0, 2.0)}, "'one' has nan in low"),
        ({"y": (1.0,)}, "'one' has 2 x and 1 y"),
        ({"labels": ("a",)}, "'one' has 2 x and 1 labels"),
        ({"low": (0.0, 0.0)}, "'one' has only one end"),
        ({"model": "spare"}, "'one' has model 'spare': want one of dense, sparse"),
    ],
)
def test_series_that_cannot_be_drawn_are_refused(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Series(**{"name": "one", "model": "dense", "x": (1.0, 2.0), "y": (1.0, 2.0), **change})


def test_plots_that_cannot_be_drawn_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="'heads' has no series"):
        replace(PLOTS["heads"], series=())
    with pytest.raises(ValueError, match=r"'dense' has x = 0, which a log axis"):
        replace(PLOTS["heads"], log_x=True)
    with pytest.raises(ValueError, match=r"0 plots in 6\.75 inches"):
        save_plots([], tmp_path / "none.pdf")
    with pytest.raises(ValueError, match=r"4 plots in 3\.25 inches"):
        save_plots([PLOTS["heads"]] * 4, tmp_path / "four.pdf", width=3.25)
    with pytest.raises(ValueError, match=r"p\.jpg.*\.pdf, \.svg or \.png"):
        PLOTS["heads"].save(tmp_path / "p.jpg")
    assert not list(tmp_path.iterdir())


# -- plotly


def test_plotly_has_the_numbers_given():
    plot = PLOTS["heads"]
    figure = plot.plotly()
    high, low, curve = figure.data[:3]
    series = plot.series[0]
    assert (tuple(high.y), tuple(low.y), tuple(curve.y)) == (series.high, series.low, series.y)
    assert tuple(curve.x) == series.x and curve.name == "dense" and low.fill == "tonexty"
    assert curve.line.color == MODELS["dense"].light


def test_plotly_bars_axes_and_notes():
    bar = PLOTS["loss"].plotly().data[1]
    np.testing.assert_allclose([*bar.error_y.array, *bar.error_y.arrayminus], [0.07, 0.08])
    figure = PLOTS["edges"].plotly()
    assert figure.layout.xaxis.type == "log" and figure.layout.yaxis.tickformat == ".3~%"
    assert figure.data[1].line.dash == "dot" and len(figure.data[0].x) <= 400
    assert "4.8x fewer [4.1, 5.6]" in figure.layout.title.text and figure.layout.shapes[0].y0 == 0.9


def test_plotly_shows_hostile_text_as_it_is():
    plot = replace(PLOTS["loss"], title="<b>$x$</b>\n", x_label="<img src=x>")
    layout = plot.plotly().layout
    assert layout.title.text == "&lt;b&gt;&#36;x&#36;&lt;/b&gt;\\n"
    assert layout.xaxis.title.text == "&lt;img src=x&gt;"


def asks_for(page: str) -> list[str]:
    """Addresses that a browser would load when it opens the page."""
    return re.findall(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)\s*=\s*[\"']?([^\"'> ]+)", page)


def test_a_page_is_not_saved_under_the_name_of_another_kind_of_file(tmp_path: Path):
    made: list[str] = []
    with pytest.raises(ValueError, match=r"want a name that ends in \.html, not x\.pdf"):
        write_page(tmp_path / "x.pdf", lambda: made.append("page") or "")
    assert not made and not [*tmp_path.iterdir()]


def test_a_saved_page_asks_the_network_for_nothing(tmp_path: Path):
    heat_map(torch.ones(2, 2), "x").write_html(tmp_path / "page.html", include_plotlyjs=True)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert asks_for('<script src="https://cdn.plot.ly/plotly.js">') == ["https://cdn.plot.ly/plotly.js"]
    head = page[:2000] + page[-2000:]  # the script in between contains strings that look like tags
    assert not asks_for(head)


def test_heat_map_is_centred_on_zero():
    values = torch.tensor([[0.5, -2.0, 0.0], [1.0, float("nan"), 0.25]])
    (trace,) = heat_map(values, "Effect of <b>", value_label="$").data
    np.testing.assert_array_equal(np.array(trace.z, dtype=float), values.numpy())
    assert (trace.zmin, trace.zmax) == (-2, 2) and trace.colorscale[1] == (0.5, "#ffffff")
    assert heat_map(values, "x", limit=3.0).data[0].zmax == 3.0
    (shares,) = heat_map(values.abs(), "x").data  # nothing negative: the upper half of the same colours
    assert (shares.zmin, shares.zmax) == (0, 2) and shares.colorscale == ((0, "#ffffff"), trace.colorscale[2])
    assert heat_map(torch.zeros(1, 1), "x").data[0].zmax == 1.0


def test_heat_maps_of_nothing_are_refused():
    with pytest.raises(ValueError, match=r"'x' has no finite value among its \(2, 3\)"):
        heat_map(torch.full((2, 3), float("nan")), "x")
    with pytest.raises(ValueError, match=r"limit = -1\.0"):
        heat_map(torch.ones(2, 3), "x", limit=-1.0)


def test_a_heat_map_of_positions_calls_them_positions():
    heads, positions = (heat_map(torch.ones(2, 3), "x", columns=columns) for columns in ("head", "pos"))
    assert heads.layout.xaxis.title.text == "head" and "a%{y}.h%{x}" in heads.data[0].hovertemplate
    assert positions.layout.xaxis.title.text == "position"
    assert positions.data[0].hovertemplate.startswith("layer %{y}, position %{x}: ")
    with pytest.raises(ValueError, match=r"no such columns: 'neuron' \(want head, pos, or names\)"):
        heat_map(torch.ones(2, 3), "x", columns="neuron")
