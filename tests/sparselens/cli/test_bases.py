"""`--base`: what adapters are put on, in every command that opens a model; and the dense model, if it is the base."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import sparselens as sl
from sparselens import cli
from sparselens.cli.models import bases, load_beside
from tests.sparselens.models.test_adapters import logits, trained_adapters

ADAPTERS = "smollm2-135m-sparse"
# peft asks transformers in a way that it calls outdated
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    """A folder of adapters whose base has been moved away, to `elsewhere`."""
    sl.save(trained_adapters(tmp_path), tmp_path / "saved")
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    return tmp_path / "saved"


def with_other_weights(folder: Path, new: Path) -> Path:
    model = sl.load(folder)
    sl.save(model, new)
    file = new / "model.safetensors"
    save_file({name: 1.1 * x for name, x in load_file(file).items()}, file, {"format": "pt"})
    return new


def test_the_dense_model_is_the_base_if_it_has_its_weights(moved: Path, capsys: pytest.CaptureFixture[str]):
    dense = moved.parent / "elsewhere"
    found = load_beside(str(dense), str(moved), {})
    assert torch.equal(logits(found), logits(sl.load(moved, base=dense))) and sl.is_sparse(found)
    assert "attaching its adapters to" in capsys.readouterr().err


def test_another_dense_model_is_no_base(moved: Path):
    other = with_other_weights(moved.parent / "elsewhere", moved.parent / "other")
    with pytest.raises(
        ValueError, match=r"--base on the command line.*other is not its base either: .* on other weights"
    ):
        load_beside(str(other), str(moved), {})
    with pytest.raises(ValueError, match=r"pass base=FOLDER_OR_ID.*stories260k is not its base either"):
        load_beside("stories260k", str(moved), {})
    (moved.parent / "elsewhere").rename(moved.parent / "base")  # what the adapters name is there again
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert torch.equal(logits(load_beside(str(other), str(moved), {})), logits(sl.load(moved)))


def test_without_a_sample_of_its_weights_the_base_is_to_be_named(moved: Path):
    dense, record = moved.parent / "elsewhere", json.loads((moved / "sparselens.json").read_text())
    (moved / "sparselens.json").write_text(json.dumps(record | {"base_sample": None}))
    with pytest.raises(ValueError, match=r"pass base=FOLDER_OR_ID \(--base on the command line\)"):
        load_beside(str(dense), str(moved), {})
    given = bases(str(dense), "stories260k", str(moved), None)
    assert given == {"stories260k": {}, str(moved): {"base": str(dense)}, None: {}}
    assert sl.is_sparse(load_beside("stories260k", str(moved), given[str(moved)]))


COMPARE = ("compare", "--dense", "stories260k", "--task", "ioi", "--out", "{out}")
COMMANDS = (
    (*COMPARE, "--sparse", "{model}"),
    (*COMPARE, "--sparse", "stories260k", "--control", "{model}"),
    ("attribute", "--model", "{model}", "--task", "ioi", "--out", "{out}"),
    ("tasks", "evaluate", "--model", "{model}", "--task", "ioi"),
    ("explore", "--model", "{model}", "--no-browser"),
    ("explore", "--model", "{model}", "--dense", "stories260k", "--no-browser"),
    ("post-train", "--model", "{model}", "--data", "{text}", "--out", "{out}"),
    ("post-train", "--model", "stories260k", "--dense", "{model}", "--data", "{text}", "--out", "{out}"),
)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_takes_the_base_of_its_adapters(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "text.txt").write_text("Once upon a time.")

    def run(model: str) -> Any:
        places = {"out": tmp_path / "out", "text": tmp_path / "text.txt", "model": model}
        typed = [word.format(**places) for word in words]
        return CliRunner().invoke(cli.build_app(), [*typed, "--base", "addition"], catch_exceptions=False)

    with pytest.raises(
        ValueError, match=r"--base addition is only for adapters, but .*stories260k.* has no adapter_config"
    ):
        run("stories260k-sparse")
    opened: list[str] = []
    for name in ("load", "load_transformers"):
        whole = getattr(sl.models.folder, name)

        def stand_in(model: str, whole: Any = whole, **given: Any) -> Any:
            if model == ADAPTERS:
                opened.append(given.get("base", ""))
                raise InterruptedError
            assert not given.get("base")
            return whole(model, **given)

        monkeypatch.setattr(f"sparselens.models.folder.{name}", stand_in)
    with pytest.raises(InterruptedError):
        run(ADAPTERS)
    assert opened == ["addition"]
