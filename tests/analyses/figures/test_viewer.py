"""Tests of the circuit viewer: its data, that no string breaks out of the page, that its thresholds match the scores.

Where Chromium is at hand the page is used as a person would, with the network off, on light and on dark paper.
"""

import base64
import json
import re
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import torch

from sparselens import Circuit
from sparselens.analyses import AttentionEdges, EdgeScores, Viewer, circuit_viewer
from sparselens.analyses.figures.circuit_layout import edge_stroke, skeleton
from sparselens.analyses.figures.palette import NEGATIVE
from sparselens.analyses.figures.plot import Plot, Series
from sparselens.analyses.figures.viewer_edges import ranked_edges
from sparselens.analyses.figures.viewer_patterns import packed
from sparselens.circuits.graph import Graph
from tests.chromium import CHROMIUM as CHROMIUM
from tests.chromium import browser, needs_chromium, said_in_chromium

HOSTILE = ["</script><script>alert(1)</script>", "<!--", "\u2028 & \u2029", "{{data}}", "\\", "'\"><img src=x>"]


def scores_of(n_layers: int, n_heads: int, seed: int, power: int = 3, digits: int | None = None) -> EdgeScores:
    """Random scores; rounding them gives ties and zeros."""
    graph = Graph.of_shape(n_layers, n_heads)
    values = 0.1 * torch.randn(graph.exists.shape, generator=torch.Generator().manual_seed(seed)) ** power
    values = (values if digits is None else values.round(decimals=digits)) * graph.exists
    return EdgeScores(graph, "eap", values, None, torch.ones(1), torch.zeros(1))


def attention_of(shape: tuple[int, int, int, int], kept: float, seed: int = 0) -> AttentionEdges:
    """Causal patterns of shape (prompts, layers, heads, positions) that have a share of the edges."""
    rng = np.random.default_rng(seed)
    weight = rng.dirichlet(np.full(shape[-1], 0.3), size=shape).astype(np.float32)
    index = np.nonzero(np.tril(rng.random((*shape, shape[-1])) < kept))
    return AttentionEdges(*shape, *index, weight[index])


def demo_viewer(n_layers: int = 4, n_heads: int = 4, n_pos: int = 9, n_prompts: int = 2, **options: Any) -> Viewer:
    shape = (n_prompts, n_layers, n_heads, n_pos)
    tokens = [[*HOSTILE, "a", "b", "c", "d", "e", "f", "g", "h", "i"][:n_pos]] * n_prompts
    low, high, labels = (0.1, 0.8, 1.0), (0.3, 1.0, 1.0), ("k = 1", "k = 10", "k = 100")
    series = Series("dense", "dense", (1.0, 10.0, 100.0), (0.2, 0.9, 1.0), low=low, high=high, labels=labels)
    plot = Plot("edges", "Edges needed", "edges", "share", (series,), log_x=True, percent_y=True, guides=(0.9,))
    given = {
        "attention": (attention_of(shape, 1.0), attention_of(shape, 0.1, seed=1)),
        "tokens": tokens,
        "titles": HOSTILE[:n_prompts],
        "labels": ({"a0.h1": "previous token 0.93"}, {"a0.h1": HOSTILE[0]}),
        "plots": [plot],
        **options,
    }
    return circuit_viewer(scores_of(n_layers, n_heads, 0, digits=3), scores_of(n_layers, n_heads, 1, 5), **given)


