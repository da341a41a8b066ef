"""Tests of the token page: its data, that no string can break out of it, and, with Chromium, that it works."""

import base64
import json
import re
from html import escape
from pathlib import Path

import numpy as np
import pytest

from sparselens.analyses import AttentionEdges, TokenView, token_view
from sparselens.analyses.figures.page import script_json
from sparselens.analyses.figures.token_layout import COLOURS, stroke
from sparselens.analyses.figures.token_page import page_data
from tests.chromium import browser, needs_chromium, said_in_chromium


def test_a_view_is_one_line():
    view = token_view(table([(0, 0, 0, 1, 0, 0.5)], n_prompts=1, n_pos=2), tokens=[["a", "b"]])
    assert repr(view).startswith("TokenView(") and "1 panel" in repr(view) and len(repr(view)) < 100


def table(rows: list[tuple[int, int, int, int, int, float]], **shape: int) -> AttentionEdges:
    index = np.array([row[:5] for row in rows], dtype=np.int64).reshape(-1, 5)
    weight = np.array([row[5] for row in rows], dtype=np.float32)
    return AttentionEdges(shape["n_prompts"], 4, 4, shape["n_pos"], *index.T, weight)


def demo_view(n_pos: int = 11, **options) -> TokenView:
    """As large as the demo: every edge of four layers of four heads on three prompts, and a few sparse ones."""
    rng = np.random.default_rng(0)
    rows = []
    for prompt in range(3):
        pattern = rng.dirichlet(np.full(n_pos, 0.3), size=(4, 4, n_pos))
        rows += [(prompt, *index, float(weight)) for index, weight in np.ndenumerate(pattern)]
    sparse = [(prompt, 0, 1, 2, 0, 0.9) for prompt in range(3)] + [(2, 1, 0, 2, 1, 0.4)]
    shape = {"n_prompts": 3, "n_pos": n_pos}
    tokens = [list("53+21=?????")[:n_pos], list("47+25=?????")[:n_pos], ["</script>", "&", '"', *"57+68=??"][:n_pos]]
    arrows = [[], [(2, 1)], [(2, 1), (1, 0)]]
    titles = ["no carry", "one carry", "propagated carry"]
    return token_view(table(rows, **shape), table(sparse, **shape), tokens, arrows=arrows, titles=titles, **options)


def data_of(page: str) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def test_the_first_heads_differ_as_greys():
    greys = [np.dot([0.299, 0.587, 0.114], list(bytes.fromhex(light[1:]))) for light, _ in COLOURS[:4]]
    assert np.diff(greys).min() > 20  # of 255


def test_the_demo_page_is_small():
    assert len(demo_view().html.encode()) < 100_000


def test_the_page_asks_for_nothing():
    page = demo_view().html
    assert set(re.findall(r"\w+://[\w./]+", page)) == {"http://www.w3.org/2000/svg"}  # a namespace
    assert "default-src 'none'" in page
    assert not re.search(r"<link|@import|\ssrc=|fetch\(|XMLHttpRequest", page)


def test_curves_and_weights_rebuild_the_table():
    view = demo_view()
    data = data_of(view.html)
    for drawn, panel in zip(data["panels"], view.layout.panels, strict=True):
        rebuilt = set()
        for layer, flat in enumerate(drawn["edges"]):
            for number, weight in zip(flat[::2], flat[1::2], strict=True):
                head, query, key, start, end = data["curves"][number]
                rebuilt.add((layer, head, query, key, weight))
                port = start - data["nodes"][key]
                assert end - data["nodes"][query] == pytest.approx(port, abs=0.02)
        edges = panel.edges
        thousandths = np.rint(1000 * edges.weight).astype(int)
        columns = (edges.layer, edges.head, edges.query_pos, edges.key_pos, thousandths)
        assert rebuilt == {tuple(map(int, row)) for row in zip(*columns, strict=True)}
        assert drawn["strokes"][30] == pytest.approx(stroke(0.3, len(edges)), abs=0.006)


def test_positions_and_heads_named_zero_are_kept():
    data = page_data(demo_view().layout)
    assert [label["position"] for label in data["panels"][0]["labels"]] == list(range(11))
    assert [label.get("head") for label in data["legend"]] == [0, 1, 2, 3, None, None]


@pytest.mark.parametrize("text", ["</script><script>alert(1)</script>", "<!--", "\u2028 & \u2029", "{{data}}", "\\"])
def test_no_string_breaks_out(text: str):
    encoded = script_json([text])
    assert json.loads(encoded) == [text]
    assert not re.search("[<>&\u2028\u2029]", encoded)


