"""Saved models: loading returns them bit for bit, and no folder is ever half written."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
import transformers as tr
from huggingface_hub import ModelCard

import sparselens as sl
from sparselens.circuits.graph import Graph
from sparselens.gates.modes import evaluating
from sparselens.gates.surgery import find_settings
from sparselens.models import folder as folder_module
from sparselens.models.adapters import add_lora
from sparselens.models.character_model import character_model
from sparselens.models.export import to_transformers
from sparselens.models.folder import load_record, load_transformers
from sparselens.training.checkpoint import save_checkpoint
from sparselens.training.evaluation import evaluate
from sparselens.training.losses import next_token_loss
from tests.analyses.small_models import tiny_pairs
from tests.tiny_models import bridge_of, logits, tiny_bridge, tiny_model, tiny_tokenizer, tiny_tokens
from tests.tiny_runs import HELD_OUT, gated, run

FAMILIES = ("gpt2", "llama", "neox", "bloom", "phi3", "opt", "neo")
THROUGH_TRANSFORMERS = ("gpt2", "llama", "neox", "phi3", "opt")  # bloom and neo have custom attention code
GATE_BIAS = 0.5


def one_step(model: Any) -> None:
    """Change every weight in use, so that fused copies of it are out of date."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    out = model(tiny_tokens())
    next_token_loss(out if isinstance(out, torch.Tensor) else out.logits, tiny_tokens()).backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("family", FAMILIES)
def test_trained_bridge_comes_back_bit_for_bit(tmp_path: Path, family: str):
    model = sl.sparsify(tiny_bridge(family), GATE_BIAS)
    before = logits(model)
    one_step(model)
    expected = logits(model)
    assert not torch.allclose(expected, before, atol=1e-3)

    sl.save(model, tmp_path / "model")
    loaded = sl.load(tmp_path / "model")
    assert sl.is_sparse(loaded)
    assert torch.equal(logits(loaded), expected)
    dense = sl.load(tmp_path / "model", sparse=False)
    assert not sl.is_sparse(dense)
    assert torch.equal(logits(dense), logits(sl.densify(model)))


@pytest.mark.parametrize("family", THROUGH_TRANSFORMERS)
def test_transformers_model_comes_back_bit_for_bit(tmp_path: Path, family: str):
    model = sl.sparsify(tiny_model(family), GATE_BIAS)
    one_step(model)
    expected = logits(model)
    sl.save(model, tmp_path / "model")

    sl.register_attention()
    plain = type(model).from_pretrained(tmp_path / "model")
    assert torch.equal(logits(plain), expected)
    assert plain.config.gate_bias == GATE_BIAS
    assert sl.is_sparse(plain)

    loaded = sl.load(tmp_path / "model")
    for name, value in to_transformers(loaded).state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    torch.testing.assert_close(logits(loaded), expected, atol=1e-5, rtol=1e-5)


def test_transformers_refuses_a_sparse_folder_it_would_run_without_gates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sl.save(gated(), tmp_path / "model")
    for interface in (tr.AttentionInterface, tr.AttentionMaskInterface):  # as if register_attention had not been called
        monkeypatch.delitem(interface._global_mapping, "sparselens", raising=False)
    with pytest.raises(ValueError, match='attn_implementation="sparselens"'):
        tr.AutoModelForCausalLM.from_pretrained(tmp_path / "model")


def test_a_sparse_folder_that_lost_its_gates_is_refused_by_every_analysis(tmp_path: Path):
    saved = sl.sparsify(tiny_bridge("llama"), GATE_BIAS)
    expected = logits(saved)
    sl.save(saved, tmp_path / "model")
    plain = tr.AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager")
    lost = bridge_of(plain)
    assert not sl.is_sparse(lost)
    for asked in (lambda: Graph.of_model(lost), lambda: sl.evaluate(lost, tiny_pairs(), progress=False)):
        with pytest.raises(ValueError, match=r"saved with gates \(gate_bias = 0.5 .*\) but runs without them"):
            asked()
    sl.sparsify(lost, GATE_BIAS)
    torch.testing.assert_close(logits(lost), expected)
    Graph.of_model(sl.densify(lost))  # on purpose


def test_a_folder_marked_sparse_without_a_gate_bias_is_refused(tmp_path: Path):
    sl.save(gated(), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "gate_bias"}))
    with pytest.raises(ValueError, match=r"was saved with gates, but its config.json has no gate_bias"):
        sl.load(tmp_path / "model")


