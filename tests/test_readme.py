"""The Python of the README and of the guides runs as it stands, with fewer steps and prompts; no link is dead."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import sparselens as sl
from sparselens import analyses
from sparselens.models.provenance import origin

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("**/*.md"))
GUIDES = [page for page in DOCS if "```python" in page.read_text(encoding="utf-8")]
COMPARED: dict[Any, analyses.Comparison] = {}
compare = analyses.compare
PAGES = (README, ROOT / "RESULTS.md", ROOT / "CONTRIBUTING.md", *DOCS)


def run(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page's Python leaves behind, its blocks one after the other."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    shorter = code.replace("steps=3000", "steps=2").replace("n=200", "n=20")
    shorter = re.sub(r"(analyses\.compare\(.*), n=\d+", r'\1, n=6, method="eap", prune_runs=0', shorter)
    monkeypatch.setattr(analyses, "compare", compare_once)
    exec(compile(shorter, str(page), "exec"), names)
    return names


def compare_once(dense: Any, sparse: Any, task: sl.Task, **options: Any) -> analyses.Comparison:
    """`compare`; pages that ask for the same share the answer."""
    asked = (origin(dense), origin(sparse), task.name, str(options | {"progress": False}))
    if asked not in COMPARED:
        COMPARED[asked] = compare(dense, sparse, task, **options)
    return COMPARED[asked]


def test_the_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run(README, tmp_path, monkeypatch)
    assert "steps=3000" in README.read_text(encoding="utf-8")
    assert names["sl"].is_sparse(names["sparse"])
    for written in (
        "sparse-model/model.safetensors",
        "report.html",
        "figures/fig4b_circuits.pdf",
        "numbers/comparison.json",
    ):
        assert (tmp_path / written).exists(), written


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_the_guides_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(page, tmp_path, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_it_names_exists(page: Path) -> None:
    """Notebooks and the API's pages are put beside the documentation when it is built."""
    named = re.findall(r"\]\(((?!http)[^)#]+)\)", page.read_text(encoding="utf-8"))
    made = re.compile(r"^(\.\./)?(notebooks|api|studies)/")
    dead = [path for path in named if not (page.parent / path).exists()]
    assert [path for path in dead if not made.match(path)] == []
    assert [path for path in dead if "notebooks/" in path and not (ROOT / "notebooks" / Path(path).name).exists()] == []


def headings(page: Path) -> set[str]:
    """What can follow a page's # in a link."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_row_of_the_features_has_its_call_and_its_picture() -> None:
    page = ROOT / "docs" / "features.md"
    rows = [line.split(" | ") for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 20
    for feature, ours, *_ in rows:
        calls = re.findall(r"`(?:sl\.)?(\w+)[^`]*`", ours)
        known = {"TASKS", "save_html", "per_prompt"}
        assert calls and (hasattr(sl, calls[0]) or hasattr(analyses, calls[0]) or calls[0] in known), feature
        if "circuits of transcoder features" in feature:
            continue  # their own pages draw them
        links = re.findall(r"\]\(([^)]+)\)", feature + ours)
        assert links, feature
        for link in links:
            path, _, heading = link.partition("#")
            where = page if not path else ROOT / path if path.startswith("notebooks/") else page.parent / path
            assert not heading or heading in headings(where), link
