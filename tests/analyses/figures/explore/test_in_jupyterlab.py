"""Tests of `explore` in JupyterLab in a real browser: the widget appears, a click cuts, and the numbers change."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chromium import browser, needs_chromium

jupyterlab = pytest.importorskip(
    "jupyterlab", reason="drives JupyterLab, which is not installed: pip install jupyterlab"
)
pytest.importorskip("anywidget", reason="the widget needs anywidget, which is not installed")
pytestmark = [pytest.mark.slow, needs_chromium]

CELL = (
    "import sparselens as sl\n"
    "from sparselens import analyses\n"
    "analyses.explore(sl.load('stories260k-sparse'), prompt='Lily saw a big dog. She was')"
)
OUTSIDE = Path(__file__).resolve().parents[4]  # this project, outside the folder that JupyterLab runs in


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """The address of a notebook with one cell in a fresh JupyterLab."""
    cell = {"cell_type": "code", "execution_count": None, "id": "a", "metadata": {}, "outputs": [], "source": CELL}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "n.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    port, token = free_port(), secrets.token_hex(8)
    homes = {name: str(tmp_path / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")}
    share = Path(jupyterlab.__file__).parents[4] / "share" / "jupyter"  # may be another environment that this one sees
    homes |= {"JUPYTER_PATH": str(share), "JUPYTERLAB_DIR": str(share / "lab")}
    homes |= {"IPYTHONDIR": str(tmp_path / "ipython"), "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings")}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.port={port}",
        "--ServerApp.ip=127.0.0.1", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={tmp_path / 'work'}",
        f"--LabApp.workspaces_dir={tmp_path / 'workspaces'}", "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | homes, cwd=OUTSIDE)
    try:
        end = time.monotonic() + 50
        while not _answers(port):
            assert process.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()[-2000:]
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/lab/tree/n.ipynb?token={token}&reset"
    finally:
        process.terminate()
        process.wait(30)


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_a_click_in_jupyterlab_cuts_an_edge_and_the_numbers_change(lab: str, tmp_path: Path):
    with browser(tmp_path / "profile") as page:
        page.look(1500, 1000)
        page.open(lab)
        page.wait("document.querySelector('.jp-Notebook .jp-CodeCell .cm-content')")
        page.wait("document.querySelector('#jp-main-statusbar').textContent.includes('| Idle')")
        page.click(".jp-NotebookPanel-toolbar [data-jp-item-name=run]")
        page.wait("document.querySelector('.jp-OutputArea .explore .edge')")  # the live widget, not the frame below it
        answers = "document.querySelector('.explore .answer').textContent"
        before = page.get(answers)
        assert "→" not in before and page.get("document.querySelectorAll('.explore.recorded').length") == 0
        drawn = page.get("document.querySelectorAll('.explore .drawing .edge').length")
        name = page.get("document.querySelector('.explore .edge').dataset.name")
        page.get("document.querySelector('.explore .edge').focus()")
        page.press("Enter")
        page.wait("document.querySelector('.explore .parts .cut')")
        assert page.get("document.querySelector('.explore .parts .cut').textContent") == name
        page.click(".explore g.part[data-name=p3]")  # with the mouse, a token
        page.wait("document.querySelectorAll('.explore .parts .cut').length === 2")
        after = page.get(answers)
        assert after != before and "→" in after and "KL divergence" in after
        assert page.get("document.querySelectorAll('.explore .drawing .edge').length") >= drawn - 1
