"""Builds a page as one HTML file that needs no network: a template from `pages/` with style, script and data inlined.

Scripts are written as ES modules, which `make lint` type-checks. A page's script is the module of the same name, after
all modules that it imports, without `import` and `export` and inside one function, so that nothing is global. The page
of `explore/` shares some of these modules.
"""

import html
import json
import re
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from sparselens.files.whole import write_file

FIGURES = files("sparselens.analyses.figures")
FOLDER = FIGURES / "pages"
_IMPORT = re.compile(r'^import \{[^}]*\} from "(?:\./|\.\./(\w+)/)(\w+)\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=function|const|let)", re.MULTILINE)


def page(name: str, title: str, data: Any, **filling: str) -> str:
    """The HTML of the page `name`.

    Args:
        filling: values for further placeholders of the template
    """
    inlined = {"title": html.escape(title), "style": read(f"{name}.css"), "script": script(name)}
    return filled(read(f"{name}.html"), {**inlined, "data": script_json(data), **filling})


def write_page(path: str | Path, make: Callable[[], str]) -> Path:
    """Write a page, either completely or not at all.

    Raises:
        ValueError: the name has the suffix of another kind of file.
    """
    path = Path(path)
    if path.suffix.lower() not in ("", ".html", ".htm"):
        raise ValueError(f"a page is HTML: want a name that ends in .html, not {path.name}")
    return write_file(path, make().encode())


def filled(template: str, filling: Mapping[str, str]) -> str:
    """Replace every `{{placeholder}}` of the template; inserted text that looks like a placeholder is kept as it is."""
    return re.sub(r"\{\{(\w+)\}\}", lambda place: filling[place[1]], template)


def script(name: str) -> str:
    """A module of `pages/` and everything that it imports, wrapped in one function."""
    return f'"use strict";\n(() => {{\n{modules(FOLDER.name, name)}}})();\n'


def modules(folder: str, name: str) -> str:
    """The code of a module and of all that it imports, dependencies first; circular imports are allowed."""
    return "".join(_modules(folder, name, set()))


def _modules(folder: str, name: str, seen: set[tuple[str, str]]) -> list[str]:
    seen.add((folder, name))
    text = read(f"{name}.js", folder)
    needed = [(other or folder, module) for other, module in _IMPORT.findall(text)]
    before = [part for place in needed if place not in seen for part in _modules(*place, seen)]
    return [*before, _EXPORT.sub("", _IMPORT.sub("", text))]


def script_json(data: Any) -> str:
    """JSON that is safe inside an HTML script block, whatever strings it contains."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def read(name: str, folder: str = FOLDER.name) -> str:
    """The text of a file in `pages/`, or in another folder next to it."""
    return (FIGURES / folder / name).read_text(encoding="utf-8")