def data_of(page: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


@pytest.mark.parametrize("digits", [1, 3, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_ranking_is_that_of_the_circuits(digits: int | None, dtype: torch.dtype):
    scores = scores_of(3, 3, 0, digits=digits)
    scores = EdgeScores(scores.graph, "eap", scores.mean.to(dtype), None, scores.clean, scores.corrupted)
    ranked = ranked_edges(scores, 10**6)
    assert len(ranked) == int((scores.mean != 0).sum()) and ranked.n_edges == scores.graph.n_edges
    for n in (0, 1, 7, 50, len(ranked)):
        kept = torch.zeros_like(scores.exists)
        kept[ranked.source[:n], ranked.destination[:n]] = True
        assert kept.equal(scores.top(n).kept)
    assert ranked.score.astype(float).tolist() == scores.mean[ranked.source, ranked.destination].tolist()
    reached = np.cumsum(np.abs(ranked.score.astype(float)))  # summed one by one, as the page does
    for share in (0.1, 0.5, 0.9, 0.999, 1.0):
        n = int((reached < share * ranked.total * (1 - 1e-12)).sum()) + 1
        assert n == len(scores.smallest(share))


def test_no_edge_without_a_score_is_drawn_in_the_picture_either():
    scores = scores_of(3, 3, 0, digits=1)
    scored = int((scores.mean != 0).sum())
    asked = {"edges": scores.graph.n_edges}, {"faithful": [(scores.graph.n_edges, 1.0)]}
    for one in asked:
        viewer = circuit_viewer(scores, ablation="mean", **one)
        assert len(viewer.circuits[0]) <= scored < scores.graph.n_edges
        assert not (viewer.circuits[0].kept & (scores.mean == 0)).any()


def test_the_largest_edges_are_embedded():
    scores = scores_of(3, 3, 0)
    ranked = ranked_edges(scores, 10)
    assert len(ranked) == 10 and ranked.n_edges == scores.graph.n_edges
    assert ranked.total == pytest.approx(float(scores.mean.abs().double().sum()), rel=1e-12)


def test_patterns_come_back_from_their_bytes():
    edges = attention_of((1, 3, 4, 30), 0.02)
    both = packed(edges, lossy=False)
    gaps, weights = (np.frombuffer(base64.b64decode(both[name]), dtype=np.uint8).astype(int) for name in both)
    cells = (np.cumsum(gaps) - 1)[gaps < 255]
    layer, head, query, key = np.unravel_index(cells, (3, 4, 30, 30))
    assert [*zip(layer, head, query, key, strict=True)] == [
        *zip(edges.layer, edges.head, edges.query_pos, edges.key_pos, strict=True)
    ]
    np.testing.assert_allclose(weights / 255, edges.weight, atol=0.5001 / 255)
    assert (gaps == 255).any()


def test_only_a_dense_model_loses_faint_edges():
    edges = AttentionEdges(1, 1, 1, 2, *np.zeros((4, 2), int), np.array([0, 1]), np.array([0.001, 0.9], np.float32))
    lengths = [len(base64.b64decode(packed(edges, lossy)["weights"])) for lossy in (True, False)]
    assert lengths == [1, 2]


def test_a_page_of_gpt2_small_is_small():
    tokens = [[f"token{i}" for i in range(15)]]
    viewer = demo_viewer(12, 12, n_pos=15, n_prompts=1, tokens=tokens, titles=None)
    data = data_of(viewer.html)
    assert [len(base64.b64decode(model["score"])) // 4 for model in data["models"]] == [3000, 3000]
    assert [model["edges"] for model in data["models"]] == [32491, 32491]
    assert len(viewer.html.encode()) < 400_000


def test_the_page_asks_for_nothing():
    page = demo_viewer().html
    assert set(re.findall(r"\w+://[\w./]+", page)) == {"http://www.w3.org/2000/svg"}  # a namespace
    assert "default-src 'none'" in page and "{{" not in re.sub(r"\{\{data\}\}", "", page)
    assert not re.search(r"<link|@import|fetch\(|XMLHttpRequest|innerHTML|eval\(", page)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_string_breaks_out(text: str):
    viewer = demo_viewer(names=(text, text), title=text, labels=({"m0": text}, {}), tokens=[[text] * 9] * 2)
    assert f"<title>{escape(text)}</title>" in viewer.html
    assert data_of(viewer.html)["models"][0]["labels"] == {"m0": text}
    assert viewer.html.count("<script") == 2 and "alert(1)</script>" not in viewer.html


def test_tabs_without_data_are_left_out():
    scores = scores_of(2, 2, 0)
    assert not {"patterns", "tokens"} & data_of(circuit_viewer(scores, scores).html).keys()
    attention = (attention_of((1, 2, 2, 3), 1), attention_of((1, 2, 2, 3), 1))
    data = data_of(circuit_viewer(scores, scores, attention=attention).html)
    assert "tokens" not in data and data["patterns"]["tokens"] == [["0", "1", "2"]]


def test_one_model_needs_no_second():
    scores, shape = scores_of(2, 2, 0), (1, 2, 2, 3)
    viewer = circuit_viewer(
        scores, attention=attention_of(shape, 0.2), labels={"m0": "copies"}, tokens=[["a", "b", "c"]]
    )
    data = data_of(viewer.html)
    assert [model["name"] for model in data["models"]] == ["model"] and [*data["legends"]] == ["circuit"]
    assert data["patterns"]["lossy"] == [False] and len(viewer.layout().panels) == 1
    assert data_of(circuit_viewer(scores, attention=attention_of(shape, 1.0)).html)["patterns"]["lossy"] == [True]
    with pytest.raises(ValueError, match="a difference needs two circuits: give circuit_viewer the scores of a second"):
        viewer.layout("difference", 3.25)
    with pytest.raises(ValueError, match="attention edges of 2 models for scores of 1"):
        circuit_viewer(scores, attention=(attention_of(shape, 0.2),) * 2)


def test_a_viewer_may_begin_with_so_many_edges():
    viewer = circuit_viewer(scores_of(2, 2, 0), edges=3)
    assert data_of(viewer.html)["begin"] == 3 and len(viewer.circuits[0]) <= 3


@needs_chromium
def test_a_page_of_one_model_works(tmp_path: Path):
    attention, tokens = attention_of((2, 2, 2, 3), 0.3), [["a", "b", "c"], ["d", "e", "f"]]
    viewer = circuit_viewer(scores_of(2, 2, 0), edges=3, names=["mine"], attention=attention, tokens=tokens)
    with browser(tmp_path) as page:
        page.open(viewer.save_html(tmp_path / "page.html").as_uri())
        assert page.get("[...document.querySelectorAll('#tabs button')].map(b => b.textContent).join()") == (
            "Circuit,Tokens,Patterns"
        )
        assert page.get("document.querySelector('#circuit h2').textContent").startswith(
            f"mine: {len(viewer.circuits[0])} of "
        )
        for tab in ("patterns", "tokens", "circuit"):
            page.click(f"#tab-{tab}")
        page.click("#circuit .node:nth-of-type(3)")
        assert not page.complaints


@needs_chromium
def test_where_fewer_edges_are_drawn_than_wanted_the_others_score_zero(tmp_path: Path):
    scores = scores_of(2, 2, 0, digits=0)
    viewer = circuit_viewer(scores, edges=scores.graph.n_edges)
    assert (scores.mean[scores.exists] == 0).any()
    with browser(tmp_path) as page:
        page.open(viewer.save_html(tmp_path / "page.html").as_uri())
        assert page.get("document.querySelector('#circuit .note').textContent").endswith("all other edges score zero")


def test_notebooks_get_a_frame_without_rights_over_a_picture():
    viewer = demo_viewer(2, 2)
    shown = viewer._repr_html_()
    assert 'sandbox="allow-scripts allow-downloads"' in shown and "allow-same-origin" not in shown
    assert f'srcdoc="{escape(viewer.html)}"' in shown
    (picture,) = re.findall(r'<img [^>]*src="data:image/png;base64,([^"]+)"', shown)
    assert base64.b64decode(picture).startswith(b"\x89PNG") and shown.index("<img") < shown.index("<iframe")


def test_show(monkeypatch: pytest.MonkeyPatch):
    display = pytest.importorskip("IPython.display", reason="shows pages in notebooks, which bring IPython")
    shown = []
    monkeypatch.setattr(display, "display", shown.append)
    viewer = demo_viewer(2, 2)
    viewer.show()
    assert shown[0].data == viewer._repr_html_()


def test_files(tmp_path: Path):
    viewer = demo_viewer(2, 2)
    assert viewer.save(tmp_path / "circuit.pdf").read_bytes().startswith(b"%PDF")
    assert "only in dense" in viewer.save(tmp_path / "new" / "difference.svg", view="difference").read_text()
    assert viewer.save(tmp_path / "narrow.png", width=3.25, dpi=50).read_bytes().startswith(b"\x89PNG")
    assert viewer.save_html(tmp_path / "page.html").read_text() == viewer.html


def test_models_without_any_score(tmp_path: Path):
    graph = Graph.of_shape(2, 2)
    scores = EdgeScores(graph, "eap", torch.zeros(graph.exists.shape), None, torch.ones(1), torch.zeros(1))
    viewer = circuit_viewer(scores, scores)
    assert viewer.layout().panels[0].header.text == f"dense: 0 of {scores.graph.n_edges} edges, 0.0 % of |score|"
    viewer.save(tmp_path / "empty.svg")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 0.0}, "share must be above 0"),
        ({"max_edges": 0}, "max_edges must be at least 1, not 0"),
        ({"labels": ({"a9.h9": "far"}, {})}, "label for 'a9.h9': no such node"),
        ({"tokens": [["a"]]}, "tokens of 1 prompts: want 2 prompts of 9 tokens each"),
        ({"titles": ["one"]}, "1 titles for 2 prompts"),
        (
            {"attention": (attention_of((1, 3, 3, 4), 1),) * 2},
            "attention edges have 3 layers of 3 heads, but the scores have 2 layers of 2 heads",
        ),
        ({"attention": (attention_of((1, 2, 2, 4), 1), attention_of((1, 2, 2, 5), 1))}, "attention edges differ"),
        ({"pruned": [None]}, "pruned circuits of 1 models for scores of 2"),
        (
            {"pruned": [None, (scores_of(2, 3, 0).top(1), 0.9)]},
            "the pruned circuit has 2 layers of 3 heads, but",
        ),
    ],
)
def test_what_does_not_belong_together_is_refused(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        demo_viewer(2, 2, **change)


def test_other_models_views_and_formats_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="the models differ: 2 layers of 2 heads and 2 layers of 3 heads"):
        circuit_viewer(scores_of(2, 2, 0), scores_of(2, 3, 0))
    viewer = demo_viewer(2, 2)
    with pytest.raises(ValueError, match=r"figure\.jpg.*\.pdf, \.svg or \.png"):
        viewer.save(tmp_path / "figure.jpg")
    with pytest.raises(ValueError, match=r"of 5\.0 inches: want"):
        viewer.save(tmp_path / "figure.png", width=5.0)