def test_what_is_no_name_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without type checks
    with pytest.raises(ValueError, match=r"load takes a folder or a hub id, not a GPT2LMHeadModel: .*hf_model=model"):
        sl.load(tiny_model("gpt2"))
    with pytest.raises(ValueError, match=r"device='cuda': .* has no option device, use sl.load\(...\).to\(device\)"):
        sl.load("addition", device="cuda")


def test_dense_models_are_saved_without_gates(tmp_path: Path):
    for name, model in (("bridge", tiny_bridge("gpt2")), ("transformers", tiny_model("gpt2"))):
        sl.save(model, tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert not {"gate_bias", "attn_implementation", "sparselens_dense_implementation"} & config.keys()
        assert not sl.is_sparse(sl.load(tmp_path / name))
        plain = tr.AutoModelForCausalLM.from_pretrained(tmp_path / name, attn_implementation="eager")
        assert torch.equal(logits(plain), logits(tiny_model("gpt2")))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_character_models_keep_their_mask(tmp_path: Path, bidirectional: bool):
    network = character_model("0123456789+", n_positions=9, n_layers=2, d_model=16, bidirectional=bidirectional)
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9]])
    model = sl.sparsify(bridge_of(network), 1.0)
    sl.save(model, tmp_path / "model")
    loaded = sl.load(tmp_path / "model")
    changed = tokens.clone()
    changed[0, -1] = 0
    with torch.no_grad():
        assert torch.equal(loaded(tokens), model(tokens))
        assert torch.equal(loaded(tokens)[0, 0], loaded(changed)[0, 0]) is not bidirectional


def test_record_and_card_tell_what_the_run_came_to(tmp_path: Path):
    model = gated()
    result = run(model, steps=4)
    sl.save(model, tmp_path / "m", result=result, base_model="someone/base", command="sparselens post-train --steps 4")
    record = json.loads((tmp_path / "m" / "sparselens.json").read_text())
    assert record["dense"]["loss"] == result.dense.loss
    assert record["sparse"]["share_of_visible_pairs"] == result.sparse.share_of_visible_pairs
    assert (record["target"], record["feasible"], record["gate_bias"]) == (result.target, result.feasible, 2.0)
    assert record["base_model"] == "someone/base"
    assert record["command"] == "sparselens post-train --steps 4"

    card = ModelCard.load(tmp_path / "m" / "README.md")
    assert card.data.base_model == "someone/base"
    assert "sparse-attention" in (card.data.tags or [])
    for number in (
        f"{result.dense.loss:.4f}",
        f"{result.sparse.loss:.4f}",
        f"{result.sparse.share_of_visible_pairs:.3%}",
    ):
        assert number in card.text
    assert evaluate(sl.load(tmp_path / "m"), HELD_OUT).loss == pytest.approx(result.sparse.loss, rel=1e-5)


def test_figures_travel_with_the_model_and_the_card_shows_pictures(tmp_path: Path):
    for name in ("run.png", "run.pdf"):
        (tmp_path / name).write_bytes(name.encode())
    model = sl.sparsify(tiny_model("gpt2"))
    folder = sl.save(model, tmp_path / "model", figures=[tmp_path / "run.png", tmp_path / "run.pdf"])
    assert [(folder / name).read_bytes() for name in ("run.png", "run.pdf")] == [b"run.png", b"run.pdf"]
    card = (folder / "README.md").read_text()
    assert card.count("](run.png)") == 1 and "run.pdf" not in card
    assert "![" not in (sl.save(model, tmp_path / "bare") / "README.md").read_text()


def test_numbers_on_other_text_may_replace_those_of_the_run(tmp_path: Path):
    model = gated()
    measured = evaluate(model, HELD_OUT)
    sl.save(model, tmp_path / "m", test=(measured, measured))  # no run: no target to speak of
    assert f"{measured.loss:.4f}" in (tmp_path / "m" / "README.md").read_text()
    assert "Target" not in (tmp_path / "m" / "README.md").read_text()


@pytest.mark.parametrize("base", [None, "../shared/models/base", "/home/me/base", "one/two/three"])
def test_paths_are_no_base_models_of_the_hub(tmp_path: Path, base: str | None):
    sl.save(tiny_model("gpt2"), tmp_path / "m", base_model=base)
    assert ModelCard.load(tmp_path / "m" / "README.md").data.base_model is None


def test_tokenizer_travels_with_the_model(tmp_path: Path):
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    sl.save(gated(), tmp_path / "model", tokenizer=tokenizer)
    loaded = sl.load(tmp_path / "model")
    sl.save(loaded, tmp_path / "again")
    for model in (loaded, sl.load(tmp_path / "again")):  # TransformerLens adds the opening token
        assert model.tokenizer("w3 w1", add_special_tokens=False)["input_ids"] == [3, 1]
        assert model.to_tokens("w3 w1").tolist() == [[0, 3, 1]]


