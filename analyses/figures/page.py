"""A page as one HTML file that needs no network: a template of `pages/`, with its style, script and data inlined.

1. Scripts are ES modules, which `make lint` type-checks as such.
2. A page's script is the module of its name after all that it imports, without `import` and `export`, in one function:
   nothing is global. The pages of `explore/` share modules with these.
"""

import html
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

FIGURES = files("sparselens.analyses.figures")
FOLDER = FIGURES / "pages"
_IMPORT = re.compile(r'^import \{[^}]*\} from "(?:\./|\.\./(\w+)/)(\w+)\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=function|const|let)", re.MULTILINE)


def page(name: str, title: str, data: Any, **filling: str) -> str:
    """The page of that name as text.

    Args:
        filling: further places of the template
    """
    inlined = {"title": html.escape(title), "style": read(f"{name}.css"), "script": script(name)}
    return filled(read(f"{name}.html"), {**inlined, "data": script_json(data), **filling})


def filled(template: str, filling: Mapping[str, str]) -> str:
    """The template with every `{{place}}` filled, once: what looks like a place in the filling stays."""
    return re.sub(r"\{\{(\w+)\}\}", lambda place: filling[place[1]], template)


def script(name: str) -> str:
    """A module of `pages/` with everything that it imports, as one function."""
    return f'"use strict";\n(() => {{\n{modules(FOLDER.name, name)}}})();\n'


def modules(folder: str, name: str) -> str:
    """The text of a module and of all that it imports, each after what it needs; modules may import each other."""
    return "".join(_modules(folder, name, set()))


def _modules(folder: str, name: str, seen: set[tuple[str, str]]) -> list[str]:
    seen.add((folder, name))
    text = (FIGURES / folder / f"{name}.js").read_text(encoding="utf-8")
    needed = [(other or folder, module) for other, module in _IMPORT.findall(text)]
    before = [part for place in needed if place not in seen for part in _modules(*place, seen)]
    return [*before, _EXPORT.sub("", _IMPORT.sub("", text))]


def script_json(data: Any) -> str:
    """JSON that may stand in an HTML script block, whatever strings it holds."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def read(name: str) -> str:
    """A file of `pages/`."""
    return FOLDER.joinpath(name).read_text(encoding="utf-8")
