"""Tests of the viewer in use: dragging, zooming with the wheel, saving files, narrow windows and dark mode."""

import json
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from sparselens import Circuit
from tests.analyses.figures.test_viewer import HOSTILE, STATE, attention_of, demo_viewer
from tests.chromium import Page, browser, needs_chromium

pytestmark = [pytest.mark.slow, needs_chromium]

STAGE = "#circuit .stage svg"
BOXES = f"[...document.querySelectorAll('{STAGE}')].map(svg => svg.getAttribute('viewBox').split(',').map(Number))"
PAINTED = "document.querySelector('#circuit canvas').toDataURL()"
TABS = ("circuit", "difference", "tokens", "patterns", "curves")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return demo_viewer().save_html(tmp_path_factory.mktemp("page") / "page.html").as_uri()


def opened(page: Page, address: str, width: int = 1400) -> None:
    page.look(width)
    page.open("about:blank#")  # otherwise a change of only the part after # would not reload the page
    page.open(address)
    page.complaints.clear()


def test_a_drag_moves_what_the_wheel_has_brought_closer(page: Page, address: str):
    opened(page, address)
    whole = page.get(BOXES)
    assert len(whole) == 2 and whole[0] == whole[1]
    page.drag(STAGE, 90, 60)
    page.wheel(STAGE, 300)  # without Ctrl it scrolls the page
    assert page.get(BOXES) == whole and page.get(STATE) == {}

    page.wheel(STAGE, 300, control=True)
    page.wait("location.hash.includes('zoom=2.7')")
    (left, top, width, height), second = page.get(BOXES)
    assert second == [left, top, width, height] and width < whole[0][2] / 2.5
    painted, scale = page.get(PAINTED), width / page.get(f"document.querySelector('{STAGE}').clientWidth")
    page.drag(STAGE, -80, -50)
    first, second = page.get(BOXES)
    assert first == second == pytest.approx([left + 80 * scale, top + 50 * scale, width, height], abs=0.2)
    assert page.get(PAINTED) != painted and {*page.get(STATE)} == {"zoom", "x", "y"}  # a drag selects nothing
    page.drag(STAGE, 80, 50)
    assert page.get(BOXES)[0] == pytest.approx([left, top, width, height], abs=0.2) and page.get(PAINTED) == painted

    for _ in range(6):  # not beyond the edge of the drawing
        page.drag(STAGE, -150, 120)
    (left, top, width, _), _ = page.get(BOXES)
    assert (left + width, top) == pytest.approx((whole[0][2], whole[0][1]), abs=0.2)
    kept = page.get("location.href")
    opened(page, kept)
    assert page.get(BOXES)[1] == pytest.approx([left, top, *first[2:]], abs=0.2)
    page.click("#whole")
    assert page.get(BOXES) == whole and page.complaints == []


def test_a_hand_that_shakes_clicks(page: Page, address: str):
    opened(page, address)
    page.click("#closer")
    assert page.get(STATE)["zoom"] == "1.5"
    page.drag("#circuit .node[aria-label='a2.h1'] rect", 2, 1)
    assert page.get(STATE)["chosen"] == "a2.h1"
    page.press("Escape")
    assert "chosen" not in page.get(STATE)


def test_another_prompt_has_other_patterns(page: Page, address: str):
    opened(page, address)
    page.click("#tab-patterns")
    said = "[...document.querySelectorAll('#patterns .grids figcaption')].map(caption => caption.textContent)"
    edges = [attention_of((2, 4, 4, 9), 0.1, seed=1).of_prompt(prompt) for prompt in (0, 1)]
    assert page.get(said)[1] == f"sparse: {len(edges[0])} attention edges"
    chosen = "[...document.querySelectorAll('#prompt option')].map(option => option.textContent)"
    assert page.get(chosen) == HOSTILE[:2]
    page.get("document.getElementById('prompt').focus()")
    page.press("ArrowDown")
    page.wait("location.hash.includes('prompt=1')")
    assert page.get(said)[1] == f"sparse: {len(edges[1])} attention edges" and len(edges[0]) != len(edges[1])
    page.click("#tab-circuit")
    page.get("document.querySelector('#circuit .node[aria-label=\"a0.h1\"]').focus()")
    assert page.get("document.querySelector('#card .pair ~ .note').textContent") == f"on the prompt “{HOSTILE[1]}”"
    assert page.complaints == []


def test_files_are_saved(page: Page, address: str, tmp_path: Path):
    opened(page, address)
    page.downloads(tmp_path)
    for kind in ("svg", "png", "json"):
        page.click(f"#{kind}")
        page.saved(tmp_path / f"circuit.{kind}")
    drawing = ElementTree.parse(tmp_path / "circuit.svg").getroot()
    assert drawing.tag.endswith("svg") and len(list(drawing.iter("{http://www.w3.org/2000/svg}path"))) > 50
    assert (tmp_path / "circuit.png").read_bytes().startswith(b"\x89PNG")
    saved = json.loads((tmp_path / "circuit.json").read_text())["circuits"]
    assert list(saved) == ["dense", "sparse"]
    (tmp_path / "dense.json").write_text(json.dumps(saved["dense"]))
    heading = page.get("document.querySelector('#circuit h2').textContent")
    assert heading.startswith(f"dense: {len(Circuit.load(tmp_path / 'dense.json'))} of ")


@pytest.mark.parametrize("width", [700, 360])
def test_every_tab_fits_on_narrow_and_dark_paper(page: Page, address: str, width: int):
    opened(page, address, width)
    for tab in TABS:
        page.click(f"#tab-{tab}")
        assert page.get("document.documentElement.scrollWidth") <= width, tab
        cut = f"""[...document.querySelectorAll('#{tab} h2, #{tab} figcaption, #{tab} svg, #controls > *, #files > *')]
            .filter(element => element.getBoundingClientRect().right > {width} + 1).map(element => element.outerHTML)"""
        assert page.get(cut) == [], tab
    page.look(width, dark=True)
    paper = "getComputedStyle(document.body).backgroundColor"
    assert page.get(paper) == "rgb(22, 24, 27)"
    page.look(width, dark=True, paper=True)
    assert page.get(paper) == "rgb(255, 255, 255)" and page.complaints == []
