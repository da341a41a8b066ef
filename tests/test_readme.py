"""The Python of the README and of the guides runs as it stands, with fewer steps and prompts; no link is dead."""

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("**/*.md"))
GUIDES = [page for page in DOCS if "```python" in page.read_text(encoding="utf-8")]
PAGES = (README, ROOT / "RESULTS.md", ROOT / "CONTRIBUTING.md", *DOCS)


def run(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page's Python leaves behind, its blocks one after the other."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    shorter = code.replace("steps=3000", "steps=2").replace("n=100", "n=12").replace("n=200", "n=20")
    exec(compile(shorter, str(page), "exec"), names)
    return names


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
