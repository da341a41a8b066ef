"""The README's Python runs as it stands, with fewer steps."""

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 4
    code = "\n".join(blocks)
    assert "steps=3000" in code
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code.replace("steps=3000", "steps=2"), str(README), "exec"), names)
    sl, sparse = names["sl"], names["sparse"]
    assert sl.is_sparse(sparse)  # type: ignore[attr-defined]
    assert (tmp_path / "sparse-model" / "model.safetensors").exists()


def test_every_path_it_names_exists() -> None:
    named = re.findall(r"\]\(((?!http)[^)#]+)\)", README.read_text(encoding="utf-8"))
    assert named
    assert [path for path in named if not (README.parent / path).exists()] == []
