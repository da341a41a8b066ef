"""Serves the page of an exploration on 127.0.0.1 to anyone who knows its full address.

Any page in the same browser could send requests to it. Every request must therefore name this host (against DNS
rebinding) and carry the random token of the address, and commands must come from this page (`Origin`). The server has
two paths and opens no files.
"""

import hmac
import json
import logging
import secrets
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from urllib.parse import parse_qs, urlsplit

from sparselens.analyses.figures.explore.page import live_page
from sparselens.files.reading import strict_json

HOST = "127.0.0.1"
LARGEST = 2**20  # bytes of a request body
SECONDS = 30  # time limit for reading a request


class Server(ThreadingMixIn, TCPServer):
    """Listens as soon as it is made, so that a port in use is reported before models are loaded; answers in `serve`.

    Raises:
        ValueError: the port is in use or not allowed.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int = 0) -> None:
        self.token = secrets.token_urlsafe(24)
        self.explored: Any = None
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise ValueError(f"port {port} cannot be used ({error.strerror}): choose another, or 0 for any") from error

    @property
    def port(self) -> int:
        """The port on which it listens."""
        return self.server_address[1]

    @property
    def address(self) -> str:
        """The address to open in a browser. It contains the secret token, so do not share it."""
        return f"http://{HOST}:{self.port}/?token={self.token}"

    @property
    def hosts(self) -> tuple[str, str]:
        """The host names by which a browser on this machine can address it."""
        return f"{HOST}:{self.port}", f"localhost:{self.port}"

    def serve(self, explored: Any) -> None:
        """Answer requests until `shutdown` or Ctrl-C.

        Args:
            explored: an Exploration, or an object with its `title`, `state` and `obey`
        """
        self.explored = explored
        self.serve_forever(poll_interval=0.2)


class _RefusedError(Exception):
    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride] - only Server creates handlers
    timeout = SECONDS
    server_version, sys_version = "sparselens", ""

    def do_GET(self) -> None:
        self._answer(self._page)

    def do_POST(self) -> None:
        self._answer(self._command)

    def _page(self) -> tuple[str, bytes]:
        parts = urlsplit(self.path)
        self._admit(parts.path, "/", parse_qs(parts.query).get("token", [""])[0])
        explored = self.server.explored
        return "text/html; charset=utf-8", live_page(explored.title, explored.state).encode()

    def _command(self) -> tuple[str, bytes]:
        self._admit(self.path, "/ask", self.headers.get("X-Sparselens-Token", ""))
        if self.headers.get("Origin") not in {f"http://{host}" for host in self.server.hosts}:
            raise _RefusedError(HTTPStatus.FORBIDDEN, "this request was sent by another page")
        if self.headers.get_content_type() != "application/json":
            raise _RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "want application/json")
        try:
            command = strict_json(self._body())
        except ValueError as error:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, f"not JSON: {error}") from error
        return "application/json", json.dumps(self.server.explored.obey(command), allow_nan=False).encode()

    def _admit(self, path: str, wanted: str, token: str) -> None:
        if self.headers.get_all("Host", []) not in [[host] for host in self.server.hosts]:
            raise _RefusedError(HTTPStatus.FORBIDDEN, f"this page is served only at {self.server.hosts[0]}")
        if path != wanted:
            raise _RefusedError(HTTPStatus.NOT_FOUND, "there is no such page")
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            raise _RefusedError(HTTPStatus.FORBIDDEN, "open the full address that `sparselens explore` printed")

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise _RefusedError(HTTPStatus.LENGTH_REQUIRED, "want a Content-Length header")
        if len(length) > 9 or int(length) > LARGEST:
            raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"want at most {LARGEST:,} bytes")
        return self.rfile.read(int(length))

    def _answer(self, make: Any) -> None:
        """Send the reply or, if making it fails, the error."""
        status = HTTPStatus.OK
        try:
            kind, body = make()
        except _RefusedError as refusal:
            status, kind, body = refusal.status, "application/json", _error(str(refusal))
        except Exception as error:
            logging.getLogger(__name__).exception("a request failed")
            text = f"{type(error).__name__}: {error}; see the terminal for details"
            status, kind, body = HTTPStatus.INTERNAL_SERVER_ERROR, "application/json", _error(text)
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": "frame-ancestors 'none'",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - named so by http.server
        """Log nothing, since request lines contain the token."""


def _error(text: str) -> bytes:
    return json.dumps({"error": text}).encode()
