"""`sparselens explore`: what it serves, what it leaves behind, what it refuses before anything slow."""

import json
import socket
import webbrowser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from sparselens import cli
from sparselens.analyses.figures.explore.server import Server
from sparselens.models import folder


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.build_app(), ["explore", *arguments], catch_exceptions=False)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses that a browser was asked to open."""
    addresses: list[str] = []
    monkeypatch.setattr(webbrowser, "open", addresses.append)
    return addresses


def test_it_serves_until_it_is_stopped_and_leaves_the_last_state(
    monkeypatch: pytest.MonkeyPatch, opened: list[str], tmp_path: Path
):
    served: list[Any] = []

    def serve(server: Server, found: Any) -> None:
        served.append(server.address)
        found.obey({"do": "cut", "names": ["m0"]})
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve", serve)
    done = invoke("--model", "stories260k-sparse", "--prompt", "Lily saw", "--out", str(tmp_path), "--json")
    assert done.exit_code == 0 and opened == served
    assert served[0].replace("\n", "") in done.output.replace("\n", "").replace(" ", "").replace("│", "")
    state = json.loads((tmp_path / "explore.json").read_text())
    assert state == json.loads(done.stdout.splitlines()[-1])
    assert (state["prompt"], state["cuts"]) == ("Lily saw", ["m0"])
    assert "Lily" in (tmp_path / "explore.html").read_text()


def test_without_a_browser_and_with_two_models(monkeypatch: pytest.MonkeyPatch, opened: list[str]):
    shown: list[Any] = []
    monkeypatch.setattr(Server, "serve", lambda _, found: shown.append(found))
    done = invoke("--model", "stories260k-sparse", "--dense", "stories260k", "--no-browser")
    assert done.exit_code == 0 and opened == []
    assert [model["name"] for model in shown[0].state["models"]] == ["dense", "sparse"]


def test_a_taken_port_is_refused_before_the_model_is_opened(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(folder, "load", lambda name: pytest.fail("opened a model first"))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ValueError, match="cannot be used"):
            invoke("--model", "stories260k-sparse", "--port", str(other.getsockname()[1]))
    assert invoke("--model", "stories260k-sparse", "--port", "70000").exit_code == 2