def test_a_title_is_text():
    page = demo_view(title="<i>{{data}}</i>").html
    assert "<title>&lt;i&gt;{{data}}&lt;/i&gt;</title>" in page
    assert data_of(page)["rows"] == ["dense", "sparse"]


def test_notebooks_get_a_frame_without_rights_over_a_picture():
    view = demo_view(n_pos=4)
    shown = view._repr_html_()
    assert 'sandbox="allow-scripts allow-downloads"' in shown and "allow-same-origin" not in shown
    assert f'srcdoc="{escape(view.html)}"' in shown
    (picture,) = re.findall(r'src="data:image/png;base64,([^"]+)"', shown)
    assert base64.b64decode(picture).startswith(b"\x89PNG")


def test_show(monkeypatch: pytest.MonkeyPatch):
    display = pytest.importorskip("IPython.display", reason="shows pages in notebooks, which bring IPython")
    shown = []
    monkeypatch.setattr(display, "display", shown.append)
    view = demo_view(n_pos=4)
    view.show()
    assert shown[0].data == view._repr_html_()


USE = """
const said = {};
const sparseEdge = edges.find(edge => edge.panel.row === 1 && edge.panel.column === 2 && edge.layer === 1).element;
highlight(sparseEdge);
said.edge = byId("says").textContent;
said.lit = svg.querySelectorAll(".edge.on").length;
// focus() would need a focused window
svg.querySelectorAll(".token")[1].dispatchEvent(new FocusEvent("focusin", { bubbles: true }));
said.token = byId("says").textContent;
document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
said.afterEscape = svg.querySelectorAll(".on").length;
byId("threshold").value = 50;
byId("threshold").oninput({ target: byId("threshold") });
said.cut = data.panels.map(panel => panel.heading.textContent);
byId("heads").querySelectorAll("button")[0].click();
said.withoutHead = data.panels[5].heading.textContent;
byId("prompt").value = 2;
byId("prompt").oninput({ target: byId("prompt") });
said.tokens = [...data.panels[2].group.querySelectorAll(".token text")].map(text => text.textContent);
said.file = picture().text;
said.hidden = data.panels[0].group.classList.contains("off");
document.documentElement.setAttribute("data-said", encodeURIComponent(JSON.stringify(said)));
"""


@pytest.mark.slow
@needs_chromium
def test_the_page_works_in_a_browser(tmp_path: Path):
    view = demo_view()
    page = tmp_path / "page.html"
    page.write_text(view.html.replace("})();\n</script>", f"{USE}}})();\n</script>"), encoding="utf-8")
    said, complaints = said_in_chromium(page, tmp_path / "profile")
    assert "CONSOLE" not in complaints
    assert said["edge"].startswith('layer 1, head 0: query 2 “"” attends to key 1 “&”. dense: weight 0.')
    assert said["edge"].endswith("sparse: weight 0.400") and said["lit"] == 2
    assert said["token"].startswith("position 1 “3”. dense: 336 edges") and said["token"].endswith("sparse: 0 edges")
    assert said["afterEscape"] == 0
    dense = view.layout.panels[0].edges
    kept = int((np.rint(1000 * dense.weight) >= 250).sum())
    assert said["cut"][0] == f"dense: {kept} of 1,936 edges drawn" and said["cut"][5] == "sparse: 2 edges"
    assert said["withoutHead"] == "sparse: 1 of 2 edges drawn"
    assert said["tokens"][0] == "</script>" and said["hidden"] is True
    assert said["file"].startswith("<svg") and "var(" not in said["file"] and COLOURS[0][0] not in said["file"]


@pytest.mark.slow
@needs_chromium
def test_the_whole_drawing_is_seen_on_any_paper(tmp_path: Path):
    """In a window, in a low frame such as the viewer's, narrow, dark, and printed without the controls."""
    file = demo_view().save_html(tmp_path / "page.html")
    with browser(tmp_path / "profile") as page:
        page.open(file.as_uri())
        for width, height in ((1400, 900), (1400, 700), (700, 900), (360, 700)):
            page.look(width, height, dark=True)
            seen = page.get("document.querySelector('#legend').getBoundingClientRect().toJSON()")
            assert 0 < seen["left"] < seen["right"] <= width and seen["bottom"] <= height, (width, height)
            assert page.get("document.documentElement.scrollWidth") <= width
        paper = "getComputedStyle(document.body).backgroundColor"
        assert page.get(paper) == "rgb(22, 24, 27)"
        page.look(700, 900, dark=True, paper=True)
        assert (
            page.get(paper) == "rgb(255, 255, 255)"
            and page.get("document.querySelector('#controls').offsetHeight") == 0
        )
        assert page.get("document.querySelector('#drawing').clientWidth") > 600 and page.complaints == []
