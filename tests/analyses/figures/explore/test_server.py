"""Tests of who may use the server (this machine, this page, with the token), and that errors are reported."""

import http.client
import json
import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from sparselens.analyses.figures.explore.server import LARGEST, Server


class Stub:
    """Stands in for an exploration."""

    def __init__(self) -> None:
        self.title, self.state = "stub", {"prompt": "</script>"}

    def obey(self, command: Any) -> dict[str, Any]:
        if command == "break":
            raise KeyError("inside")
        return {"heard": command}


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve, args=(Stub(),))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: Server, method: str, path: str, body: bytes = b"", **headers: str | None) -> tuple[int, str, Any]:
    """Status, body and headers. A header that is None is left out."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest(method, path, skip_host=True)
    given = {
        "Host": server.hosts[0],
        "Content-Length": str(len(body)),
        **{n.replace("_", "-"): v for n, v in headers.items()},
    }
    for name, value in given.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders(body)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text, response.headers


def command(server: Server, body: Any, **changes: str | None) -> tuple[int, Any]:
    headers = {
        "X_Sparselens_Token": server.token,
        "Origin": f"http://{server.hosts[0]}",
        "Content_Type": "application/json",
        **changes,
    }
    status, text, _ = ask(
        server, "POST", "/ask", body if isinstance(body, bytes) else json.dumps(body).encode(), **headers
    )
    return status, json.loads(text)


def test_it_listens_on_loopback_alone(server: Server):
    assert server.socket.getsockname()[0] == "127.0.0.1"
    assert server.address.startswith(f"http://127.0.0.1:{server.port}/?token=") and len(server.token) >= 32


def test_the_page_comes_with_its_token(server: Server):
    status, text, headers = ask(server, "GET", f"/?token={server.token}")
    assert status == 200 and '"prompt":"\\u003c/script\\u003e"' in text and "connect-src 'self'" in text
    assert server.token not in text
    assert headers["Cache-Control"] == "no-store" and headers["Referrer-Policy"] == "no-referrer"
    assert headers["Content-Security-Policy"] == "frame-ancestors 'none'"


@pytest.mark.parametrize("path", ["/", "/?token=", "/?token=x", "/?token=%C3%A9"])
def test_no_page_without_the_token(server: Server, path: str):
    status, text, _ = ask(server, "GET", path)
    assert status == 403 and "open the full address" in text and "stub" not in text


@pytest.mark.parametrize("path", ["/ask", "/etc/passwd", "/../session.py", "/explorer.js", "/favicon.ico"])
def test_there_is_nothing_else(server: Server, path: str):
    assert ask(server, "GET", f"{path}?token={server.token}")[0] == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "", None])
def test_other_hosts_are_refused(server: Server, host: str | None):
    host = host and host.format(port=server.port)
    assert ask(server, "GET", f"/?token={server.token}", Host=host)[0] == 403
    assert command(server, {}, Host=host)[0] == 403


def test_localhost_is_this_machine(server: Server):
    assert ask(server, "GET", f"/?token={server.token}", Host=f"localhost:{server.port}")[0] == 200
    origin = f"http://localhost:{server.port}"
    assert command(server, 1, Host=f"localhost:{server.port}", Origin=origin) == (200, {"heard": 1})


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1", None]
)
def test_other_pages_are_refused(server: Server, origin: str | None):
    status, reply = command(server, {}, Origin=origin and origin.format(port=server.port))
    assert status == 403 and "another page" in reply["error"]


@pytest.mark.parametrize("token", ["", "x", None])
def test_no_command_without_the_token(server: Server, token: str | None):
    assert command(server, {}, X_Sparselens_Token=token)[0] == 403


def test_commands_are_heard_and_answered(server: Server):
    assert command(server, {"do": "é"}) == (200, {"heard": {"do": "é"}})


@pytest.mark.parametrize("body", [b"", b"{", b'{"a": NaN}', b"\xff", b"[" * 100_000])
def test_what_is_not_json_is_refused(server: Server, body: bytes):
    status, reply = command(server, body)
    assert status == 400 and reply["error"].startswith("not JSON")


def test_forms_of_other_pages_are_refused(server: Server):
    assert command(server, {}, Content_Type="text/plain")[0] == 415


@pytest.mark.parametrize(
    ("length", "status"), [(None, 411), ("x", 411), ("-1", 411), (str(LARGEST + 1), 413), ("9" * 99, 413)]
)
def test_bodies_are_small_and_of_known_length(server: Server, length: str | None, status: int):
    assert command(server, b"", Content_Length=length)[0] == status


def test_a_fault_is_told_and_logged(server: Server, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.ERROR):
        status, reply = command(server, "break")
    assert status == 500 and "KeyError: 'inside'" in reply["error"]
    assert "KeyError" in caplog.text and server.token not in caplog.text
    assert command(server, 1)[0] == 200  # the server still works


def test_a_port_that_is_taken_is_told_at_once():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} cannot be used"):
            Server(port)
