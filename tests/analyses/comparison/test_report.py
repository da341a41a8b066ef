"""The report: one file, no network, every number of the table, no string that breaks out of it."""

import html
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from sparselens.analyses.comparison.figures import figures_of
from sparselens.analyses.comparison.report import CAPTIONS, report_page
from sparselens.analyses.comparison.results import Comparison, Prompt
from sparselens.analyses.comparison.table import cells, rows_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "</script><script>alert(1)</script>{{viewer}}\"'$x$"


@pytest.fixture(scope="module")
def page(comparison: Comparison) -> str:
    return report_page(comparison)


def test_every_number_of_the_table_is_in_the_page(comparison: Comparison, page: str):
    table = page[page.index("<table>") : page.index("</table>")]
    for row in rows_of(comparison):
        line = "".join(f"<td>{html.escape(cell)}</td>" for cell in (row.name, *cells(row)))
        assert line in table
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
    for module in (figures, report):
        monkeypatch.setattr(module, "view", lambda one: built.append("") or real(one))
    report_page(comparison)
    assert len(built) == 1


def test_strings_stay_strings(comparison: Comparison):
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
    assert "{{viewer}}" in outside  # what looks like a place in the template is not filled


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("dark", [False, True])
def test_it_opens_in_a_browser_without_network_or_complaint(page: str, tmp_path: Path, dark: bool):
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=5000", "--window-size=1200,2000"]
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'report.png'}"]
    ran = subprocess.run([*command, f"file://{tmp_path / 'report.html'}"], capture_output=True, text=True, timeout=120)
    assert (tmp_path / "report.png").stat().st_size > 50_000
    assert [line for line in ran.stderr.splitlines() if "CONSOLE" in line] == []
