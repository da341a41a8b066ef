"""Folders with an incomplete model, or one that would have to be trusted, raise clear errors."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import sparselens as sl
from sparselens.gates.gate import finite_bias
from sparselens.models.folder import load_transformers
from tests.tiny_models import tiny_model, tiny_tokenizer

BAD_BIASES = [float("nan"), float("inf"), "0.5", True, [1]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return sl.save(tiny_model("llama"), tmp_path / "model", tokenizer=tiny_tokenizer(tmp_path / "tokenizer"))


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_pickles_are_not_read(folder: Path):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds its weights only as a pickle \(pytorch_model\.bin\)"):
        sl.load(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match=r"holds no weights: want model\.safetensors"):
        sl.load(folder)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_weights_cut_short(folder: Path, share: float):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or damaged"):
        sl.load(folder)


def in_parts(folder: Path) -> dict[str, str]:
    """Turn the folder's weights into two files and an index; returns the map of the index."""
    tensors = load_file(folder / "model.safetensors")
    names = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(names.values()):
        own = {name: tensors[name] for name in tensors if names[name] == file}
        save_file(own, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return names


def test_weights_in_parts(folder: Path):
    expected = load_transformers(folder)[0].state_dict()
    names = in_parts(folder)
    state = load_transformers(folder)[0].state_dict()
    assert all(torch.equal(value, state[name]) for name, value in expected.items())
    missing = names["model.norm.weight"]
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=rf"names {missing}, which is missing"):
        sl.load(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a valid index of weights"):
        sl.load(folder)


@pytest.mark.parametrize(
    "elsewhere", ["../secret.safetensors", "{tmp}/secret.safetensors", "a/../../secret.safetensors"]
)
def test_index_that_points_outside_its_folder(folder: Path, tmp_path: Path, elsewhere: str):
    names = in_parts(folder)
    shutil.copy(folder / names["model.norm.weight"], tmp_path / "secret.safetensors")
    elsewhere = elsewhere.format(tmp=tmp_path)
    moved = {name: elsewhere if file == names["model.norm.weight"] else file for name, file in names.items()}
    edit_json(folder / "model.safetensors.index.json", weight_map=moved)
    with pytest.raises(ValueError, match=r"secret\.safetensors', which is outside its folder"):
        sl.load(folder)


def test_missing_weights_are_named_and_tied_ones_are_not_missing(folder: Path):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    lost = "model.layers.1.mlp.up_proj.weight"
    save_file({name: value for name, value in tensors.items() if name != lost}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights .* needs: model\.layers\.1\.mlp\.up_proj\.weight$"):
        sl.load(folder)
    save_file({**tensors, "extra.weight": torch.ones(1)}, file, metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=r"has weights that its architecture does not use: extra\.weight"):
        load_transformers(folder)
    tied = sl.save(tiny_model("gpt2"), folder.parent / "tied")
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    load_transformers(tied)


def test_weights_of_other_shapes(folder: Path):
    edit_json(folder / "config.json", intermediate_size=25)
    with pytest.raises(ValueError, match=r"do not fit its config\.json"):
        sl.load(folder)


@pytest.mark.parametrize("value", BAD_BIASES)
def test_gate_biases_that_are_no_numbers(folder: Path, value: Any):
    edit_json(folder / "config.json", gate_bias=value)  # NaN and Infinity are JSON to Python
    with pytest.raises(ValueError, match="gate_bias must be a finite number, not"):
        sl.load(folder)
    with pytest.raises(ValueError, match="gate_bias must be a finite number, not"):
        finite_bias(value)


def test_gate_biases_of_an_argument():
    for value in (float("nan"), float("inf"), -float("inf")):
        for model in (tiny_model("llama"), sl.sparsify(tiny_model("llama"), 1.0)):
            with pytest.raises(ValueError, match="gate_bias must be a finite number, not"):
                sl.sparsify(model, value)
    assert sl.is_sparse(sl.sparsify(tiny_model("llama"), 3e4))


def test_gate_bias_of_a_model_loaded_by_transformers(folder: Path):
    sl.register_attention()
    edit_json(folder / "config.json", gate_bias="0.5", attn_implementation="sparselens")
    model = type(tiny_model("llama")).from_pretrained(folder)
    for question in (sl.is_sparse, lambda model: model(torch.zeros(1, 2, dtype=torch.long))):
        with pytest.raises(ValueError, match=r"gate_bias must be a finite number, not '0\.5'"):
            question(model)


SPY = "from pathlib import Path\nPath({file!r}).write_text('run')\n"


def test_code_of_a_repository_is_never_run_or_asked_about(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(SPY.format(file=str(ran)))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    edit_json(folder / "config.json", auto_map={"AutoConfig": "own.Config"})
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Tokenizer", None]})
    assert sl.load(folder).cfg.n_layers == 2  # an architecture that transformers has: its own code
    with pytest.raises(ValueError, match="sparselens runs no code from a model's repository"):
        sl.load(folder, trust_remote_code=True)
    edit_json(folder / "config.json", model_type="unheard-of")
    with pytest.raises(ValueError, match=r"can only be opened with code from its repository .* which is never run"):
        sl.load(folder)
    assert not ran.exists()


def test_code_of_a_dataset_is_never_run(tmp_path: Path):
    from sparselens.training.text import read_documents

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "data.py").write_text(SPY.format(file=str(tmp_path / "ran")))
    with pytest.raises(Exception, match=r"[Dd]ataset"):
        read_documents(tmp_path / "data")
    assert not (tmp_path / "ran").exists()


def test_damaged_config(folder: Path):
    (folder / "config.json").write_text('{"model_type": ')
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        sl.load(folder)
