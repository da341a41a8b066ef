"""Settings of the documentation: `make docs` builds it into docs/_build/html, without the network.

Pages are Markdown; notebooks are shown with the outputs that they are stored with; the pages of the API are written
here, one for each room, from the same `.pyi` lists that the imports read, and those of the studies, one for each
comparison that ships.
"""

import html
import importlib
import re
import shutil
from pathlib import Path
from typing import Any

import sparselens
from sparselens.analyses import load_comparison
from sparselens.analyses.comparison.finding import finding
from sparselens.analyses.comparison.places import SHIPPED, shipped_comparisons

HERE = Path(__file__).parent

project = "sparselens"
author = "sparselens authors"
release = sparselens.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
html_theme = "furo"
html_title = f"sparselens {release}"
html_theme_options = {"source_repository": "https://github.com/sparselens/sparselens/", "source_directory": "docs/"}
exclude_patterns = ["_build", "extra"]
html_extra_path = ["extra"]

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
IMPORT = re.compile(r"^from \.([\w.]+) import (\w+) as \w+", re.MULTILINE)


def public_names() -> dict[str, list[str]]:
    """What users import, by its room: `sparselens.sparsify` under gates, and so on."""
    found: dict[str, list[str]] = {room: [] for room in ROOMS}
    for package in ("sparselens", "analyses"):
        for module, name in IMPORT.findall((HERE.parent / package / "__init__.pyi").read_text(encoding="utf-8")):
            room = module.removeprefix("analyses.").split(".")[0]
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


STUDY = """{title}
{line}

.. raw:: html

   {told}
   <p><a href="../../reports/{name}.html">The report</a>: one file to read and explore offline.</p>

.. code-block:: python

   sl.load_comparison("{name}").viewer().show()  # with `import sparselens as sl`; also .table() and .figures(folder)

.. raw:: html

   <iframe src="../../reports/{name}.html" title="Report" style="width: 100%; height: 40rem; border: 0"></iframe>

All numbers
-----------

.. raw:: html

   <div style="overflow-x: auto">{table}</div>

Figures
-------

.. raw:: html

   {figures}
"""


def write_studies() -> None:
    """One page for each comparison that ships, and their list; what is newer than all that it is made of stays."""
    pages = HERE / "studies"
    for name in shipped_comparisons():
        page, report = pages / f"{name}.rst", HERE / "extra" / "reports" / f"{name}.html"
        if not page.exists() or page.stat().st_mtime < newest(SHIPPED / f"{name}.zip"):
            write_study(name, page, report)
    for left in {*pages.rglob("*.rst")} - {pages / f"{name}.rst" for name in shipped_comparisons()}:
        left.unlink()
    listed = "\n".join(f"   {name}" for name in shipped_comparisons())
    text = "Comparisons that ship with sparselens, by model and task: `sl.load_comparison(name)` opens them offline."
    (pages / "index.rst").write_text(f"Studies\n=======\n\n{text}\n\n.. toctree::\n\n{listed}\n", encoding="utf-8")


def newest(shipped: Path) -> float:
    """When the last of all that a page is made of was changed."""
    code = [file for file in (HERE.parent / "analyses").rglob("*") if file.suffix in (".py", ".js", ".css", ".html")]
    return max(file.stat().st_mtime for file in (shipped, HERE / "conf.py", *code))


def write_study(name: str, page: Path, report: Path) -> None:
    """The finding, the report, the table and the figures of one comparison."""
    comparison = load_comparison(name)
    figures = re.findall(r"<figure.*?</figure>", comparison.save_html(report).read_text(encoding="utf-8"), re.DOTALL)
    lines = (finding(comparison), comparison.about.description, *comparison.about.notes)
    title = f"{' and '.join(comparison.about.names)}: {name.split('/')[1]}"
    text = STUDY.format(
        title=title,
        line="=" * len(title),
        name=name,
        told="".join(f"<p>{html.escape(line)}</p>" for line in lines),
        table=comparison.table("html"),
        figures="\n   ".join(figures),
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")


def setup(app: Any) -> None:
    """Absolute values are no substitutions: |score| stays as it is."""

    def escape(_app: Any, _what: str, _name: str, _of: Any, _options: Any, lines: list[str]) -> None:
        lines[:] = [line.replace("|", r"\|") if ">>>" not in line else line for line in lines]

    app.connect("autodoc-process-docstring", escape)


write_api()
write_studies()
copy_notebooks()
