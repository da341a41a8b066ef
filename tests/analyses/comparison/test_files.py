"""A saved comparison loads unchanged, and an interrupted one resumes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sparselens import analyses
from sparselens.analyses.comparison import one_model
from sparselens.analyses.comparison.results import Comparison
from sparselens.analyses.engine.resume import BatchLog
from tests.analyses.comparison.compared import compared, same, tiny_comparison, whole_tiny_comparison


def test_saved_and_loaded_without_a_model(comparison: Comparison, tmp_path: Path):
    back = analyses.load_comparison(comparison.save(tmp_path / "saved"))
    assert same(back, comparison)
    assert torch.equal(back.dense.heads.values, comparison.dense.heads.values)
    assert same(analyses.load_comparison(back.save(tmp_path / "saved")), comparison)  # saved over itself


def stop(*args: Any, **options: Any) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_comparison_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "numbers"
    whole = whole_tiny_comparison()
    with monkeypatch.context() as patch:
        patch.setattr(one_model, "attribute_edges", stop)
        with pytest.raises(KeyboardInterrupt):
            tiny_comparison(out=out)
    with pytest.raises(ValueError, match="is unfinished: run it again with the same --out"):
        analyses.load_comparison(out)
    calls: list[str] = []
    again = one_model.patch_activations
    monkeypatch.setattr(one_model, "patch_activations", lambda *args, **more: calls.append("") or again(*args, **more))
    assert same(tiny_comparison(out=out), whole)
    assert len(calls) == 2  # the sparse model's heads and MLPs; the dense model's were already saved
    assert same(analyses.load_comparison(out), whole)
    assert list(out.glob("*.unfinished")) == []


def test_a_killed_comparison_loses_no_finished_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out, made = tmp_path / "numbers", BatchLog.once
    batches, again = list[str](), list[str]()

    def killed(log: BatchLog, *arguments: Any) -> Any:
        batches.append("")
        if len(batches) == 3:
            raise KeyboardInterrupt
        return made(log, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(BatchLog, "once", killed)
        with pytest.raises(KeyboardInterrupt):
            tiny_comparison(out=out, memory=3 * 10**5)
    assert [path.name for path in out.glob("*.unfinished")] == ["dense.heads.unfinished"]

    def counted(log: BatchLog, batch: Any, make: Any) -> Any:
        return made(log, batch, lambda: again.append("") or make())

    monkeypatch.setattr(BatchLog, "once", counted)
    resumed = tiny_comparison(out=out, memory=3 * 10**5)
    assert list(out.glob("*.unfinished")) == []
    finished, n_made = len(batches) - 1, len(again)
    again.clear()
    assert same(resumed, tiny_comparison(out=tmp_path / "whole", memory=3 * 10**5))
    assert len(again) == n_made + finished


def test_another_comparison_is_not_gone_on_with(
    models: tuple[Any, Any], comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(one_model, "patch_activations", stop)
        tiny_comparison(out=tmp_path / "a")
    with pytest.raises(ValueError, match=r"holds another comparison \(other settings\): choose another folder"):
        tiny_comparison(out=tmp_path / "a", share=0.5)
    saved = comparison.save(tmp_path / "b")
    with pytest.raises(ValueError, match="holds a saved comparison, which cannot be resumed"):
        compared(models, out=saved)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.tex").write_text("mine")
    for act in (lambda: compared(models, out=tmp_path / "c"), lambda: comparison.save(tmp_path / "c")):
        with pytest.raises(ValueError, match="exists and holds no comparison: choose another folder"):
            act()
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match=r"holds no comparison \(no comparison.json\)"):
        analyses.load_comparison(tmp_path / "c")


def test_a_part_that_is_missing_or_broken(comparison: Comparison, tmp_path: Path):
    folder = comparison.save(tmp_path / "saved")
    (folder / "dense.edges.safetensors").write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"dense\.edges\.safetensors does not hold a EdgeScores"):
        analyses.load_comparison(folder)
    (folder / "dense.edges.safetensors").unlink()
    with pytest.raises(ValueError, match=r"dense\.edges\.safetensors is missing"):
        analyses.load_comparison(folder)
    (folder / "comparison.json").write_text("{")
    with pytest.raises(ValueError, match=r"comparison\.json is broken"):
        analyses.load_comparison(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("names", "ab"),
        ("names", ["a", "b", "c"]),
        ("names", [1, 2]),
        ("share", "0.9"),
        ("notes", "none"),
        ("versions", ["torch"]),
        ("prompts", 3),
        ("prompts", [{"title": "a", "tokens": "abc"}]),
    ],
)
def test_a_card_of_other_types_is_refused(name: str, value: Any, comparison: Comparison, tmp_path: Path):
    card = comparison.save(tmp_path / "saved") / "comparison.json"
    written = json.loads(card.read_text())
    written["about"][name] = value
    card.write_text(json.dumps(written))
    with pytest.raises(ValueError, match=r"comparison\.json was written by another version"):
        analyses.load_comparison(card.parent)


@pytest.mark.parametrize("text", ["3", "[1, 2]", '"about"', "[" * 10**5])
def test_a_card_that_is_no_object_is_refused(text: str, comparison: Comparison, tmp_path: Path):
    card = comparison.save(tmp_path / "saved") / "comparison.json"
    card.write_text(text)
    with pytest.raises(ValueError, match=r"comparison\.json is broken"):
        analyses.load_comparison(card.parent)


def test_a_failing_rename_leaves_the_old_comparison(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, rename = comparison.save(tmp_path / "saved"), Path.rename

    def fails(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError("no space left")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="no space left"):
        comparison.save(folder)
    assert same(analyses.load_comparison(folder), comparison)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