# -- in a browser

WAIT = """
const leave = value => {
  document.documentElement.setAttribute("data-said", encodeURIComponent(JSON.stringify(value)));
};
async function until(done) {  // the page's clock runs ahead of other threads: give them time
  for (let i = 0; i < 2000 && !done(); i++) {
    for (let j = 0, x = 0; j < 1e6; j++) x += Math.sqrt(j);
    await new Promise(next => setTimeout(next, 20));
  }
}
"""

USE = """
const said = {}, heads = () => panels.map(panel => panel.heading.textContent), seen = () => panels[0].edges.length;
const press = (element, key) =>
  element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
const set = (id, value, kind = "input") => { byId(id).value = value; byId(id).dispatchEvent(new Event(kind)); };
function mouse(panel, kind, x, y) {
  const box = panel.svg.getBoundingClientRect(), scale = box.width / data.panel;
  const place = { clientX: box.left + x * scale, clientY: box.top + (y - data.top) * scale };
  panel.svg.dispatchEvent(new PointerEvent(kind, { ...place, bubbles: true }));
}
const files = [];
const told = (file, type, text) => [file, type, text.slice(0, 9), text.includes("var(")];
offer = (blob, file) => blob.text().then(text => files.push(told(file, blob.type, text)));
const pixels = ({ canvas }) => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
async function use() {
  said.tabs = [...byId("tabs").children].map(tab => tab.textContent);
  said.first = heads();
  said.paper = getComputedStyle(document.body).backgroundColor;
  said.ink = asText(graphSvg("circuit")).includes(NEGATIVE);
  said.painted = panels.slice(0, 2).map(panel => pixels(panel).some(value => value));
  said.cuts = SHARES.map(share => { state.share = share; return models.map(cut); });
  state.mode = "top";
  said.tops = TOPS.map(n => { state.top = n; return models.map(cut); });
  Object.assign(state, START); refresh();
  said.json = circuitsJson().circuits.dense;
  said.paths = models[0].list.slice(0, 300).map(curve);
  state.dead = true; refresh();
  said.withDeadEnds = models.map(model => signed(model).length);
  state.dead = false; refresh();
  said.strokes = stroke(0.25, 100);

  const node = nodeOf.get("a0.h1");
  mouse(panels[0], "pointermove", node.x, node.y);
  said.hover = byId("card").innerText;
  said.lit = panels.slice(0, 2).map(panel => panel.stage.classList.contains("lit") && panel.light.children.length);
  const edge = panels[0].edges[0], at = curve(edge);
  const middle = i => (at[i] + 3 * at[i + 2] + 3 * at[i + 4] + at[i + 6]) / 8;
  mouse(panels[0], "pointermove", middle(0), middle(1));
  said.edge = [nameOf(shown), byId("card").querySelector("h2").textContent, panels[0].light.children.length];
  mouse(panels[0], "pointerleave", 0, 0);
  said.left = panels[0].stage.classList.contains("lit");

  mouse(panels[0], "click", node.x, node.y);
  said.chosen = [state.chosen, seen(), location.hash, byId("address").value];
  press(document.body, "Escape");
  said.dropped = [state.chosen, heads()[0]];

  panels[0].boxes[0].focus();
  press(document.activeElement, "ArrowUp");
  said.up = document.activeElement.getAttribute("aria-label");
  press(document.activeElement, "ArrowRight");
  said.right = document.activeElement.getAttribute("aria-label");
  press(document.activeElement, "Enter");
  said.entered = state.chosen;
  press(document.activeElement, "Escape");
  said.reachable = panels.map(panel => panel.boxes.filter(box => box.tabIndex === 0).length);

  set("slider", 600); await until(() => byId("number").value === "60");
  said.slid = [byId("number").value, seen()];
  byId("number").focus();
  set("number", 500);
  said.refused = [byId("number").validity.valid, seen(), state.share];
  byId("number").dispatchEvent(new Event("change"));
  said.restored = byId("number").value;
  byId("number").blur();
  set("mode", "top"); set("number", SEVEN);
  said.seven = heads().slice(0, 2);
  set("sign", "negative");
  said.negative = seen();
  set("sign", "both");
  byId("hide").click();
  said.hidden = panels[0].boxes.filter(box => box.style.display === "none").length;
  byId("hide").click();
  set("mode", "score"); set("number", 0.05);
  said.atLeast = panels.slice(0, 2).map(panel => panel.edges.length);
  const kept = byId("address").value;
  set("address", "", "change"); said.reset = heads();
  set("address", kept, "change"); said.again = stateText() === kept && panels[0].edges.length === said.atLeast[0];
  set("address", "mode=evil&share=x&chosen=nobody&sign=__proto__&prompt=99&tab=none", "change"); said.evil = heads();

  for (const id of ["svg", "json"]) byId(id).click();
  byId("png").click();
  byId("tab-circuit").focus(); press(document.activeElement, "ArrowRight");
  said.difference = [state.tab, document.activeElement.id, panels[2].heading.textContent];
  const dashed = edge => data.styles.difference[edge.style][1].length > 0;
  said.stylesOfKinds = panels[2].edges.every(edge => dashed(edge) === edge.score < 0);
  state.chosen = "m1"; refresh();
  const onPaths = models.flatMap(model => alongPaths(signed(model)).map(edge => edge.code));
  said.pathsOfEach = panels[2].edges.every(edge => onPaths.includes(edge.code)) && panels[2].edges.length;
  said.pathsUnited = new Set(onPaths).size;
  state.chosen = "";
  byId("tab-tokens").click();
  said.tokens = byId("tokens").firstChild.getAttribute("sandbox");
  byId("tab-patterns").click();
  document.querySelector(".grid [data-place='0 0']").focus();
  for (const key of ["ArrowUp", "ArrowRight"]) press(document.activeElement, key);
  said.pointed = document.querySelector(".large figcaption").textContent;
  document.activeElement.click();
  said.keeps = document.activeElement.getAttribute("aria-label");
  said.large = [state.head, ...[...document.querySelectorAll(".large figcaption")].map(caption => caption.textContent)];
  said.labels = [...document.querySelectorAll(".large .word")].slice(0, 2).map(text => text.textContent);
  said.cells = [0, 1].map(model => attentionOf(model).reduce((sum, cells) => sum + cells.length, 0));
  const square = document.querySelector(".large rect[fill-opacity]");
  square.dispatchEvent(new PointerEvent("pointerenter"));
  said.weight = byId("weight").textContent;
  const boxOf = element => element.getBoundingClientRect();
  said.besides = boxOf(document.querySelector(".large")).left >= boxOf(document.querySelector(".grids")).right;
const tops = ["3 0", "0 0"].map(place => boxOf(document.querySelector(`.grid [data-place='${place}']`)).top);
  said.upward = tops[0] < tops[1];
  byId("svg").click();
  byId("tab-curves").click();
  said.curves = document.querySelectorAll(".plots figure > svg path").length;
  said.ticks = [0.0001, 0.0005, 0.25, 1].map(value => tickText(value, true));
  said.plainTicks = [0, 0.3, 12345, 2e-7].map(value => tickText(value, false));
  const plot = document.querySelector(".plots svg").getBoundingClientRect();
  const reaches = ({ left, right }) => left < plot.left || right > plot.right;
  const written = [...document.querySelectorAll(".plots text")];
  said.clipped = written.filter(text => reaches(text.getBoundingClientRect())).map(text => text.textContent);
  const onAxis = document.querySelector(".plots circle").getAttribute("cx") - BOX.left;
  said.beside = onAxis > 5 && onAxis < 20;
  byId("svg").click();
  await until(() => files.length === 5);
  said.files = files;
  said.requests = performance.getEntriesByType("resource").map(({ name }) => name.slice(0, 20));
}
use().catch(error => { said.error = String(error.stack); }).finally(() => leave(said));
"""
SHARES, TOPS = [0.001, 0.1, 0.25, 0.5, 0.9, 0.905, 0.99, 0.999, 1.0], [0, 1, 5, 100, 10**6]
SEVEN = 40  # a number of largest edges; some are dead ends


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_works_in_a_browser(tmp_path: Path, dark: bool):
    viewer = demo_viewer()
    dense, sparse = scores_of(4, 4, 0, digits=3), scores_of(4, 4, 1, 5)
    given = f"const SHARES = {SHARES}, TOPS = {TOPS}, SEVEN = {SEVEN}, "
    given += f"NEGATIVE = '{NEGATIVE.dark if dark else NEGATIVE.light}';"
    said, complaints = use_in_chromium(viewer.html, WAIT + given + USE, tmp_path, dark)
    assert "error" not in said and "CONSOLE" not in complaints and said["requests"] == []
    assert said["tabs"] == ["Circuit", "Difference", "Tokens", "Patterns", "Curves"]
    assert said["first"][:2] == [panel.header.text for panel in viewer.layout().panels]
    assert said["paper"] == ("rgb(22, 24, 27)" if dark else "rgb(255, 255, 255)") and said["ink"]
    assert said["painted"] == [True, True]

    n_edges = dense.graph.n_edges
    assert said["cuts"] == [[len(dense.smallest(share)), len(sparse.smallest(share))] for share in SHARES]
    scored = [int((scores.mean != 0).sum()) for scores in (dense, sparse)]  # edges of score 0 are not drawn
    assert min(scored) < n_edges and said["tops"] == [[min(n, most) for most in scored] for n in TOPS]
    (tmp_path / "dense.json").write_text(json.dumps(said["json"]), encoding="utf-8")
    loaded = Circuit.load(tmp_path / "dense.json")
    assert loaded.kept.equal(dense.smallest(0.9).pruned().kept) and loaded.scores.equal(dense.mean)
    ranked = ranked_edges(dense, 300)
    expected = skeleton(dense.graph).paths(ranked.source, ranked.destination)
    np.testing.assert_allclose(np.reshape(said["paths"], (300, 8, 2)), expected, atol=0.03)
    assert said["withDeadEnds"] == [len(scores.smallest(0.9)) for scores in (dense, sparse)]
    np.testing.assert_allclose(said["strokes"], edge_stroke(0.25, 100))

    assert "a0.h1\npin\nhead 1 of layer 0\ndense: previous token 0.93\nsparse: </script>" in said["hover"]
    assert said["hover"].count(" edges") == 2 and said["lit"][0] > 0
    assert said["edge"][0] == said["edge"][1] and "->" in said["edge"][0] and said["edge"][2] == 1
    assert said["left"] is False
    n_chosen = said["chosen"][1]
    assert said["chosen"] == ["a0.h1", n_chosen, "#chosen=a0.h1", "chosen=a0.h1"]
    assert 0 < n_chosen < len(dense.smallest(0.9).pruned())
    assert said["dropped"] == ["", said["first"][0]]
    assert said["up"].startswith("a0.h") and said["right"] == f"a0.h{int(said['up'][-1]) + 1}" == said["entered"]
    assert said["reachable"] == [1, 1]

    slid = len(dense.smallest(0.6).pruned())
    assert said["slid"] == ["60", slid] and slid > 0
    assert said["refused"] == [False, slid, 0.6] and said["restored"] == "60"  # 500 %
    top = dense.top(SEVEN).pruned()
    assert said["seven"][0] == f"dense: {len(top)} of {n_edges} edges, {100 * top.score_share:.1f} % of |score|"
    assert said["negative"] == int((top.scores[top.kept] < 0).sum())
    used = {name.split("<")[0] for edge in top.edges for name in edge.split("->")}
    assert said["hidden"] == len(skeleton(dense.graph).nodes) - len(used)
    at_least = [int((scores.mean.abs().double() >= 0.05).sum()) for scores in (dense, sparse)]
    assert said["atLeast"] == [len(scores.top(n).pruned()) for scores, n in zip((dense, sparse), at_least, strict=True)]
    assert said["reset"] == said["first"] == said["evil"] and said["again"]

    assert said["difference"][:2] == ["difference", "tab-difference"]
    one, two = (scores.smallest(0.9).pruned().kept for scores in (dense, sparse))
    counts = [int((one & ~two).sum()), int((two & ~one).sum()), int((one & two).sum())]
    assert [int(n) for n in re.findall(r": (\d+)", said["difference"][2])] == counts
    assert said["pathsOfEach"] == said["pathsUnited"] > 0
    assert said["tokens"] == "allow-scripts allow-downloads"
    assert said["pointed"].startswith("dense a1.h1: ") and said["keeps"] == "a1.h1"
    assert said["large"][0] == "a1.h1" and said["large"][1].startswith("dense a1.h1: ")
    assert said["labels"] == [HOSTILE[0][:15] + "…"] * 2
    assert re.match(r"dense: “.*” \(0\) attends to “.*” \(0\) with weight 0\.\d{3}$", said["weight"])
    assert said["besides"] and said["upward"] and said["stylesOfKinds"]
    sparse_edges = attention_of((2, 4, 4, 9), 0.1, seed=1).of_prompt(1)  # from prompt 99, clamped
    assert said["cells"][1] == len(sparse_edges) < said["cells"][0] and said["curves"] > 3
    assert said["ticks"] == ["0.01 %", "0.05 %", "25 %", "100 %"]
    assert said["plainTicks"] == ["0", "0.3", "12,345", "2e-7"]
    assert said["clipped"] == [] and said["beside"]
    kinds = {(file, kind, start) for file, kind, start, _ in said["files"] if file.endswith("svg")}
    assert kinds == {(f"{tab}.svg", "image/svg+xml", "<svg xmln") for tab in ("circuit", "patterns", "curves")}
    assert {file for file, *_ in said["files"]} == {*(file for file, *_ in kinds), "circuit.json", "circuit.png"}
    assert not any(variable for *_, variable in said["files"])