def test_saved_model_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first, second = gated(seed=1), gated(seed=2)
    target = sl.save(first, tmp_path / "model")
    expected = logits(sl.load(target))

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "model_card", full_disk)
        with pytest.raises(OSError, match="No space left"):
            sl.save(second, target)
    assert torch.equal(logits(sl.load(target)), expected)

    rename = Path.rename
    with monkeypatch.context() as patch:  # the old folder has been moved away, and moving the new one fails
        patch.setattr(Path, "rename", lambda self, to: full_disk() if self.name == "new" else rename(self, to))
        with pytest.raises(OSError, match="No space left"):
            sl.save(second, target)
    assert torch.equal(logits(sl.load(target)), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

    sl.save(second, target)
    assert not torch.equal(logits(sl.load(target)), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
@pytest.mark.parametrize("lora", [False, True])
def test_who_may_read_the_files_is_what_the_umask_says(tmp_path: Path, umask: int, mode: int, lora: bool):
    model = add_lora(tiny_model("llama"), 2) if lora else tiny_bridge("llama")
    before = os.umask(umask)
    try:
        folder = sl.save(model, tmp_path / "model", tokenizer=tiny_tokenizer(tmp_path), base_model="org/base")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
    assert ("adapter_model.safetensors" if lora else "model.safetensors") in modes
    assert modes == dict.fromkeys(modes, mode)
    assert folder.stat().st_mode & 0o777 == mode | (mode & 0o444) >> 2


def test_other_folders_are_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("words")
    with pytest.raises(ValueError, match="is not a saved model: choose another folder"):
        sl.save(gated(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    sl.save(gated(), tmp_path / "empty")


def test_models_that_transformers_cannot_express_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="a Linear cannot be converted to a transformers model"):
        sl.save(torch.nn.Linear(2, 2), tmp_path / "model")
    bridge = tiny_bridge("gpt2")
    bridge.enable_compatibility_mode()
    with pytest.raises(ValueError, match="cannot be converted back to transformers"):
        sl.save(bridge, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_models_without_attention_are_refused():
    mamba = tr.MambaForCausalLM(tr.MambaConfig(vocab_size=31, hidden_size=16, num_hidden_layers=1, state_size=4))
    for model in (mamba, torch.nn.Linear(2, 2)):
        with pytest.raises(ValueError, match=r"attention|cannot gate a Linear"):
            sl.sparsify(model)
        assert not sl.is_sparse(model)


@pytest.mark.parametrize("name", ["no-such-model", "someone/no-such-model", "./nowhere", "a/b/c"])
def test_unknown_names_say_what_is_known(name: str):
    with pytest.raises(ValueError, match=r"is neither a folder nor a shipped model|no such folder"):
        sl.load(name)


def test_folders_without_a_model(tmp_path: Path):
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        sl.load(tmp_path)
    sl.save(tiny_model("gpt2"), tmp_path / "model")
    tmp_path = tmp_path / "model"
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "architectures": ["NoSuchModel"]}')
    with pytest.raises(ValueError, match="no architecture 'NoSuchModel'"):
        sl.load(tmp_path)


def test_hub_ids_are_downloaded_without_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = gated()
    sl.save(model, tmp_path / "cache")
    asked: dict[str, Any] = {}

    def snapshot_download(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(tmp_path / "cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    loaded = sl.load("someone/sparse-gpt2")
    assert asked["repository"] == "someone/sparse-gpt2"
    assert not any("bin" in pattern or "pt" in pattern for pattern in asked["allow_patterns"])
    sl.save(loaded, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "sparselens.json").read_text())["base_model"] == "someone/sparse-gpt2"


def test_push_uploads_exactly_the_saved_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple[str, dict[str, Any]]] = []

    class FakeHub:
        def __init__(self, token: str | None = None) -> None:
            calls.append(("token", {"token": token}))

        def create_repo(self, repo_id: str, **options: Any) -> None:
            calls.append(("create", {"repo_id": repo_id, **options}))

        def upload_folder(self, folder_path: Path, **options: Any) -> None:
            shutil.copytree(folder_path, tmp_path / "uploaded")
            calls.append(("upload", options))

    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    model = gated()
    address = sl.push_to_hub(model, "me/sparse", token="secret", base_model="someone/base")
    assert address == "https://huggingface.co/me/sparse"
    assert [name for name, _ in calls] == ["token", "create", "upload"]
    assert calls[1][1] == {"repo_id": "me/sparse", "private": True, "exist_ok": True}
    sl.save(model, tmp_path / "saved", base_model="someone/base")
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("uploaded", "saved")]
    assert files[0] == files[1]
    assert not any(b"secret" in data for data in files[0].values())


def test_what_was_held_out_is_kept_with_the_model(tmp_path: Path):
    sl.save(gated(), tmp_path / "m", data={"sha256": "ab", "test": 3})
    assert load_record(tmp_path / "m")["data"] == {"sha256": "ab", "test": 3}
    sl.save(gated(), tmp_path / "m")
    assert load_record(tmp_path / "m")["data"] is None
    (tmp_path / "m" / "sparselens.json").unlink()
    assert load_record(tmp_path / "m") == {}  # another program's


def all_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


def test_no_path_of_this_machine_is_saved(tmp_path: Path):
    sl.save(tiny_model("gpt2"), tmp_path / "base", tokenizer=tiny_tokenizer(tmp_path / "tokenizer"))
    plain, tokenizer, _ = load_transformers(tmp_path / "base")
    sl.save(plain, tmp_path / "plain", tokenizer=tokenizer)
    sl.save(sl.sparsify(sl.load(tmp_path / "base"), 0.5), tmp_path / "sparse", base_model=str(tmp_path / "base"))
    for name in ("plain", "sparse"):
        assert str(tmp_path).encode() not in all_bytes(tmp_path / name)
        assert json.loads((tmp_path / name / "sparselens.json").read_text())["base_model"] == "base"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["/venv/ipykernel_launcher.py", "-f", "/home/me/kernel.json"], None),
        (["-c"], None),
        (["/home/me/train.py", "--secret"], None),
        (["/venv/bin/sparselens", "demo", "--out", "demo"], "sparselens demo --out demo"),
        (["/venv/lib/sparselens/__main__.py", "demo"], "sparselens demo"),
    ],
)
def test_only_a_command_of_sparselens_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], said: str | None
):
    monkeypatch.setattr(sys, "argv", argv)
    sl.save(tiny_model("gpt2"), tmp_path / "model")
    assert json.loads((tmp_path / "model" / "sparselens.json").read_text())["command"] == said
    card = (tmp_path / "model" / "README.md").read_text()
    assert ("Made by" in card) == (said is not None)
    assert b"/home/me" not in all_bytes(tmp_path / "model")


