"""Builds the live page, the notebook widget and the recorded page from one script and one style sheet.

A page's Content-Security-Policy allows only this script, by its hash, and for a live page requests to its own server.
"""

import base64
import hashlib
import html
from collections.abc import Mapping
from typing import Any

from sparselens.analyses.figures.page import filled, modules, read, script_json
from sparselens.analyses.figures.palette import MODELS, NEGATIVE, POSITIVE, WEIGHT, Ink
from sparselens.analyses.figures.token_layout import COLOURS


def recorded_page(title: str, state: Mapping[str, Any], view: Mapping[str, Any], note: str = "") -> str:
    """A page that shows one state and makes no network requests."""
    return _page({"title": title, "state": state, "view": view, "note": note, "live": False}, "'none'")


def live_page(title: str, state: Mapping[str, Any]) -> str:
    """The page that sends its commands to the server that delivered it."""
    return _page({"title": title, "state": state, "view": {}, "note": "", "live": True}, "'self'")


def framed(page: str) -> str:
    """A page inside a notebook, in a sandboxed frame that may only run scripts and save files."""
    return (
        '<iframe style="width:100%; height:60rem; border:0" sandbox="allow-scripts allow-downloads" '
        f'srcdoc="{html.escape(page)}"></iframe>'
    )


def script(start: str) -> str:
    """All the JavaScript, followed by the statement `start`."""
    return f'"use strict";\n{modules("explore", "explorer")}\n{start}\n'


def style() -> str:
    """All the CSS, with the palette as variables for light and dark mode."""
    inks = {**MODELS, "positive": POSITIVE, "negative": NEGATIVE, "weight": WEIGHT}
    inks |= {f"head{i}": Ink(light, dark, "") for i, (light, dark) in enumerate(COLOURS)}
    rules = "".join(f" --{name}: light-dark({ink.light}, {ink.dark});" for name, ink in inks.items())
    return f".explore {{{rules}\n{read('patterns.css')}}}\n{read('explore.css', 'explore')}"


def _page(data: Mapping[str, Any], connect: str) -> str:
    code = script("startPage();")
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    filling = {
        "title": html.escape(str(data["title"])),
        "policy": f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data: blob:; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'",
        "style": style(),
        "data": script_json(data),
        "script": code,
    }
    return filled(read("explore.html", "explore"), filling)