NAMES = "[...document.querySelectorAll('#circuit .panel:first-child .node.{}')].map(node => node.ariaLabel).join()"
STATE = "Object.fromEntries(new URLSearchParams(location.hash.slice(1)))"


@pytest.mark.slow
@needs_chromium
def test_the_page_begins_with_the_faithful_circuits_and_is_used_by_keyboard_alone(tmp_path: Path):
    dense = scores_of(4, 4, 0, digits=3)
    viewer = demo_viewer(faithful=[(60, 0.8123), None])
    with browser(tmp_path) as page:
        page.look(1400)
        page.open(viewer.save_html(tmp_path / "page.html").as_uri())
        cut = dense.top(60).pruned()
        heads = page.get("[...document.querySelectorAll('#circuit h2')].map(h => h.textContent)")
        assert heads == [panel.header.text for panel in viewer.layout().panels]
        assert heads[0].startswith(f"dense: {len(cut)} of 479 edges") and len(cut) < 60
        notes = page.get("[...document.querySelectorAll('#circuit .panel .note')].map(note => note.textContent)")
        ends = 60 - len(cut)
        assert notes[0] == f"faithfulness 81.2 %; {ends} dead end{'s' * (ends > 1)} hidden"
        assert notes[1].startswith("no faithful circuit was found for this model; shown instead: 90.0 % of |score|")
        assert page.get("getComputedStyle(document.getElementById('slider')).display") == "none"

        page.get("document.getElementById('find').focus()")
        page.type("previous TOKEN")  # a label
        page.wait("document.getElementById('matches').textContent === '1 found'")
        assert page.get(NAMES.format("found")) == "a0.h1"
        page.press("Enter")  # submits no form, but focuses the node
        assert page.get("document.activeElement.ariaLabel") == "a0.h1"
        page.press("p")
        for key in ("ArrowUp", "p"):
            page.press(key)
        pinned = page.get(NAMES.format("pinned")).split(",")
        assert len(pinned) == 2 and pinned[0] == "a0.h1"
        page.get("document.querySelector('#pins input[placeholder=note]').focus()")
        page.type(HOSTILE[0])
        page.get("document.querySelector('#pins input[placeholder=group]').focus()")
        page.type("carry")
        page.press("Enter")
        page.wait("document.querySelector('#pins h3')")
        assert page.get("document.querySelector('#circuit .word').textContent").startswith("carry: </script>")
        kept = json.loads(page.get(STATE)["pins"])
        assert kept["a0.h1"] == {"note": HOSTILE[0], "group": "carry"} and set(kept) == set(pinned)

        page.get("document.querySelector('#circuit .node[tabindex=\"0\"]').focus()")
        page.press("+")
        assert page.get(STATE)["zoom"] == "1.5"
        boxes = page.get("[...document.querySelectorAll('#circuit svg[role]')].map(svg => svg.getAttribute('viewBox'))")
        assert boxes[0] == boxes[1] and float(boxes[0].split(",")[2]) == pytest.approx(156)
        page.press("0")
        assert "zoom" not in page.get(STATE)
        address = page.get("location.href")
        page.open("data:text/html,elsewhere")
        page.open(address)
        assert page.get(NAMES.format("pinned")).split(",") == pinned
        assert page.get("document.querySelector('#pins input[placeholder=group]').value") in ("", "carry")
        assert (
            page.get("location.href") == address
            and page.complaints == []
            and page.requests == [request for request in page.requests if request.startswith(("file:", "data:"))]
        )


