"""Notebooks are stored with what they show (`make notebooks`); here each runs from top to bottom, on fewer prompts."""

import ast
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import plotly.io
import pytest
import transformers.utils.logging
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from traitlets import Type
from traitlets.config import Config

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
COLAB = "https://colab.research.google.com/github/sparselens/sparselens/blob/main/notebooks"
PUBLIC = (
    "sparselens",
    "sparselens.tasks",
    "sparselens.tasks.addition",
    "sparselens.training.text",
)  # what a story may import
WITH_A_TASK = "4_your_own_task"  # the one that defines something: ten lines
QUICK = 'method="eap", prune_runs=0'  # of `compare`
SMALLER = {  # by notebook: what takes its time, and what is tried here
    "0_tour": {"n=40": "n=8"},
    "1_post_train": {
        "max_new_tokens=63": "max_new_tokens=15", "steps=60": "steps=4", "warmup=5": "warmup=1",
        "evaluate_every=10": "evaluate_every=2",
    },
    "2_head_by_head": {"n=60": "n=16"},
    "3_paper_figures": {"n=8": f"n=4, {QUICK}", "ioi.figures(": "addition.figures("},
    "4_your_own_task": {"n=10": f"n=4, {QUICK}", "n=40": "n=12", "[:10]": "[:4]"},
    "5_transformerlens_habits": {"tokenizer, 60)": "tokenizer, 16)"},
}  # fmt: skip

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
        assert not re.search(r"<script|<iframe|Traceback|not found|/tmp/|/home/|/root/", text)
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


# -- run


class Unprinted(DisplayHook):
    """Leaves what a cell ends with to the test."""

    def __call__(self, result: Any = None) -> None:
        self.fill_exec_result(result)


class Shell(InteractiveShell):
    """Runs cells as a notebook does, magics included, and keeps what they display."""

    displayhook_class = Type(Unprinted)
    display_pub_class = Type(CapturingDisplayPublisher)
    system = InteractiveShell.system_raw


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setattr(plotly.io.renderers, "default", "plotly_mimetype")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # its commands
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # what the shell changes and leaves behind
    for name in ("display", "__IPYTHON__"):
        monkeypatch.setattr(f"builtins.{name}", None, raising=False)
    shell = Shell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    shell.display_formatter.active_types = shell.display_formatter.format_types
    yield shell
    Shell.clear_instance()
    transformers.utils.logging.enable_progress_bar()  # which stories do without
    datasets.enable_progress_bars()


def shown(shell: Shell, source: str) -> set[str]:
    """The kinds of what a cell shows."""
    shell.display_pub.outputs.clear()
    ran = shell.run_cell(source)
    ran.raise_error()
    assert shell.user_ns.get("_exit_code", 0) == 0, source
    result, _ = shell.display_formatter.format(ran.result)  # of plotly's figures it is empty: they display themselves
    return {kind(data) for data in (result, *(output["data"] for output in shell.display_pub.outputs))}


def kind(data: dict[str, Any]) -> str:
    """Pictures are stored of pages, too."""
    if {"image/png", "application/vnd.plotly.v1+json"} & set(data) or "<iframe" in data.get("text/html", ""):
        return "picture"
    return "table" if {"text/html", "text/markdown"} & set(data) else "text"


@every_notebook
def test_every_cell_shows_what_is_stored(notebook: Path, shell: Shell, capfd: pytest.CaptureFixture[str]) -> None:
    smaller = SMALLER[notebook.stem]
    unseen = set(smaller)
    for cell in cells(notebook, "code"):
        source = "".join(cell["source"])
        unseen -= {large for large in smaller if large in source}
        for large, small in smaller.items():
            source = source.replace(large, small)
        made = shown(shell, source)
        outputs = [output for output in cell["outputs"] if output["output_type"] != "stream"]
        assert {kind(output["data"]) for output in outputs} <= made, source
        assert capfd.readouterr().out or len(outputs) == len(cell["outputs"]), source
    assert not unseen, "what was to be made smaller is in the notebook no more"
