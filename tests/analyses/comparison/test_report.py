"""The report: one offline file with every number of the table, in which no string is taken for markup."""

import html
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparselens.analyses import load_comparison, token_view
from sparselens.analyses.comparison.figures import figures_of, tokens_view
from sparselens.analyses.comparison.finding import Fact, _accuracy, _fewer, facts, finding
from sparselens.analyses.comparison.report import CAPTIONS, _description, _fact, _pruning, report_page
from sparselens.analyses.comparison.results import Comparison, Prompt, Solved
from sparselens.analyses.comparison.rows import Row, cells, percent
from sparselens.analyses.comparison.table import OPEN_EDGES, pruned_name, rows_of
from sparselens.analyses.figures.two_papers import for_both_papers
from sparselens.prompts.intervals import Interval, proportion_interval
from tests.analyses.comparison.compared import draw_nothing
from tests.chromium import Page, browser, needs_chromium

HOSTILE = "</script><script>alert(1)</script>{{viewer}}\"'$x$"


@pytest.fixture(scope="module")
def page(comparison: Comparison) -> str:
    return report_page(comparison)


def test_every_number_of_the_table_is_in_the_page(comparison: Comparison, page: str):
    table = page[page.index("<table>") : page.index("</table>")]
    for row in rows_of(comparison):
        line = "".join(f"<td>{html.escape(cell)}</td>" for cell in (row.name, *cells(row)))
        assert line in table
    for said in (_description(comparison), *_pruning(comparison).values()):
        assert html.escape(said) in page
    assert comparison.about.task in page and comparison.about.versions["torch"] in page


def test_every_figure_is_there_and_has_a_caption(comparison: Comparison, page: str):
    assert set(figures_of(comparison)) <= set(CAPTIONS)
    assert page.count("<figcaption>") == len(figures_of(comparison)) == page.count('src="data:image/')
    assert page.count("<iframe") == 1 and 'sandbox="allow-scripts allow-downloads"' in page


def test_it_asks_the_network_for_nothing(page: str):
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy[0].startswith("default-src 'none'") and "http" not in policy[0]
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert len(page) < 2_000_000


def test_the_viewer_is_built_once(comparison: Comparison, monkeypatch: pytest.MonkeyPatch):
    from sparselens.analyses.comparison import figures, report

    built, real = list[str](), figures.view
    draw_nothing(monkeypatch)
    for module in (figures, report):
        monkeypatch.setattr(module, "view", lambda one: built.append("") or real(one))
    report_page(comparison)
    assert len(built) == 1


def test_strings_stay_strings(comparison: Comparison, monkeypatch: pytest.MonkeyPatch):
    draw_nothing(monkeypatch)
    prompts = tuple(Prompt(HOSTILE, (HOSTILE,) * len(p.tokens)) for p in comparison.about.prompts)
    about = replace(
        comparison.about,
        prompts=prompts,
        names=(HOSTILE, HOSTILE),
        description=HOSTILE,
        notes=(HOSTILE,),
        command=HOSTILE,
    )
    page = report_page(replace(comparison, about=about))
    outside = re.sub(r'srcdoc="[^"]*"', "", page)
    assert "<script" not in outside and outside.count(html.escape(HOSTILE)) >= 6
    assert "{{viewer}}" in outside  # text that looks like a template placeholder is not filled in


def test_what_was_found_comes_first_and_the_whole_table_last_and_folded(comparison: Comparison, page: str):
    outside = re.sub(r'srcdoc="[^"]*"', "", page)
    places = [outside.index(mark) for mark in ("<h1>", 'class="finding"', '<dl class="facts">', 'class="hero"')]
    places += [outside.index(mark) for mark in ("<iframe", '<div class="still">', '<div class="figures">', "<details>")]
    assert places == sorted(places) and outside.index("<table>") > places[-1] and "<details open" not in outside
    assert outside.count("<tr class") >= 5
    bold = [html.unescape(name) for name in re.findall(r'<tr class="[^"]*found"><td>([^<]*)</td>', outside)]
    assert bold == [fact.name for fact in facts(comparison)] == re.findall(r"<dt>([^<]*)</dt>", outside)