def test_a_pruned_circuit_has_its_own_scores_where_the_viewer_has_none():
    scores = scores_of(2, 2, 0)
    known = scores.top(5)
    few = replace(scores, mean=scores.mean.masked_fill(~known.kept & scores.exists, torch.nan), total=9.0)
    weak = next(edge for edge in scores.top(8).edges if edge not in known)
    circuit = Circuit(scores.graph, [known.edges[0], weak], scores.mean * 2)
    (shown,) = circuit_viewer(few, pruned=[(circuit, float("nan"))], ablation="mean").circuits
    assert shown[known.edges[0]] == scores[known.edges[0]] and shown[weak] == 2 * scores[weak]
    (model,) = data_of(circuit_viewer(few, pruned=[(circuit, float("nan"))]).html)["models"]
    assert model["pruned"]["mean"] is None and len(base64.b64decode(model["pruned"]["score"])) == 2 * 4


@pytest.mark.slow
@needs_chromium
def test_the_page_begins_with_the_pruned_circuits(tmp_path: Path):
    dense = scores_of(4, 4, 0, digits=3)
    weakest = dense.top(300) - dense.top(260).edges
    pruned = replace(dense.top(60), kept=dense.top(60).kept | weakest.kept)
    viewer = demo_viewer(pruned=[(pruned, 0.7123), None], faithful=[(50, 0.9), (7, 0.8)], max_edges=100)
    shown = set(pruned.pruned().edges)
    beyond = shown - set(dense.top(100).edges)
    assert beyond and shown - beyond and set(viewer.circuits[0].edges) == shown
    with browser(tmp_path) as page:
        page.open(viewer.save_html(tmp_path / "page.html").as_uri())
        heads = page.get("[...document.querySelectorAll('#circuit h2')].map(h => h.textContent)")
        assert heads == [panel.header.text for panel in viewer.layout().panels]
        notes = page.get("[...document.querySelectorAll('#circuit .panel .note')].map(note => note.textContent)")
        assert notes[0].startswith("faithfulness 71.2 % on held-out prompts; ")
        assert notes[1].startswith("faithfulness 80.0 %")
        weak = next(edge for edge in viewer.circuits[0].edges if edge in beyond)
        page.get(f"location.hash = 'chosen={quote(weak)}'")
        page.wait(f"document.querySelector('#card h2').textContent === {json.dumps(weak)}")
        (said, *_) = page.get("[...document.querySelectorAll('#card h3 + div')].map(line => line.textContent)")
        assert "not among the 100 largest" in said and not said.endswith("not shown")
        page.get("location.hash = 'tab=difference'")
        page.wait("document.querySelectorAll('#difference h2').length === 1")
        assert page.get("document.querySelector('#difference h2').textContent").endswith(" edges")
        page.get("location.hash = 'mode=faithful'")
        first = f"dense: {len(dense.top(50).pruned())} of "
        page.wait(f"document.querySelector('#circuit h2').textContent.startsWith({json.dumps(first)})")
        assert page.complaints == []


