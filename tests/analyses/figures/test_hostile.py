"""Tests that strings which would run as markup do not run, wherever they occur on any page."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparselens.analyses import circuit_viewer, token_view
from sparselens.analyses.comparison.report import report_page
from sparselens.analyses.comparison.results import Comparison, Prompt
from sparselens.analyses.figures.pattern_view import head_pattern
from tests.analyses.figures.test_viewer import attention_of, scores_of
from tests.chromium import Page, browser, needs_chromium

pytestmark = [pytest.mark.slow, needs_chromium]

HOSTILE = (
    "\"'><img src=x onerror=document.title='run'><script>document.title='run'</script>"
    "</script><script>document.title='run'</script><svg onload=document.title='run'>"
)
TOKENS = [[HOSTILE] * 4] * 2


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


def viewer(*seeds: int) -> Any:
    shape = (2, 2, 2, 4)
    attention: Any = tuple(attention_of(shape, 0.5, seed) for seed in seeds)
    labels: Any = tuple({"a0.h1": HOSTILE} for _ in seeds)
    return circuit_viewer(
        *(scores_of(2, 2, seed) for seed in seeds),
        names=[HOSTILE] * len(seeds),
        title=HOSTILE,
        attention=attention if seeds[1:] else attention[0],
        tokens=TOKENS,
        outputs=TOKENS,
        titles=[HOSTILE] * 2,
        labels=labels if seeds[1:] else labels[0],
    )


PAGES: dict[str, Callable[[], str]] = {
    "viewer of two": lambda: viewer(0, 1).html,
    "viewer of one": lambda: viewer(0).html,
    "tokens": lambda: token_view(
        attention_of((2, 2, 2, 4), 0.5), None, TOKENS, outputs=TOKENS, titles=[HOSTILE] * 2, title=HOSTILE,
        row_names=[HOSTILE], arrow_name=HOSTILE, arrows=[[(0, 1)]] * 2,
    ).html,
    "pattern of a head": lambda: head_pattern(attention_of((2, 2, 2, 4), 0.5), TOKENS, 0, 1, 1).html,
}  # fmt: skip


@pytest.mark.parametrize("name", PAGES)
def test_no_string_of_a_page_runs(name: str, page: Page, tmp_path: Path):
    (tmp_path / "page.html").write_text(PAGES[name](), encoding="utf-8")
    page.open((tmp_path / "page.html").as_uri())
    for tab in ("difference", "patterns", "tokens", "curves", "circuit"):
        page.get(f"document.getElementById('tab-{tab}')?.click()")
    page.get("document.querySelector('#circuit .node[tabindex=\"0\"]')?.focus()")
    page.press("p")
    assert page.get("document.title") != "run" and page.get("document.querySelectorAll('img, svg[onload]').length") == 0
    expected = HOSTILE if name != "pattern of a head" else "a1.h1"
    assert expected in page.get("document.body.textContent + document.title")


def test_no_string_of_a_report_runs(comparison: Comparison, page: Page, tmp_path: Path):
    prompts = tuple(
        Prompt(HOSTILE, (HOSTILE,) * len(p.tokens), (HOSTILE,) * len(p.tokens)) for p in comparison.about.prompts
    )
    told = {
        "names": (HOSTILE, f"{HOSTILE} 2"),
        "description": HOSTILE,
        "notes": (HOSTILE,),
        "command": HOSTILE,
        "task": HOSTILE,
    }
    about = replace(comparison.about, prompts=prompts, **told)
    (tmp_path / "page.html").write_text(report_page(replace(comparison, about=about)), encoding="utf-8")
    page.open((tmp_path / "page.html").as_uri())
    assert page.get("document.title") == f"{HOSTILE} and {HOSTILE} 2: {HOSTILE}"
    assert page.get("document.querySelectorAll('script, svg, img:not([src^=data])').length") == 0
    assert HOSTILE in page.get("document.querySelector('.finding').textContent")
