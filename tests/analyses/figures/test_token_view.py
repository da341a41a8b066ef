"""Tests of the token x layer layout, computed by hand for two positions, and of the files drawn from it."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from transformer_lens.model_bridge.sources import build_bridge_from_module

import sparselens as sl
from sparselens.analyses import AttentionEdges, TokenView, attention_edges, token_view
from sparselens.analyses.figures.token_layout import NODE_HEIGHT, WIDTH, heading, printable, stroke, strongest
from sparselens.models.character_model import character_model
from sparselens.tasks.addition import ALPHABET, Addition, ids

Rows = list[tuple[int, int, int, int, int, float]]  # prompt, layer, head, query, key, weight

LONG = "Mammals swam home where warm summers warmed many swamps; mammoths swam with mammals, whom warm"


def table(rows: Rows, n_prompts: int = 1, n_layers: int = 2, n_heads: int = 2, n_pos: int = 2) -> AttentionEdges:
    index = np.array([row[:5] for row in rows], dtype=np.int64).reshape(-1, 5)
    weight = np.array([row[5] for row in rows], dtype=np.float32)
    return AttentionEdges(n_prompts, n_layers, n_heads, n_pos, *index.T, weight)


DENSE = table([(0, 0, 0, 0, 0, 1.0), (0, 0, 0, 1, 0, 0.25), (0, 0, 1, 1, 1, 0.75), (0, 1, 1, 1, 0, 0.5)])
SPARSE = table([(0, 1, 1, 1, 0, 0.5)])


def small_view(**options) -> TokenView:
    return token_view(DENSE, SPARSE, [["a", "b"]], **options)


def three_prompts(tokens: list[str]) -> TokenView:
    """Every edge of a bidirectional model, with everything that can be drawn around it."""
    n = len(tokens)
    rng = np.random.default_rng(0)
    rows = [(p, *i, float(rng.random())) for p in range(3) for i in np.ndindex(2, 2, n, n)]
    outputs = ["", *(str(i) for i in range(1, n))]
    return token_view(
        table(rows, 3, n_pos=n),
        table(rows[:: 2 * n], 3, n_pos=n),
        [tokens] * 3,
        titles=["53 + 21: no carry", LONG, "57 + 68: propagated carry"],
        outputs=[outputs] * 3,
        arrows=[[], [(n - 1, n - 2)], [(n - 1, n - 2), (n - 2, 0)]],
    )


def test_an_edge_leads_from_its_key_to_its_query_one_layer_up():
    layout = small_view().layout
    (curve,) = layout.panels[1].curves
    offset = layout.node_x[0] - curve[0, 0]  # head 1 of two starts right of the middle
    assert offset < 0
    bottom, top = -layout.band - NODE_HEIGHT / 2, -2 * layout.band + NODE_HEIGHT / 2
    np.testing.assert_allclose(curve[0], [layout.node_x[0] - offset, bottom])
    np.testing.assert_allclose(curve[3], [layout.node_x[1] - offset, top])
    assert (curve[1, 0], curve[2, 0]) == (curve[0, 0], curve[3, 0])  # vertical at both ends
    assert top < curve[1, 1] < bottom and top < curve[2, 1] < bottom


def test_heads_stand_side_by_side_within_the_node():
    layout = small_view().layout
    dense = layout.panels[0]
    start = {
        int(h): x - layout.node_x[k]
        for h, k, x in zip(dense.edges.head, dense.edges.key_pos, dense.curves[:, 0, 0], strict=True)
    }
    assert start[0] == pytest.approx(-start[1]) and 0 < start[1] < layout.node_width / 2


def test_strong_edges_lie_on_top():
    assert small_view().layout.panels[0].edges.weight.tolist() == [0.25, 0.5, 0.75, 1.0]


def test_rows_and_columns_line_up():
    layout = three_prompts(list("1+2=?")).layout
    assert [(panel.row, panel.column) for panel in layout.panels] == [(r, c) for r in (0, 1) for c in (0, 1, 2)]
    assert [panel.x for panel in layout.panels[:3]] == [panel.x for panel in layout.panels[3:]] == layout.column_x
    assert len({panel.y for panel in layout.panels[:3]}) == 1
    assert layout.panels[3].y - layout.panels[0].y > 2 * layout.band


@pytest.mark.parametrize(
    ("options", "drawn"), [({}, 4), ({"dense_threshold": 0.5}, 3), ({"max_edges": 2}, 2), ({"dense_threshold": 2.0}, 0)]
)
def test_headers_count_what_is_drawn_and_what_there_is(options: dict, drawn: int):
    panel = small_view(**options).layout.panels[0]
    assert (len(panel.edges), panel.total) == (drawn, 4)
    assert panel.header.text == heading("dense", drawn, 4)


def test_heading():
    assert heading("dense", 1936, 1936) == "dense: 1,936 edges"
    assert heading("sparse", 1, 1) == "sparse: 1 edge"
    assert heading("dense", 0, 1936) == "dense: 0 of 1,936 edges drawn"


def test_the_strongest_are_kept():
    assert strongest(DENSE, 0.0, 2).weight.tolist() == [0.75, 1.0]
    assert strongest(DENSE, 0.3, 9).weight.tolist() == [0.5, 0.75, 1.0]


def test_more_weight_is_wider_and_less_faint():
    for n_drawn in (1, 5000):
        widths, opacities = zip(*(stroke(weight, n_drawn) for weight in (0.0, 0.5, 1.0)), strict=True)
        assert list(widths) == sorted(widths) and list(opacities) == sorted(opacities) and max(opacities) < 1
    assert stroke(0.1, 5)[1] > 0.5 > stroke(0.1, 2000)[1]


def test_what_cannot_be_seen_is_escaped():
    assert printable("a\n\tb\x00") == "a\\n\\tb\\x00"
    assert printable(" né") == " né"


def drawn_figure(view: TokenView, monkeypatch: pytest.MonkeyPatch) -> Figure:
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (figures.append(figure), save(figure, *a, **k)))
    view._drawn("png", 40)
    return figures[0]


@pytest.mark.parametrize("tokens", [list("53+21=?"), ["<|begin_of_text|>", " Mary", " gave$", "\n", " x_1"]])
def test_no_label_is_clipped_and_no_two_touch(tokens: list[str], monkeypatch: pytest.MonkeyPatch):
    figure = drawn_figure(three_prompts(tokens), monkeypatch)
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts if text.get_text().strip()]
    width, height = figure.get_size_inches() * figure.dpi
    assert len(boxes) > 40
    for i, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
        for other in boxes[:i]:
            assert not (
                min(box.x1, other.x1) - max(box.x0, other.x0) > 0.3
                and min(box.y1, other.y1) - max(box.y0, other.y0) > 0.3
            )


def test_figure_is_as_wide_as_two_columns(monkeypatch: pytest.MonkeyPatch):
    figure = drawn_figure(small_view(), monkeypatch)
    assert figure.get_size_inches()[0] == pytest.approx(6.75) == WIDTH / 72


def test_pdf_keeps_its_text(tmp_path: Path):
    content = small_view().save(tmp_path / "new" / "figure.pdf").read_bytes()
    assert content.startswith(b"%PDF") and b"/Type3" not in content
    assert re.search(rb"/CIDFontType2|/TrueType", content)


def test_svg_has_the_labels_as_text(tmp_path: Path):
    svg = three_prompts(["5", "<b>", "$x$"]).save(tmp_path / "figure.svg").read_text()
    assert "propagated carry" in svg and "&lt;b&gt;" in svg and "$x$" in svg


def test_png(tmp_path: Path):
    assert small_view().save(tmp_path / "figure.png", dpi=50).read_bytes().startswith(b"\x89PNG")


def test_the_same_input_gives_the_same_bytes(tmp_path: Path):
    first, second = (small_view().save(tmp_path / "figure.svg").read_bytes() for _ in range(2))
    assert first == second  # all formats: test_plot_drawing.py


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(descriptor):
        raise OSError("No space left on device")

    old = small_view().save(tmp_path / "figure.svg").read_bytes()
    monkeypatch.setattr("sparselens.files.whole.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        small_view(title="new").save(tmp_path / "figure.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["figure.svg"]
    assert (tmp_path / "figure.svg").read_bytes() == old


def test_drawing_leaves_matplotlib_as_it_was():
    import matplotlib

    before = dict(matplotlib.rcParams)
    small_view()._drawn("pdf", 50)
    assert dict(matplotlib.rcParams) == before


def test_from_two_models_to_a_figure(tmp_path: Path):
    task = Addition()
    problems = [(53, 21), (47, 25), (57, 68)]
    tokens = torch.tensor([ids(task.prompt(*problem)) for problem in problems])
    model = character_model(ALPHABET, task.length, 2, 2, 8, bidirectional=True)
    model = build_bridge_from_module(model, "GPT2LMHeadModel", hf_config=model.config).eval()
    dense = attention_edges(model, tokens)
    sparse = attention_edges(sl.sparsify(model, gate_bias=0.0), tokens)
    view = token_view(
        dense,
        sparse,
        [list(task.prompt(*problem)) for problem in problems],
        titles=[task.kind(*problem) for problem in problems],
        arrows=[task.carry_arrows(*problem) for problem in problems],
    )
    assert [panel.total for panel in view.layout.panels[:3]] == [2 * 2 * 121] * 3
    assert [panel.total for panel in view.layout.panels[3:]] == sparse.per_layer().sum(1).tolist()
    assert [len(panel.arrows) for panel in view.layout.panels] == [0, 1, 2] * 2
    assert view.save(tmp_path / "figure.pdf").stat().st_size > 10_000
    assert view.save_html(tmp_path / "figure.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": [["a"]]}, "1 tokens and 0 outputs for 2 positions"),
        ({"tokens": []}, "tokens of 0 prompts"),
        ({"tokens": [["a", "b"]] * 2}, "tokens of 2 prompts for edges of 1"),
        ({"titles": ["one", "two"]}, "2 titles for 1 prompts"),
        ({"outputs": [["x"]]}, "1 outputs for 2 positions"),
        ({"arrows": [[(1, 2)]]}, r"arrows \[\(1, 2\)\]: want positions from 0 to 1"),
        ({"other": table([], n_heads=3)}, r"differ in \(prompts, layers, heads, positions\)"),
    ],
)
def test_what_does_not_belong_together_is_refused(change: dict, message: str):
    arguments = {"edges": DENSE, "other": SPARSE, "tokens": [["a", "b"]], **change}
    with pytest.raises(ValueError, match=message):
        token_view(**arguments)


def test_other_formats_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"figure\.jpg.*\.pdf, \.svg or \.png"):
        small_view().save(tmp_path / "figure.jpg")


def test_a_model_without_any_edge(tmp_path: Path):
    view = token_view(table([]), table([]), [["a", "b"]])
    assert view.layout.panels[0].header.text == "dense: 0 edges"
    view.save(tmp_path / "empty.svg")
    view.save_html(tmp_path / "empty.html")


def test_one_model_has_one_row():
    view = token_view(SPARSE, tokens=[["a", "b"]])
    assert [panel.name for panel in view.layout.panels] == ["model"]
    assert token_view(SPARSE, tokens=[["a", "b"]], row_names=["mine"]).layout.panels[0].header.text.startswith("mine: ")