@pytest.mark.slow
@needs_chromium
def test_hostile_pins_in_the_address_are_dropped(tmp_path: Path):
    told = json.dumps({"a9.h9": {}, "__proto__": {"note": "x"}, "m0": {"note": 5, "group": None}, "logits->input": {}})
    with browser(tmp_path) as page:
        page.open(demo_viewer().save_html(tmp_path / "page.html").as_uri() + f"#zoom=1e9&x=-5&pins={quote(told)}")
        assert json.loads(page.get(STATE)["pins"]) == {"m0": {"note": "5", "group": ""}}
        assert page.get(STATE)["zoom"] == "8" and page.complaints == []
        page.open(page.get("location.href.split('#')[0]") + "#pins={broken")
        page.wait("!location.hash.includes('pins')")


@pytest.mark.slow
@needs_chromium
def test_paper_shows_the_drawing(tmp_path: Path):
    with browser(tmp_path) as page:
        page.open(demo_viewer().save_html(tmp_path / "page.html").as_uri())
        page.get("window.dispatchEvent(new Event('beforeprint'))")
        page.look(700, dark=True, paper=True)
        assert page.get("document.querySelectorAll('#paper svg path').length") > 50
        assert page.get("document.querySelector('#paper svg').getBoundingClientRect().width") > 600
        assert page.get("document.getElementById('controls').offsetHeight") == 0
        assert page.get("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


IN_FRAME = """
setTimeout(() => {
  byId("tab-tokens").click();
  byId("copy").click();
  state.chosen = "a0.h1"; state.tab = "circuit"; refresh();
  parent.postMessage({ drawn: panels[0].edges.length, address: byId("address").value }, "*");
}, 100);
"""
RECEIVE = """
let heard = null;
addEventListener("message", event => { heard = event.data; });
until(() => heard).then(() => leave(heard));
"""


@pytest.mark.slow
@needs_chromium
def test_the_page_works_in_a_notebooks_frame(tmp_path: Path):
    viewer = demo_viewer()
    inside = escape(with_more(viewer.html, IN_FRAME))
    shown = re.sub(r'srcdoc="[^"]*"', lambda _: f'srcdoc="{inside}"', viewer._repr_html_())
    said, complaints = use_in_chromium(
        f"<script>{WAIT}{RECEIVE}</script><body>{shown}</body>", "", tmp_path, dark=False
    )
    assert "CONSOLE" not in complaints
    assert said["address"] == "chosen=a0.h1" and said["drawn"] > 0


def with_more(page: str, script: str) -> str:
    """The page with code appended inside its script, since its names cannot be reached from outside."""
    return page.replace("})();\n</script>\n</body>", f"{script}}})();\n</script>\n</body>")


def use_in_chromium(page: str, script: str, folder: Path, dark: bool) -> tuple[dict[str, Any], str]:
    path = folder / "page.html"
    path.write_text(with_more(page, script), encoding="utf-8")
    looks = (f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--window-size=1200,900")
    return said_in_chromium(path, folder / "profile", *looks, "--virtual-time-budget=60000")
