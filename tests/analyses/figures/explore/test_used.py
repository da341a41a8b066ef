"""Tests of the live page as a whole: by keyboard alone, several prompts, files, any window size."""

import json
from pathlib import Path
from typing import Any

import pytest

import sparselens as sl
from sparselens import analyses
from tests.analyses.figures.explore.test_in_browser import IDLE, PROMPT, fresh, served
from tests.chromium import Page, needs_chromium

pytestmark = [pytest.mark.slow, needs_chromium]

CUTS = "document.querySelectorAll('.parts .cut[aria-pressed=true]')"
ANSWER = "document.querySelector('.answer tbody').textContent"
FOCUSED = "(document.activeElement.dataset.key ?? document.activeElement.tagName)"


def tab_to(page: Page, condition: str) -> None:
    """Press Tab until the focused element meets a condition."""
    for _ in range(80):
        page.press("Tab")
        if page.get(condition):
            return
    raise AssertionError(f"Tab does not reach {condition}")


def test_by_keyboard_alone(page: Page, sparse: Any):
    found = analyses.explore(sparse)
    with served(found) as address:
        fresh(page)
        page.open(address)
        tab_to(page, f"{FOCUSED} === 'TEXTAREA'")
        page.type(PROMPT)
        page.press("Enter")
        page.wait("document.querySelector('.answer') && " + IDLE)
        whole = page.get(ANSWER)
        tab_to(page, "document.activeElement.matches('.edge')")
        page.press("ArrowRight")
        edge = page.get("document.activeElement.dataset.name")
        page.press("Enter")
        page.wait(f"{CUTS}.length === 1 && {IDLE}")
        assert found.step.cuts == (edge,) and page.get(ANSWER) != whole
        page.press("p")
        page.wait(f"document.querySelector('.pin[aria-pressed=true]') && {IDLE}")
        tab_to(page, "document.activeElement.matches('g.part[data-name=p3]')")
        page.press(" ")
        page.wait(f"{CUTS}.length === 2 && {IDLE}")
        tab_to(page, f"{FOCUSED} === 'label {edge}'")
        page.type("copies")
        page.press("Tab")
        page.wait(f"document.activeElement.matches('[data-key=\"group {edge}\"]') && {IDLE}")
        assert found.step.notes[edge].label == "copies" and found.step.notes[edge].pinned
        tab_to(page, f"{FOCUSED} === 'part p3'")
        for left in (2, 1, 1):  # the label, the token, with which what has the focus goes, and the pin
            page.press("z", control=True)
            page.wait(f"{IDLE} && {CUTS}.length === {left}")
        assert found.step.cuts == (edge,) and not found.step.notes
        tab_to(page, f"{FOCUSED} === 'tool Restore all'")
        page.press("Enter")
        page.wait(f"{CUTS}.length === 0 && {IDLE}")
        assert page.get(ANSWER) == whole and page.complaints == []


def test_another_prompt_keeps_the_head_that_is_cut(page: Page, sparse: Any):
    found = analyses.explore(sparse, prompt=PROMPT)
    found.cut("a1.h1", "p2")
    with served(found) as address:
        fresh(page)
        page.open(address)
        page.get("document.querySelector('textarea').select()")
        page.type("One day, Tim had a red ball. He")
        page.press("Enter")
        page.wait(f"{CUTS}.length === 1 && {IDLE}")
        tokens = "[...document.querySelectorAll('g.part[data-name^=p]')].map(token => token.textContent)"
        assert page.get(tokens) == found.state["tokens"] and " Tim" in found.state["tokens"]
        assert found.step.cuts == ("a1.h1",)
        said = page.get("document.querySelector('.errors').textContent")
        assert "removed 1 cut of edges and tokens; Undo goes back to the old prompt" in said
        page.click(".tools [data-key='tool Undo']")
        page.wait(f"{CUTS}.length === 2 && {IDLE}")
        assert page.get("document.querySelector('textarea').value") == PROMPT
        assert page.get(tokens) == found.state["tokens"] and page.complaints == []


def test_the_state_goes_out_as_a_file_and_comes_back(page: Page, sparse: Any, tmp_path: Path):
    found = analyses.explore(sparse, prompt=PROMPT)
    found.cut("a1.h1", "p2")
    found.note("a1.h1", "copies", "early")
    shared = found.shared
    with served(found) as address:
        fresh(page)
        page.downloads(tmp_path)
        page.open(address)
        moved = page.get(ANSWER)
        page.click(".tools [data-key='tool Export state']")
        assert json.loads(page.saved(tmp_path / "exploration.json").read_text()) == shared
        page.click(".tools [data-key='tool Restore all']")
        page.wait(f"{CUTS}.length === 0 && {IDLE}")
        assert page.get(ANSWER) != moved
        page.choose_file(".tools input[type=file]", tmp_path / "exploration.json")
        page.wait(f"{CUTS}.length === 2 && {IDLE}")
        assert found.shared == shared and page.get(ANSWER) == moved
        (tmp_path / "broken.json").write_text("{")
        page.choose_file(".tools input[type=file]", tmp_path / "broken.json")
        page.wait("document.querySelector('.errors').textContent.includes('broken.json is not JSON')")
        page.click(".tools [data-key='tool Save page']")
        saved = page.saved(tmp_path / "explore.html")
        assert page.complaints == []
    fresh(page)
    page.open(saved.as_uri())
    assert page.get(ANSWER) == moved and page.get("document.querySelector('.parts h3').firstChild.data") == "early"


def test_the_live_page_of_two_models_on_any_paper(page: Page, sparse: Any):
    found = analyses.explore(sparse, sl.load("stories260k"), prompt=PROMPT)
    found.cut("a1.h1")
    with served(found) as address:
        fresh(page)
        page.open(address)
        assert page.get("document.querySelectorAll('.drawing').length") == 2
        paper = "getComputedStyle(document.querySelector('.explore')).backgroundColor"
        for width in (700, 360):
            page.look(width, dark=True)
            page.wait(f"document.documentElement.scrollWidth <= {width}")
            assert page.get(paper) == "rgb(22, 24, 27)"
        page.look(700, dark=True, paper=True)
        assert page.get(paper) == "rgb(255, 255, 255)"
        hidden = "['.tools', '.about', '.parts form'].map(part => document.querySelector(part).offsetHeight)"
        assert page.get(hidden) == [0, 0, 0] and page.get("document.querySelector('.answer').offsetHeight") > 100
        assert page.get("[...document.querySelectorAll('.drawing svg')].every(svg => svg.clientWidth <= 700)")
        assert page.complaints == []
