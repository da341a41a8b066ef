"""The README's Python runs as it stands, with fewer steps."""

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"
PAGES = (README, README.with_name("RESULTS.md"))


def test_the_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 4
    code = "\n".join(blocks)
    assert "steps=3000" in code
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    shorter = code.replace("steps=3000", "steps=2").replace("n=100", "n=12")
    exec(compile(shorter, str(README), "exec"), names)
    sl, sparse = names["sl"], names["sparse"]
    assert sl.is_sparse(sparse)  # type: ignore[attr-defined]
    for written in (
        "sparse-model/model.safetensors",
        "report.html",
        "figures/fig4b_circuits.pdf",
        "numbers/comparison.json",
    ):
        assert (tmp_path / written).exists(), written


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_it_names_exists(page: Path) -> None:
    named = re.findall(r"\]\(((?!http)[^)#]+)\)", page.read_text(encoding="utf-8"))
    assert named
    assert [path for path in named if not (page.parent / path).exists()] == []