@pytest.fixture
def small_disk() -> Iterator[None]:
    """A limit on file size acts like a full disk: the system refuses a write midway."""
    resource = pytest.importorskip("resource", reason="needs a limit on the size of files")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_is_told_with_the_path_and_leaves_nothing(tmp_path: Path, small_disk: None):
    model = tiny_model("llama")
    with pytest.raises(OSError, match=f"{tmp_path / 'model'} could not be written.*File too large"):
        sl.save(model, tmp_path / "model")
    with pytest.raises(OSError, match=str(tmp_path / "c.pt")):
        save_checkpoint(tmp_path / "c.pt", model.state_dict())
    assert list(tmp_path.iterdir()) == []


def test_a_question_changes_nothing(tmp_path: Path):
    sl.save(gated(), tmp_path / "model")
    sl.register_attention()
    model = tr.GPT2LMHeadModel.from_pretrained(tmp_path / "model")

    def state() -> list[Any]:
        return [model.config.to_dict(), *(dict(module.__dict__) for module in model.modules())]

    before = state()
    assert sl.is_sparse(model)
    assert find_settings(model) is not None
    assert repr(state()) == repr(before)
    with sl.record_gates(model) as gates:  # which does
        model(tiny_tokens())
    assert 0 < gates.open_fraction.mean() < 1
    assert not sl.is_sparse(sl.densify(model))


@pytest.mark.parametrize("gate", [False, True])
def test_every_module_is_given_back_its_own_mode(gate: bool):
    model = tiny_model("gpt2").train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    if gate:
        sl.sparsify(model)
    else:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes


def test_no_bar_of_a_library_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    sl.save(sl.load("stories260k-sparse"), tmp_path / "saved")
    assert capfd.readouterr().err == ""
    assert tr.utils.logging.is_progress_bar_enabled()  # a user's own calls keep theirs


@pytest.mark.parametrize("name", ["addition-sparse", "addition"])
def test_a_model_that_has_run_with_gradients_is_saved(name: str, tmp_path: Path):
    """TransformerLens keeps the last pattern in its modules, with the graph of the run."""
    model = sl.load(name)
    tokens = torch.zeros(1, 11, dtype=torch.long)
    before = model(tokens)
    assert before.requires_grad
    assert torch.equal(sl.load(sl.save(model, tmp_path / "model"))(tokens), before)
