"""Settings of the documentation: `make docs` builds it into docs/_build/html, without the network.

Pages are Markdown; notebooks are shown with the outputs that they are stored with; the pages of the API are written
here, one for each room, from the same `.pyi` lists that the imports read.
"""

import importlib
import re
import shutil
from pathlib import Path
from typing import Any

import sparselens

HERE = Path(__file__).parent

project = "sparselens"
author = "sparselens authors"
release = sparselens.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
html_theme = "furo"
html_title = f"sparselens {release}"
html_theme_options = {"source_repository": "https://github.com/sparselens/sparselens/", "source_directory": "docs/"}
exclude_patterns = ["_build"]

nb_execution_mode = "off"  # `make notebooks` has run them
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = [
    "misc.highlighting_failure",
    "myst.xref_missing",
]  # files that are no pages; tests/test_readme.py finds dead links

default_role = "code"  # a name in single backquotes, as in Markdown
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

ROOMS = {
    "gates": "Gates",
    "training": "Post-training",
    "models": "Models and folders",
    "prompts": "Tasks, pairs and metrics",
    "circuits": "Graphs and circuits",
    "patching": "Patching",
    "attribution": "Attribution",
    "analyses circuits": "Faithful circuits",
    "features": "Features",
    "sparsity": "Sparsity",
    "comparison": "Comparison",
    "figures": "Figures and pages",
    "engine": "Several processes",
}
IMPORT = re.compile(r"^from \.([\w.]+) import (\w+) as \w+$", re.MULTILINE)


def public_names() -> dict[str, list[str]]:
    """What users import, by its room: `sparselens.sparsify` under gates, and so on."""
    found: dict[str, list[str]] = {room: [] for room in ROOMS}
    for package in ("sparselens", "analyses"):
        for module, name in IMPORT.findall((HERE.parent / package / "__init__.pyi").read_text(encoding="utf-8")):
            room = module.split(".")[0]
            room = "analyses circuits" if (package, room) == ("analyses", "circuits") else room
            found[room].append(f"sparselens.{'analyses.' * (package == 'analyses')}{name}")
    return found


def entry(name: str) -> str:
    """The directive that shows one public name."""
    module, _, attribute = name.rpartition(".")
    what = getattr(importlib.import_module(module), attribute)
    kind = "class" if isinstance(what, type) else "module" if type(what).__name__ == "module" else "function"
    options = "   :members:\n" if kind != "function" else ""
    return f".. auto{kind}:: {what.__name__ if kind == 'module' else name}\n{options}"


def write_api() -> None:
    """One page for each room, and their list."""
    api = HERE / "api"
    shutil.rmtree(api, ignore_errors=True)
    api.mkdir()
    pages = []
    for room, names in public_names().items():
        page = room.replace(" ", "_")
        pages.append(page)
        title = ROOMS[room]
        entries = "\n".join(entry(name) for name in names)
        (api / f"{page}.rst").write_text(f"{title}\n{'=' * len(title)}\n\n{entries}", encoding="utf-8")
    listed = "\n".join(f"   {page}" for page in pages)
    (api / "index.rst").write_text(f"API reference\n=============\n\n.. toctree::\n\n{listed}\n", encoding="utf-8")


def copy_notebooks() -> None:
    """The notebooks, as they are stored."""
    shutil.rmtree(HERE / "notebooks", ignore_errors=True)
    shutil.copytree(HERE.parent / "notebooks", HERE / "notebooks", ignore=shutil.ignore_patterns(".*"))


def setup(app: Any) -> None:
    """Absolute values are no substitutions: |score| stays as it is."""

    def escape(_app: Any, _what: str, _name: str, _of: Any, _options: Any, lines: list[str]) -> None:
        lines[:] = [line.replace("|", r"\|") if ">>>" not in line else line for line in lines]

    app.connect("autodoc-process-docstring", escape)


write_api()
copy_notebooks()
