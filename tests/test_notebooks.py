"""Notebooks are stored with what they show (`make notebooks`); `make test` runs each of them from top to bottom."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
COLAB = "https://colab.research.google.com/github/sparselens/sparselens/blob/main/notebooks"
PUBLIC = (
    "sparselens",
    "sparselens.tasks",
    "sparselens.tasks.addition",
    "sparselens.training.text",
)  # what a story may import
WITH_A_TASK = "4_your_own_task"  # the one that defines something: ten lines

every_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def cells(notebook: Path, kind: str) -> list[dict[str, Any]]:
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def code(notebook: Path) -> ast.Module:
    lines = "".join("".join([*cell["source"], "\n"]) for cell in cells(notebook, "code")).split("\n")
    return ast.parse("\n".join(line for line in lines if not line.startswith("!")))


def test_they_are_numbered_in_reading_order() -> None:
    assert [path.stem[0] for path in NOTEBOOKS] == ["0", "1", "2", "3", "4", "5"]


@every_notebook
def test_it_is_stored_with_text_tables_and_pictures_alone(notebook: Path) -> None:
    """As one run from top to bottom left them, without scripts and without traces of the machine."""
    found = cells(notebook, "code")
    assert [cell["execution_count"] for cell in found] == list(range(1, len(found) + 1))
    outputs = [output for cell in found for output in cell["outputs"]]
    assert any("image/png" in output.get("data", ()) for output in outputs)
    for output in outputs:
        assert output["output_type"] in ("stream", "display_data", "execute_result")
        text = json.dumps({kind: shown for kind, shown in output.get("data", output).items() if kind != "image/png"})
        assert not re.search(r"<script|<iframe|Traceback|/tmp/|/home/|/root/", text)
    assert notebook.stat().st_size < 2**20


@every_notebook
def test_it_opens_in_colab_and_installs_what_is_missing(notebook: Path) -> None:
    first = "".join(cells(notebook, "markdown")[0]["source"])
    assert f"({COLAB}/{notebook.name})" in first
    install = cells(notebook, "code")[0]["source"]
    assert install == cells(NOTEBOOKS[0], "code")[0]["source"]
    assert 'find_spec("sparselens") is None' in "".join(install)


@every_notebook
def test_it_imports_public_names_and_defines_nothing(notebook: Path) -> None:
    nodes = list(ast.walk(code(notebook)))
    modules = [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    assert {name for name in modules if name and name.startswith("sparselens")} <= set(PUBLIC)
    defined = [node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    assert defined == (["draw"] if notebook.stem == WITH_A_TASK else [])


@every_notebook
def test_it_says_what_is_shown_and_what_is_not(notebook: Path) -> None:
    last = "".join(cells(notebook, "markdown")[-1]["source"])
    assert last.startswith("## What is shown, and what is ")
