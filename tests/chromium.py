"""A page in Chromium, used as a person would: opened, clicked, typed into, looked at, with the network off.

Speaks the DevTools protocol over two pipes, so that it needs nothing but the browser.
"""

import base64
import fcntl
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
_FLAGS = (
    "--headless", "--no-sandbox", "--no-first-run", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-quic", "--hide-scrollbars", "--remote-debugging-pipe",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
_PATIENCE = 60  # seconds; machines are slow at times
_KEYS = {  # code, and the text that it types
    "Enter": (13, "\r"), " ": (32, " "), "p": (80, "p"), "z": (90, ""), "Tab": (9, ""), "Escape": (27, ""),
    "ArrowLeft": (37, ""), "ArrowUp": (38, ""), "ArrowRight": (39, ""), "ArrowDown": (40, ""),
}  # fmt: skip


class Page:
    """One open page."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive = os.fdopen(send, "wb"), os.fdopen(receive, "rb")
        self._last, self._waiting = 0, b""
        self.complaints: list[str] = []  # errors in the page's script, what its policy refused, failed requests
        self.requests: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, address: str) -> None:
        self._call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def get(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until an expression is true."""
        end = time.monotonic() + _PATIENCE
        while not self.get(f"Boolean({condition})"):
            assert time.monotonic() < end, f"still not: {condition}"
            time.sleep(0.02)

    def click(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        """With the mouse: at a share of the width and height of the first element that matches."""
        self.drag(selector, 0, 0, x, y)

    def drag(self, selector: str, right: float, down: float, x: float = 0.5, y: float = 0.5) -> None:
        """Hold the mouse down there and let go so many pixels further on."""
        place = self._place(selector, x, y)
        self._mouse("mouseMoved", place)
        self._mouse("mousePressed", place, button="left", clickCount=1)
        for part in (0.5, 1) if right or down else ():
            self._mouse("mouseMoved", place, part * right, part * down, button="left", buttons=1)
        self._mouse("mouseReleased", place, right, down, button="left", clickCount=1)

    def wheel(self, selector: str, up: float, control: bool = False, x: float = 0.5, y: float = 0.5) -> None:
        """Turn the mouse's wheel there, away from oneself."""
        turned = {"deltaX": 0, "deltaY": -up, "modifiers": 2 * control}
        self._mouse("mouseWheel", self._place(selector, x, y), **turned)

    def _place(self, selector: str, x: float, y: float) -> tuple[float, float]:
        element = f"document.querySelector({json.dumps(selector)})"
        self.get(f"{element}.scrollIntoView({{block: 'center', inline: 'center'}})")
        box = self.get(f"{element}.getBoundingClientRect().toJSON()")
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def _mouse(self, kind: str, place: tuple[float, float], right: float = 0, down: float = 0, **more: Any) -> None:
        self._call("Input.dispatchMouseEvent", type=kind, x=place[0] + right, y=place[1] + down, **more)

    def press(self, key: str, control: bool = False, shift: bool = False) -> None:
        """One key, to what has the focus."""
        code, text = _KEYS.get(key, (0, ""))
        event = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 2 * control + 8 * shift}
        self._call("Input.dispatchKeyEvent", type="keyDown", text=text, **event)
        self._call("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        self._call("Input.insertText", text=text)

    def look(self, width: int, height: int = 900, dark: bool = False, paper: bool = False) -> None:
        """Another size of window, colour scheme or medium."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", media="print" if paper else "", features=scheme)

    def downloads(self, folder: Path) -> None:
        """Where files that the page offers are saved."""
        self._call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def saved(self, file: Path) -> Path:
        """A file, as soon as its download is there."""
        end = time.monotonic() + _PATIENCE
        while not file.exists():
            assert time.monotonic() < end, f"{file.name} has not come"
            time.sleep(0.02)
        return file

    def choose_file(self, selector: str, file: Path) -> None:
        """What a person picks in the dialogue of a file field."""
        found = self._call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        self._call("DOM.setFileInputFiles", files=[str(file)], objectId=found["result"]["objectId"])

    def picture(self, file: Path) -> None:
        """The whole page as a PNG, below the fold, too."""
        found = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(found["data"]))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if hasattr(self, "_session") and not method.startswith("Browser."):
            message["sessionId"] = self._session
        self._send.write(json.dumps(message).encode() + b"\0")
        self._send.flush()
        while True:
            heard = self._next()
            if heard.get("id") == self._last:
                assert "error" not in heard, heard["error"]
                return heard["result"]
            self._note(heard.get("method", ""), heard.get("params", {}))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._waiting:
            piece = os.read(self._receive.fileno(), 2**16)
            assert piece, "Chromium has gone"
            self._waiting += piece
        message, _, self._waiting = self._waiting.partition(b"\0")
        return json.loads(message)

    def _note(self, method: str, about: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(about["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.complaints.append(about["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and about["type"] == "error":
            self.complaints.append(json.dumps(about["args"]))


def said_in_chromium(page: Path, profile: Path, *flags: str) -> tuple[dict[str, Any], str]:
    """What the page's script left in `data-said`, and what the browser logged. No name is resolved: no network."""
    quiet = (flag for flag in _FLAGS if flag not in ("--hide-scrollbars", "--remote-debugging-pipe"))
    done = subprocess.run(
        [str(CHROMIUM), *quiet, f"--user-data-dir={profile}", "--enable-logging=stderr", *flags, "--dump-dom",
         page.as_uri()],
        capture_output=True, text=True, timeout=_PATIENCE, check=True,
    )  # fmt: skip
    return json.loads(unquote(re.findall(r'data-said="([^"]*)"', done.stdout)[0])), done.stderr


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Chromium with a fresh profile, and an empty page in it."""
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    # Chromium reads from 3 and writes to 4; moved out of the way first, since one of the pipes may be there already.
    # Others close when it starts, as all of Python's do; `pass_fds` would want 3 and 4 to be open here, too.
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (theirs_in, theirs_out)]
    process = subprocess.Popen(
        [str(CHROMIUM), *_FLAGS, f"--user-data-dir={profile}"],
        preexec_fn=lambda: [os.dup2(end, number) for number, end in enumerate(high, 3)],
        close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for end in (theirs_in, theirs_out, *high):
        os.close(end)
    page = None
    try:
        page = Page(ours_out, ours_in)
        yield page
    finally:
        for end in (page._send, page._receive) if page else ():
            end.close()
        process.terminate()
        process.wait(_PATIENCE)
