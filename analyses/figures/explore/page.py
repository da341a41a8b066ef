"""One script and one style sheet for the page in a browser, the widget in a notebook and the recorded page.

A page may run this script alone (its hash is in the policy) and, where it is live, ask the server that it came from.
"""

import base64
import hashlib
import html
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from sparselens.analyses.figures.page import modules, read, script_json
from sparselens.analyses.figures.palette import MODELS, NEGATIVE, POSITIVE, WEIGHT, Ink
from sparselens.analyses.figures.token_layout import COLOURS


def recorded_page(title: str, state: Mapping[str, Any], view: Mapping[str, Any], note: str = "") -> str:
    """A page that shows a state and asks the network for nothing."""
    return _page({"title": title, "state": state, "view": view, "note": note, "live": False}, "'none'")


def live_page(title: str, state: Mapping[str, Any]) -> str:
    """The page of the server that it came from."""
    return _page({"title": title, "state": state, "view": {}, "note": "", "live": True}, "'self'")


def framed(page: str) -> str:
    """A page inside a notebook, in a frame that may do nothing but run its own script."""
    return (
        '<iframe style="width:100%; height:60rem; border:0" sandbox="allow-scripts allow-downloads" '
        f'srcdoc="{html.escape(page)}"></iframe>'
    )


def script(start: str) -> str:
    """All the JavaScript, which ends with `start`."""
    return f'"use strict";\n{modules("explore", "explorer")}\n{start}\n'


def style() -> str:
    """All the CSS, with the colours of all figures: the first for white, the second for dark paper."""
    inks = {**MODELS, "positive": POSITIVE, "negative": NEGATIVE, "weight": WEIGHT}
    inks |= {f"head{i}": Ink(light, dark, "") for i, (light, dark) in enumerate(COLOURS)}
    rules = "".join(f" --{name}: light-dark({ink.light}, {ink.dark});" for name, ink in inks.items())
    return f".explore {{{rules}\n{read('patterns.css')}}}\n{_read('explore.css')}"


def _page(data: Mapping[str, Any], connect: str) -> str:
    code = script("startPage();")
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    filled = {
        "title": html.escape(str(data["title"])),
        "policy": f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data: blob:; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'",
        "style": style(),
        "data": script_json(data),
        "script": code,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: filled[match[1]], _read("explore.html"))


def _read(name: str) -> str:
    return files("sparselens.analyses.figures.explore").joinpath(name).read_text(encoding="utf-8")