def test_accuracy_is_that_on_all_pairs_drawn_whatever_the_metric(comparison: Comparison):
    """Of the pairs used, which both models solve, it would always be 100 %."""
    dense, sparse = (
        replace(model, edges=replace(model.edges, clean=torch.ones(len(model.edges.clean))))
        for model in (comparison.dense, comparison.sparse)
    )
    by_accuracy = replace(comparison, dense=dense, sparse=sparse, about=replace(comparison.about, metric="accuracy"))
    names = [row.name for row in rows_of(by_accuracy)]
    assert len(set(names)) == len(names) and "accuracy on the pairs used" in names
    assert facts(by_accuracy)[0] == facts(comparison)[0]


def test_the_finding_says_what_the_table_says(comparison: Comparison):
    rows = {row.name: (*cells(row), row.ratio) for row in rows_of(comparison)}
    fewer = rows[OPEN_EDGES][2]
    start = f"sparse is as accurate as dense (100.0 %), with {fewer} fewer open attention edges and "
    dense, sparse, _, ratio = rows[pruned_name(comparison.about)]
    assert ratio is not None and ratio.low > 1
    chosen = "edges in a circuit pruned to 80 % faithfulness"
    others = [percent(getattr(comparison, side).circuits.pruned.held_out.mean) for side in ("sparse", "dense")]
    end = f"({sparse.split()[0]} instead of {dense.split()[0]})"
    end += f"; held-out faithfulness {others[0]} (dense {others[1]})."
    assert finding(comparison) == f"{start}{ratio.mean:.2f}x fewer {chosen} {end}"


def test_no_difference_is_claimed_where_the_interval_allows_none(comparison: Comparison):
    row = Row("Circuit", "edges", (30.0, 24.0), Interval(1.25, 0.9, 1.6, 0.1, 9))
    assert _fewer(row, "edges") == "no measurable difference in edges (24 instead of 30)"
    unsure = Fact("edges", "30", "24", "1.25x [0.9, 1.6]", differs=False)
    assert _fact(unsure).endswith("<dd>24 dense / sparse 1.25x [0.9, 1.6]</dd></div>")
    assert _fact(unsure._replace(differs=True)).endswith("<dd>24 <b>1.25x [0.9, 1.6] fewer</b></dd></div>")
    assert _fewer(replace(row, ratio=Interval(0.5, 0.4, 0.6, 0.1, 9)), "edges") == "2.00x more edges (24 instead of 30)"
    assert _fewer(replace(row, ratio=None), "edges") == "no defined ratio of edges (24 instead of 30)"
    few = replace(row, ratio=Interval(1.25, math.nan, math.nan, 0.1, 3))
    assert _fewer(few, "edges").endswith("(24 instead of 30), measured on too few prompts for a confidence interval")


