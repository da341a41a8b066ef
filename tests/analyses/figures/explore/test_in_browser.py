"""Tests of the page in use: typing, clicking, keyboard, narrow windows, dark mode, print, offline."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sparselens import analyses
from sparselens.analyses.figures.explore.page import script
from sparselens.analyses.figures.explore.server import Server
from tests.chromium import Page, needs_chromium

pytestmark = [pytest.mark.slow, needs_chromium]

PROMPT = "Lily saw a big dog. She was"
HOSTILE = "<img src=x onerror=window.broken=1><script>window.broken=1</script>"
IDLE = "document.querySelector('#explore').getAttribute('aria-busy') === 'false'"
CUTS = "[...document.querySelectorAll('.parts .cut')].map(button => button.textContent)"


@contextmanager
def served(found: Any) -> Iterator[str]:
    with Server() as server:
        thread = threading.Thread(target=server.serve, args=(found,))
        thread.start()
        try:
            yield server.address
        finally:
            server.shutdown()
            thread.join()


def fresh(page: Page) -> None:
    page.look(1400)
    page.complaints.clear()
    page.requests.clear()


def test_clicks_cut_and_the_answer_moves(page: Page, sparse: Any):
    found = analyses.explore(sparse)
    with served(found) as address:
        fresh(page)
        page.open(address)
        page.get("document.querySelector('textarea').focus()")
        page.type(PROMPT)
        page.press("Enter")
        page.wait("document.querySelector('.answer') && " + IDLE)
        assert (
            page.get("document.querySelectorAll('.drawing .edge').length") == found.state["models"][0]["edges"]["after"]
        )
        assert page.get("document.querySelectorAll('.answer tbody tr').length") == 10
        assert page.get("document.querySelectorAll('.said').length") == len(found.state["tokens"])

        edge = page.get("document.querySelector('.edge').dataset.name")
        for part in (
            "g.part[data-name=p3]",
            ".grid [data-name='a1.h1']",
            "g.part[data-name=m2]",
            "g.part[data-name=a4]",
        ):
            page.click(part)
            page.wait(f"document.querySelector({json.dumps(part)}).getAttribute('aria-pressed') === 'true' && {IDLE}")
        assert found.step.cuts == ("p3", "a1.h1", "m2", "a4")
        answer = page.get("document.querySelector('.answer tbody tr').textContent")
        token, before, after = found.state["models"][0]["answers"][-1]["top"][0]
        assert answer.startswith(f"{token}{100 * before:.1f}→ {100 * after:.1f} %")

        page.click("g.part[data-name=m2]")  # a second click restores it
        page.wait(f"!document.querySelector('.parts [data-name=m2]') && {IDLE}")
        page.get(f"document.querySelector('.edge[data-name=\"{edge}\"]').focus()")
        page.press("Enter")
        page.wait(f"{CUTS}.length === 4 && {IDLE}")
        assert found.step.cuts == ("p3", "a1.h1", "a4", edge)
        assert page.get("document.activeElement.dataset.name") == edge  # the focus stays where it was
        page.press("z", control=True)
        page.wait(f"{CUTS}.length === 3 && {IDLE}")
        page.click(".tools [data-key='tool Restore all']")
        page.wait(f"{CUTS}.length === 0 && {IDLE}")
        assert page.complaints == [] and all(request.startswith(address.split("?")[0]) for request in page.requests)


def test_an_edge_is_cut_with_the_mouse_and_walked_with_arrows(page: Page, sparse: Any):
    found = analyses.explore(sparse, prompt=PROMPT)
    with served(found) as address:
        fresh(page)
        page.open(address)
        names = page.get("[...document.querySelectorAll('.edge')].map(edge => edge.dataset.name)")
        name = next(name for name in reversed(names) if re.fullmatch(r".*:(\d+)->\1", name))  # a vertical line
        page.click(f".edge[data-name='{name}']", x=0.5, y=0.3)
        page.wait(f"{CUTS}.length === 1 && {IDLE}")
        cut = found.step.cuts[0]
        assert cut.split(".")[0] == name.split(".")[0]  # that edge, or one on top of it
        assert page.get(f"document.querySelector('.edge[data-name=\"{cut}\"]').classList.contains('fate1')")
        page.get(f"document.querySelector('.edge[data-name=\"{cut}\"]').focus()")
        assert page.get("document.querySelector('.about').textContent").startswith(f"layer {cut[1]}, head {cut[4]}: ")
        page.press("ArrowLeft")
        assert page.get("document.activeElement.dataset.name") not in (None, cut)
        page.press("p")
        page.wait(f"document.querySelector('.pin[aria-pressed=true]') && {IDLE}")
        assert page.complaints == []


def test_the_circuit_of_an_answer_is_its_dependency_cone(page: Page, sparse: Any):
    found = analyses.explore(sparse, prompt=PROMPT)
    drawn = "[...document.querySelectorAll('.edge')].map(edge => edge.dataset.name)"
    with served(found) as address:
        fresh(page)
        page.open(address)
        whole, tokens = page.get(drawn), sparse.to_tokens(PROMPT)
        page.click("[data-key=circuit]")
        for position in (tokens.shape[1] - 1, 3):
            page.click(f".said[data-position='{position}']")
            edges = analyses.dependency_cone(sparse, tokens, [position]).edges
            places = zip(edges.layer, edges.head, edges.key_pos, edges.query_pos, strict=True)
            names = page.get(drawn)
            assert set(names) == {f"a{layer}.h{head}:{key}->{query}" for layer, head, key, query in places}
            assert 0 < len(names) < len(whole)
            assert f"{len(names)} lead to the answer" in page.get("document.querySelector('figcaption').textContent")
        page.click(f".edge[data-name='{names[0]}']", x=0.5, y=0.5)
        page.wait(f"{CUTS}.length === 1 && {IDLE}")
        assert found.step.cuts[0] in page.get(drawn)  # a cut edge stays visible, to be restored
        assert f"{len(page.get(drawn)) - 1} lead to the answer" in page.get(
            "document.querySelector('figcaption').textContent"
        )
        page.click("[data-key=circuit]")
        assert len(page.get(drawn)) >= len(whole)
        assert page.complaints == []


def test_it_says_that_it_computes_and_mistakes_stay(page: Page, sparse: Any, monkeypatch: pytest.MonkeyPatch):
    found, go = analyses.explore(sparse, prompt=PROMPT), threading.Event()
    obey: Callable[[Any], dict[str, Any]] = found.obey
    monkeypatch.setattr(found, "obey", lambda command: obey(command) if go.wait(60) else {})
    with served(found) as address:
        fresh(page)
        page.open(address)
        page.click("g.part[data-name=m1]")
        page.wait("document.querySelector('.status').textContent === 'computing…'")
        go.set()
        page.wait(f"{CUTS}.length === 1 && {IDLE}")
        page.get("document.querySelector('[data-key=\"part by name\"]').focus()")
        page.type("a9.h9")
        page.press("Enter")
        page.wait("document.querySelector('.errors').textContent.includes(\"no such part: 'a9.h9'\")")
        page.click("g.part[data-name=m1]")
        page.wait(f"{CUTS}.length === 0 && {IDLE}")
        assert "a9.h9" in page.get("document.querySelector('.errors').textContent")
    page.click("g.part[data-name=m1]")  # the server has stopped
    page.wait("document.querySelector('.errors').textContent.includes('the server has stopped')")


def test_no_string_runs(page: Page, sparse: Any, tmp_path: Path):
    found = analyses.explore(sparse, prompt=f"Lily {HOSTILE}", title=HOSTILE)
    found.note("a0.h1", HOSTILE, HOSTILE)
    found.note("p2", HOSTILE)
    edge = found.state["models"][0]["edges"]["columns"]
    found.note(f"a{edge[0][0]}.h{edge[1][0]}:{edge[2][0]}->{edge[3][0]}", HOSTILE)
    found.obey({"do": "cut", "names": ["p2"]})
    with served(found) as address:
        for where in (address, found.save_html(tmp_path / "page.html").as_uri()):
            fresh(page)
            page.open(where)
            page.wait("document.querySelector('.edge')")
            page.get("document.querySelector('.edge').focus()")
            assert page.get("window.broken") is None and page.get("document.querySelectorAll('img').length") == 0
            assert page.get("document.title") == HOSTILE and HOSTILE in page.get(
                "document.querySelector('h1').textContent"
            )
            assert page.get("document.querySelector('.parts h3').firstChild.data") == HOSTILE
            assert page.complaints == []


def test_the_recorded_page_shows_the_same_without_a_network(page: Page, sparse: Any, tmp_path: Path):
    found = analyses.explore(sparse, prompt=PROMPT)
    found.cut("a1.h1", "p3")
    fresh(page)
    page.open(found.save_html(tmp_path / "page.html").as_uri())
    assert page.get("document.querySelectorAll('.mark.fate1').length") == found.state["models"][0]["edges"]["fates"][1]
    page.get("""(() => {
        const slider = document.querySelector("input[type=range]");
        slider.value = 80;
        slider.dispatchEvent(new Event("input"));
    })()""")
    before, after = found.state["models"][0]["edges"]["columns"][4:6]
    strong = sum(max(pair) >= 640 for pair in zip(before, after, strict=True))
    assert 0 < page.get("document.querySelectorAll('.edge').length") == strong < len(before)
    page.click(".said[data-position='2']")
    page.wait("document.querySelector('.answers h2').textContent.startsWith('After 2 ')")
    assert page.get("document.querySelector('.tools').textContent") == "Export state"
    page.click("g.part[data-name=m1]")
    page.wait("document.querySelector('.errors').textContent.includes('This page is a recording')")
    page.look(700)
    page.wait("document.documentElement.scrollWidth <= 700")  # nothing is wider than the window
    paper = "getComputedStyle(document.querySelector('.explore')).backgroundColor"
    assert page.get(paper) == "rgb(255, 255, 255)"
    page.look(700, dark=True)
    assert page.get(paper) == "rgb(22, 24, 27)"
    page.look(700, dark=True, paper=True)
    assert page.get(paper) == "rgb(255, 255, 255)" and page.get("document.querySelector('.about').offsetHeight") == 0
    assert page.requests == [(tmp_path / "page.html").as_uri()] and page.complaints == []


def test_the_widget_draws_and_carries_messages(page: Page, sparse: Any):
    found = analyses.explore(sparse, prompt=PROMPT)
    data = {"title": "t", "state": found.state, "view": {}, "note": ""}
    after = found.obey({"do": "cut", "names": ["m0"]})
    code = script("export default { render: startWidget };")
    fresh(page)
    page.open("data:text/html,<div id=cell></div>")
    page.get(f"""(async () => {{
        const module = await import(URL.createObjectURL(new Blob([{json.dumps(code)}], {{ type: "text/javascript" }})));
        let hear; window.sent = [];
        const send = message => {{
            sent.push(message);
            setTimeout(() => hear({{ id: message.id, ...{json.dumps(after)} }}), 10);
        }};
        const model = {{ get: () => ({json.dumps(data)}), on: (_, call) => {{ hear = call; }}, send }};
        module.default.render({{ model, el: document.getElementById("cell") }});
    }})()""")
    page.wait("document.querySelector('.edge')")
    page.click("g.part[data-name=m0]")
    page.wait(f"{CUTS}.includes('m0')")
    assert page.get("sent") == [{"id": 1, "command": {"do": "cut", "names": ["m0"]}}]
    assert page.complaints == []


def test_an_edge_says_why_it_is_open(page: Page, sparse: Any, tmp_path: Path):
    found = analyses.explore(sparse, prompt=f"Lily {HOSTILE}")
    with served(found) as address:
        fresh(page)
        page.open(address)
        columns = found.state["models"][0]["edges"]["columns"]
        layer, head, key, query = next(edge for edge in zip(*columns[:4], strict=True) if edge[0] == 2)
        name = f"a{layer}.h{head}:{key}->{query}"
        why = found.why(name)["sparse"]
        page.get(f"document.querySelector('.edge[data-name=\"{name}\"]').focus()")
        page.press("w")
        page.wait(f"document.querySelector('.reasons table') && {IDLE}")
        assert page.get("document.querySelector('.reasons figure > p').textContent") == str(why)
        rows, names, values = why.folded(7)
        table = """[...document.querySelectorAll(".reasons tbody tr")].map(
            row => [...row.children].map(cell => cell.textContent.replace("\\u2212", "-")))"""
        for row, wanted, (label, *cells) in zip(rows, values.tolist(), page.get(table), strict=True):
            assert label == row
            assert [float(cell or 0) for cell in cells] == pytest.approx(wanted, abs=0.01)
        assert page.get("[...document.querySelectorAll('.reasons thead th')].map(cell => cell.textContent)") == names
        assert found.step.cuts == () and len(found._steps) == 2  # an explanation is not a step
        saved = tmp_path / "page.html"
        saved.write_text(found.page(view={"why": found.obey({"do": "why", "name": name})["why"]}))
        part = next(row for row in rows if ":" in row)  # an edge that helped to open it
        page.click(f".reasons tbody [data-name='{part}']")
        page.wait(f"{CUTS}.length === 1 && !document.querySelector('.reasons *') && {IDLE}")
        assert found.step.cuts == (part,)
        page.click(".parts [aria-label^='why is']")
        page.wait(f"document.querySelector('.reasons table') && {IDLE}")
        assert page.get("document.querySelector('.reasons figure > p').textContent") == str(found.why(part)["sparse"])
        page.click(".reasons [aria-label=close]")
        page.wait("!document.querySelector('.reasons *')")
        page.get(f"""document.querySelector('.edge[data-name="{name}"]').dispatchEvent(
            new MouseEvent("click", {{ bubbles: true, altKey: true, detail: 1 }}))""")
        page.wait(f"document.querySelector('.reasons table') && {IDLE}")
        assert found.step.cuts == (part,)
        page.get("document.querySelector('[data-key=\"part by name\"]').focus()")
        page.type("m0")
        page.get("[...document.querySelectorAll('.parts form button')].at(-1).click()")
        page.wait("document.querySelector('.errors').textContent.includes(\"'m0' is not an attention edge\")")
        assert page.get("window.broken") is None and page.complaints == []
    fresh(page)
    page.open(saved.as_uri())
    assert page.get("document.querySelector('.reasons figure > p').textContent") == str(why)
    assert page.get("window.broken") is None and page.complaints == []
