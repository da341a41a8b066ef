"""Tests of attention patterns: correct weights, legible texts, and pages that make no requests."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

from sparselens.analyses.attribution.attention_edges import AttentionEdges
from sparselens.analyses.figures.paper import literal, style
from sparselens.analyses.figures.pattern_drawing import PatternFigure, pattern_figure
from sparselens.analyses.figures.pattern_grid import colours
from sparselens.analyses.figures.pattern_view import head_pattern
from tests.analyses.figures.legible import assert_legible
from tests.chromium import needs_chromium, said_in_chromium

IOI = [
    "<|endoftext|>", "When", " Mary", " and", " John", " went", " to", " the", " store", ",", " John", " gave", " a",
    " drink", " to",
]  # fmt: skip
HOSTILE = ["$x$", "</script>", "two\nlines", "שלום", "<b>", "_u", "&amp;", "日", "x" * 40, " "]


def causal(layers: int, heads: int, pos: int, keep: float = 1.0, n_prompts: int = 1) -> AttentionEdges:
    """Random causal patterns that keep a share of the edges."""
    rng = np.random.default_rng(0)
    visible = np.tril(np.ones((n_prompts, layers, heads, pos, pos)))
    weight = visible * rng.random(visible.shape)
    weight /= weight.sum(-1, keepdims=True)
    index = np.nonzero(visible * (rng.random(visible.shape) < keep))
    return AttentionEdges(n_prompts, layers, heads, pos, *index, weight[index].astype(np.float32))


def figure_of(n_layers: int, n_heads: int, tokens: list[str], **options) -> PatternFigure:
    n = len(tokens)
    return pattern_figure(causal(n_layers, n_heads, n), causal(n_layers, n_heads, n, 0.1), [tokens], **options)


def drawn(figure: PatternFigure, width: float = 6.75):
    with style():
        return figure.draw(width)


def patterns_in(figure) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for image in figure.axes[0].images if image.get_gid() == "pattern"]


def test_the_weights_drawn_are_the_weights_given():
    dense = AttentionEdges(2, 1, 2, 2, *np.array([[0, 0, 0, 1, 0], [1, 0, 1, 1, 0]]).T, np.array([0.5, 0.25], "f4"))
    sparse = dense.take(np.array([False, True]))
    shown = patterns_in(drawn(pattern_figure(dense, sparse, [["a", "b"]] * 2, prompt=1)))
    assert [pattern.tolist() for pattern in shown] == [
        [[0, 0], [0, 0]], [[0, 0], [0.25, 0]], [[0, 0], [0, 0]], [[0, 0], [0.25, 0]],
    ]  # fmt: skip


def test_layers_go_upward_and_heads_to_the_right_dense_before_sparse():
    made = figure_of(2, 3, list("abcd"))
    axes = drawn(made).axes[0]
    images = [image for image in axes.images if image.get_gid() == "pattern"]
    by_place = sorted(images, key=lambda image: (round(image.get_extent()[3]), image.get_extent()[0]))
    expected = [made.patterns[model][layer, head] for layer in (1, 0) for model in (0, 1) for head in (0, 1, 2)]
    for image, pattern in zip(by_place, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(image.get_array()), pattern)
        assert image.get_clim() == (0, 1)


def test_chosen_heads_stand_dense_over_sparse():
    made = figure_of(3, 3, IOI, heads=[(2, 1), (0, 2)])
    shown = patterns_in(drawn(made))
    expected = [made.patterns[model][head] for model in (0, 1) for head in ((2, 1), (0, 2))]
    np.testing.assert_array_equal(shown, expected)


@pytest.mark.parametrize("width", [3.25, 6.75])
@pytest.mark.parametrize(
    ("layers", "heads", "tokens"),
    [(4, 2, list("53+21=?????")), (5, 8, IOI), (12, 12, IOI), (4, 2, IOI * 4), (1, 1, ["a"])],
)
def test_every_text_is_legible(layers: int, heads: int, tokens: list[str], width: float):
    texts = assert_legible(drawn(figure_of(layers, heads, tokens), width))
    assert {"dense", "sparse", "attention weight 0"} <= {*texts}
    assert f"layers by heads, each {len(tokens)} queries by {len(tokens)} keys" in texts


@pytest.mark.parametrize("width", [3.25, 6.75])
@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_chosen_heads_are_legible(n: int, width: float):
    heads = [(place // 4, place % 4) for place in range(n)]
    texts = assert_legible(drawn(figure_of(2, 4, IOI, heads=heads), width))
    assert [f"a{layer}.h{head}" for layer, head in heads] == [text for text in texts if re.match(r"a\d\.h\d", text)]


def test_tokens_stand_where_they_can_be_read_and_numbers_where_not():
    large = assert_legible(drawn(figure_of(2, 2, IOI, heads=[(0, 0), (1, 1)])))
    assert large.count(" Mary") == 2 + 2  # next to two rows, below two columns
    long = assert_legible(drawn(figure_of(2, 2, IOI * 9, heads=[(0, 0), (1, 1)])))
    assert " Mary" not in long and "100" in long


def test_hostile_tokens_are_drawn_as_they_are(tmp_path: Path):
    made = figure_of(1, 2, HOSTILE, heads=[(0, 0), (0, 1)], names=("$d$", "<s>"))
    texts = assert_legible(drawn(made))
    for token in HOSTILE[:8]:
        assert literal(token) in texts
    assert "x" * 13 + "…" in texts and "$d$" in texts
    assert "&lt;/script&gt;" in made.save(tmp_path / "p.svg").read_text(encoding="utf-8")


def test_equal_steps_of_weight_are_equal_steps_of_lightness():
    shades = colours()(np.linspace(0, 1, 256))[:, :3]
    assert shades[0].tolist() == pytest.approx([1, 1, 1], abs=1e-3)
    linear = np.where(shades <= 0.04045, shades / 12.92, ((shades + 0.055) / 1.055) ** 2.4)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    lightness = np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)
    steps = -np.diff(lightness)
    assert lightness[0] > 99 and lightness[-1] < 20
    assert steps.min() > 0.6 * steps.mean() and steps.max() < 1.4 * steps.mean()


def test_the_same_patterns_give_the_same_bytes(tmp_path: Path):
    made = figure_of(2, 2, list("abc"))
    first, second = (made.save(tmp_path / "p.svg").read_bytes() for _ in range(2))  # all formats: test_plot_drawing.py
    assert first == second


def test_a_model_of_144_heads_gives_a_small_file(tmp_path: Path):
    assert figure_of(12, 12, IOI).save(tmp_path / "p.pdf").stat().st_size < 400_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": [["a", "b"]]}, r"tokens of 1 prompts with lengths \[2\]: want 1 prompts of 3 tokens"),
        ({"tokens": []}, "tokens of 0 prompts"),
        ({"prompt": 1}, "prompt = 1: want 0 to 0"),
        ({"heads": [(0, 2)]}, r"no head a0\.h2: want layers below 2, heads below 2"),
        ({"other": causal(2, 3, 3)}, r"differ in \(layers, heads, queries, keys\)"),
    ],
)
def test_what_does_not_belong_together_is_refused(change: dict, message: str):
    arguments = {"edges": causal(2, 2, 3), "other": causal(2, 2, 3), "tokens": [list("abc")], **change}
    with pytest.raises(ValueError, match=message):
        pattern_figure(**arguments)


def test_too_many_heads_for_the_paper_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"64 x 2 patterns would be .* points wide: want more width or fewer heads"):
        figure_of(2, 32, ["a"]).save(tmp_path / "p.pdf", width=3.25)
    assert not list(tmp_path.iterdir())


# -- one head in circuitsvis


def props_of(page: str) -> dict:
    text = page[page.rindex("CircuitsVis.AttentionPattern,") :].split(",", 1)[1]
    return json.JSONDecoder().raw_decode(text.strip())[0]


def test_head_pattern_has_the_weights_and_the_tokens():
    edges = causal(2, 2, 3)
    page = head_pattern(edges, [["a", "</script>", "\n$"]], 0, 1, 0).html
    props = props_of(page)
    assert props["tokens"] == ["a", "</script>", "\\n$"]
    here = (edges.layer == 1) & (edges.head == 0)
    pattern = np.zeros((3, 3))
    pattern[edges.query_pos[here], edges.key_pos[here]] = edges.weight[here]
    np.testing.assert_allclose(props["attention"], pattern, rtol=1e-6)
    assert (props["minValue"], props["maxValue"]) == (0, 1)
    assert page.count("</script>") == 1


def test_head_pattern_asks_the_network_for_nothing(tmp_path: Path):
    view = head_pattern(causal(1, 1, 2), [["a", "b"]], 0, 0, 0)
    page = view.save_html(tmp_path / "p.html").read_text(encoding="utf-8")
    assert "unpkg" not in page and "default-src 'none'" in page
    assert not re.search(r"\bimport\s*[({\"']|<(script|link|img)[^>]*\b(src|href)\s*=", page)
    assert page == head_pattern(causal(1, 1, 2), [["a", "b"]], 0, 0, 0).html  # the same bytes


def test_in_a_notebook_the_page_is_in_a_frame_that_may_only_run_its_script():
    view = head_pattern(causal(1, 1, 2), [["a", '"<b>']], 0, 0, 0)
    frame = view._repr_html_()
    assert 'sandbox="allow-scripts"' in frame and frame.count("<") == 4
    assert html.unescape(frame[frame.index('srcdoc="') + 8 : frame.rindex('"')]) == view.html


def test_neither_numbers_nor_pages_are_printed():
    assert repr(figure_of(1, 1, ["a", "b"])).startswith("PatternFigure(tokens=('a', 'b')")
    assert repr(head_pattern(causal(1, 1, 2), [["a", "b"]], 0, 0, 0)) == "HeadPattern()"


def test_a_head_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"no head a3\.h0"):
        head_pattern(causal(2, 2, 3), [list("abc")], 0, 3, 0)


@pytest.mark.slow
@needs_chromium
def test_the_page_of_a_head_draws_in_a_browser(tmp_path: Path):
    look = """new MutationObserver(() => {
      const canvas = document.querySelector("canvas");
      const said = { wide: canvas ? canvas.width : 0, title: document.title };
      document.documentElement.setAttribute("data-said", encodeURIComponent(JSON.stringify(said)));
    }).observe(document.body, { childList: true, subtree: true });"""
    page = head_pattern(causal(1, 1, len(HOSTILE)), [HOSTILE], 0, 0, 0).html
    (tmp_path / "p.html").write_text(page.replace("</body>", f"<script>{look}</script></body>"), encoding="utf-8")
    said, complaints = said_in_chromium(tmp_path / "p.html", tmp_path / "profile")
    assert said["wide"] > 100 and said["title"] == "Attention pattern of a0.h0"
    assert "CONSOLE" not in complaints


@pytest.mark.parametrize("heads", [None, [(0, 1)]])
def test_one_model_needs_no_second(heads: list[tuple[int, int]] | None):
    figure = pattern_figure(causal(2, 2, 3), tokens=[list("abc")], heads=heads)
    assert len(figure.patterns) == 1 and figure.names == ("model",)
    assert figure.draw().get_size_inches()[0] == pytest.approx(6.75)