def test_accuracies_are_compared_prompt_by_prompt():
    """McNemar's exact test: of six prompts that the dense model alone solves, p is 1/32; of five, 1/16."""

    def said(n_alone: int, prompts: Tensor) -> str:
        dense, sparse = torch.ones(60).bool(), torch.arange(60) >= n_alone
        row = Row("", "", (proportion_interval(dense), proportion_interval(sparse)), percent=True)
        return _accuracy(row, "d", Solved(dense, sparse, dense & sparse, 0.5, prompts))

    assert said(6, torch.arange(60)) == "is less accurate than d (90.0 % and 100.0 %)"  # though the intervals overlap
    assert said(5, torch.arange(60)).startswith("is not measurably less or more accurate than d (91.7 % and 100.0 %)")
    assert said(6, torch.arange(60) // 2).startswith("is not measurably less")  # three prompts, each drawn twice
    assert said(0, torch.arange(60)) == "is as accurate as d (100.0 %)"


def test_answers_stand_above_the_first_prompts(comparison: Comparison, tmp_path: Path):
    for prompt in comparison.about.prompts:
        assert len([text for text in prompt.outputs if text]) == 1 and len(prompt.outputs) == len(prompt.tokens)
    back = load_comparison(comparison.save(tmp_path / "saved"))
    assert back.about.prompts == comparison.about.prompts
    hero = tokens_view(comparison)
    answers = [next(text for text in prompt.outputs if text) for prompt in comparison.about.prompts]
    assert {label.text for panel in hero.layout.panels for label in panel.labels} >= set(answers[:3])


def test_a_picture_of_ones_own_may_come_first(comparison: Comparison, page: str, monkeypatch: pytest.MonkeyPatch):
    draw_nothing(monkeypatch)
    prompt = comparison.about.prompts[0]
    mine = token_view(comparison.dense.attention.first(1), None, [prompt.tokens], titles=["my title"])
    other = report_page(comparison, mine)
    image = re.findall(r'class="hero"><figure><img class="\w+" alt="[^"]*" src="([^"]*)"', other)
    assert len(image) == 1 and image[0] not in page and other.count("<figcaption>") == page.count("<figcaption>")


def test_colours_of_a_drawing_follow_the_page():
    drawn = for_both_papers('<?xml?><svg viewBox="0 0 1 1"><path style="fill: #222222; stroke: #d05500"/></svg>')
    assert "fill: var(--c222222); stroke: var(--cd05500)" in drawn
    assert "--c222222:#222222" in drawn and "--cd05500:#f0803c" in drawn.partition("prefers-color-scheme:dark")[2]
    assert for_both_papers('<svg><path style="fill: #123456"/></svg>').count("#123456") == 1


FIRST_SCREEN = """
(() => {
  const bottom = selector => document.querySelector(selector).getBoundingClientRect().bottom;
  const { top, width, height } = document.querySelector(".hero img").getBoundingClientRect();
  const wide = document.documentElement.scrollWidth;
  return { finding: bottom(".finding"), facts: bottom(".facts"), top, wide, aspect: width / height };
})()
"""


@pytest.fixture(scope="module")
def opened(page: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, str]]:
    """A browser page, and the URL of the report."""
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(page, encoding="utf-8")
    with browser(file.parent / "profile") as open_page:
        yield open_page, file.as_uri()


@needs_chromium
@pytest.mark.parametrize("width", [1400, 700, 360])
def test_it_is_read_in_the_first_screen_on_any_paper(opened: tuple[Page, str], width: int):
    open_page, address = opened
    open_page.look(width, 900)
    open_page.open(address)
    seen = open_page.get(FIRST_SCREEN)
    assert seen["finding"] < 350 and seen["facts"] < 680 and seen["top"] < 700 and seen["wide"] <= width
    assert open_page.get("document.querySelector('details').open") is False
    shown = "getComputedStyle(document.querySelector('{}')).display"
    assert [open_page.get(shown.format(part)) for part in ("iframe", ".still")] == ["block", "none"]
    first_column = "document.querySelector('details').open = true, document.querySelector('.wide td').offsetWidth"
    assert open_page.get(first_column) >= 170
    open_page.look(width, 900, dark=True)
    paper = "getComputedStyle(document.body).backgroundColor"
    assert open_page.get(paper) == "rgb(22, 24, 27)"
    open_page.look(width, 900, dark=True, paper=True)
    assert [open_page.get(shown.format(part)) for part in ("iframe", ".still")] == ["none", "block"]
    assert open_page.get("document.querySelector('.still img').naturalWidth") > 100
    assert open_page.get(paper) == "rgb(255, 255, 255)"
    assert open_page.complaints == [] and not [
        url for url in open_page.requests if not url.startswith(("file", "data"))
    ]


@needs_chromium
def test_the_colours_of_the_numbers_are_explained_above_them(comparison: Comparison, opened: tuple[Page, str]):
    open_page, address = opened
    open_page.look(1400, 900)
    open_page.open(address)
    assert open_page.get("[...document.querySelectorAll('.models span')].map(name => name.textContent)") == [
        *comparison.about.names
    ]
    edge = "[...document.querySelectorAll('{}')].map(one => getComputedStyle(one).borderLeftColor)"
    named, shown = (open_page.get(edge.format(what)) for what in (".models span", ".facts div:last-child dd"))
    assert named == shown and named[0] != named[1]
