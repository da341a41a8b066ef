"""Models with adapters: which layers get them, what training changes, and what loading a folder returns."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import sparselens as sl
from sparselens.gates.modes import open_gates
from sparselens.models import adapters, places
from sparselens.models.adapters import adapters_off, add_lora, has_adapters, merged
from sparselens.models.export import to_transformers
from sparselens.models.folder import load_transformers
from sparselens.training.evaluation import evaluate
from sparselens.training.losses import next_token_loss
from sparselens.training.teacher import Teacher
from tests.tiny_models import FAMILIES, bridge_of, logits, tiny_model, tiny_tokenizer, tiny_tokens
from tests.tiny_runs import HELD_OUT, counting_rows, run, settings

GATE_BIAS = 0.5
LAYERS = {
    "gpt2": {"c_attn", "c_proj"},
    "neox": {"query_key_value", "dense"},
    "opt": {"q_proj", "k_proj", "v_proj", "out_proj"},
    "phi": {"q_proj", "k_proj", "v_proj", "dense"},
    "phi3": {"qkv_proj", "o_proj"},
    "bert": {"query", "key", "value", "dense"},
}
LIKE_LLAMA = {"q_proj", "k_proj", "v_proj", "o_proj"}
OPEN_TO_TRANSFORMERS = sorted(set(FAMILIES) - {"neo", "gptj", "bloom", "falcon", "mpt"})
# peft calls transformers in a way that transformers deprecates
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def train(model: Any) -> None:
    """A few training steps, enough to change the trainable weights visibly."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.1)
    model.train()
    for _ in range(3):
        next_token_loss(model(tiny_tokens()).logits, tiny_tokens()).backward()
        optimizer.step()
        optimizer.zero_grad()


def saved_base(folder: Path, family: str) -> Path:
    return sl.save(tiny_model(family), folder / "base", tokenizer=tiny_tokenizer(folder / "tokenizer"))


def put_in(network: Any, how: str) -> Any:
    """Adapters added by our own function, by peft in two ways, and by transformers."""
    from peft import LoraConfig, get_peft_model

    if how == "sparselens":
        return add_lora(network, 2)
    fused = "c_attn" if hasattr(network, "transformer") else "q_proj"
    config = LoraConfig(r=2, target_modules=[fused], fan_in_fan_out=fused == "c_attn")
    if how == "transformers":
        network.add_adapter(config)
        return network
    wrapped = get_peft_model(network, config)
    return wrapped if how == "peft" else wrapped.get_base_model()


def trained_adapters(folder: Path, family: str = "llama", how: str = "sparselens") -> Any:
    base, *_ = load_transformers(saved_base(folder, family))
    model = sl.sparsify(put_in(base, how), GATE_BIAS)
    before = logits(model)
    train(model)
    assert not torch.allclose(logits(model), before, atol=1e-2)
    return model


@pytest.mark.parametrize("family", OPEN_TO_TRANSFORMERS)
def test_adapters_are_on_every_projection_of_every_attention_and_nowhere_else(family: str):
    plain, model = tiny_model(family), add_lora(tiny_model(family), 2)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    ends = [name.split(".lora_")[0].split(".") for name in trained if ".lora_A" in name]
    assert {parts[-1] for parts in ends} == LAYERS.get(family, LIKE_LLAMA)
    assert len(ends) == 2 * len(LAYERS.get(family, LIKE_LLAMA))  # two layers
    assert all("mlp" not in parts and parts[-1] != "h" for parts in ends)
    assert all(".lora_" in name for name in trained)
    assert torch.equal(logits(model), logits(plain))  # they add nothing yet


def test_the_same_seed_gives_the_same_adapters_and_leaves_random_numbers_alone():
    state = torch.get_rng_state()
    first, second, other = (add_lora(tiny_model("llama"), 2, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    name = "model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert torch.equal(first[name], second[name]) and not torch.equal(first[name], other[name])


@pytest.mark.parametrize("how", ["sparselens", "peft", "inside peft", "transformers"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapters_come_back(tmp_path: Path, family: str, how: str):
    model = trained_adapters(tmp_path, family, how)
    expected = logits(model)
    sl.save(model, tmp_path / "saved")
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "sparselens.json", "README.md"}
    assert torch.equal(logits(model), expected)  # saving changes nothing

    loaded = sl.load(tmp_path / "saved")
    assert sl.is_sparse(loaded)
    whole = merged(model)
    state = to_transformers(loaded).state_dict()
    assert state.keys() == whole.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in whole.state_dict().items())
    assert torch.equal(logits(loaded), logits(sl.sparsify(bridge_of(sl.densify(whole)), GATE_BIAS)))
    torch.testing.assert_close(logits(loaded), expected, atol=1e-4, rtol=1e-4)
    assert loaded.tokenizer("w3 w1", add_special_tokens=False)["input_ids"] == [3, 1]  # the base's
    assert not sl.is_sparse(sl.load(tmp_path / "saved", sparse=False))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_peft_itself_opens_the_folder_bit_for_bit(tmp_path: Path, family: str):
    from peft import PeftModel

    model = trained_adapters(tmp_path, family)
    sl.save(model, tmp_path / "saved", tokenizer=tiny_tokenizer(tmp_path / "tokenizer"))
    base = sl.sparsify(load_transformers(tmp_path / "base")[0], GATE_BIAS)
    assert torch.equal(logits(PeftModel.from_pretrained(base, tmp_path / "saved")), logits(model))
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    record = json.loads((tmp_path / "saved" / "sparselens.json").read_text())
    assert (record["base_model"], record["gate_bias"]) == ("base", GATE_BIAS)
    assert "PeftModel" in (tmp_path / "saved" / "README.md").read_text()


@pytest.mark.parametrize("how", ["sparselens", "peft"])
def test_merged_folder_is_like_any_other(tmp_path: Path, how: str):
    model = trained_adapters(tmp_path, how=how)
    sl.save(model, tmp_path / "adapters")
    sl.save(model, tmp_path / "merged", merge=True)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    assert torch.equal(logits(sl.load(tmp_path / "merged")), logits(sl.load(tmp_path / "adapters")))
    sl.register_attention()
    plain = type(merged(model)).from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-4, rtol=1e-4)
    assert has_adapters(model) and logits(model).isfinite().all()


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer:UserWarning")
def test_trained_output_embedding_is_merged_though_it_was_tied(tmp_path: Path):
    from peft import LoraConfig

    model = tiny_model("gpt2")
    model.add_adapter(LoraConfig(r=2, target_modules=["lm_head"]))
    model.lm_head.lora_B["default"].weight.data.fill_(0.5)
    expected = logits(model)
    sl.save(model, tmp_path / "merged", merge=True)
    torch.testing.assert_close(logits(sl.load(tmp_path / "merged")), expected, atol=1e-4, rtol=1e-4)


def test_adapters_on_adapters(tmp_path: Path):
    sl.save(trained_adapters(tmp_path), tmp_path / "first")
    second = add_lora(load_transformers(tmp_path / "first")[0], 2)
    train(second)
    sl.save(second, tmp_path / "second")
    torch.testing.assert_close(logits(sl.load(tmp_path / "second")), logits(second), atol=1e-4, rtol=1e-4)


def test_what_cannot_be_saved_as_adapters_says_what_to_do(tmp_path: Path):
    from peft import PromptTuningConfig, get_peft_model

    with pytest.raises(ValueError, match=r"which model these adapters belong to: pass base_model=FOLDER_OR_ID, or mer"):
        sl.save(add_lora(tiny_model("llama"), 2), tmp_path / "a")
    both = add_lora(tiny_model("llama"), 2)
    both.get_input_embeddings().requires_grad_(True)
    with pytest.raises(ValueError, match=r"outside the adapters .*model.embed_tokens.weight.* merge=True"):
        sl.save(both, tmp_path / "a", base_model="some/base")
    prompts = get_peft_model(tiny_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="prompt tuning"):
        sl.save(prompts, tmp_path / "a", base_model="some/base")
    with pytest.raises(ValueError, match="inside this bridge has adapters: merge them"):
        sl.save(bridge_of(add_lora(tiny_model("llama"), 2)), tmp_path / "a", base_model="some/base", merge=True)
    with pytest.raises(ValueError, match="rank of LoRA must be at least 1, not 0"):
        add_lora(tiny_model("llama"), 0)
    with pytest.raises(ValueError, match="already has adapters"):
        add_lora(add_lora(tiny_model("llama"), 1), 1)
    assert list(tmp_path.iterdir()) == []


def test_base_that_moved_is_named_and_can_be_given(tmp_path: Path):
    model = trained_adapters(tmp_path)
    sl.save(model, tmp_path / "saved")
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(
        ValueError, match=rf"holds adapters of '{tmp_path}/base', which cannot .* pass base=FOLDER_OR_ID"
    ):
        sl.load(tmp_path / "saved")
    loaded = sl.load(tmp_path / "saved", base=tmp_path / "elsewhere")
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="is for a folder with adapters"):
        sl.load(tmp_path / "elsewhere", base=tmp_path / "saved")
    with pytest.raises(ValueError, match="names its own folder"):
        sl.load(tmp_path / "saved", base=tmp_path / "saved")


def test_a_base_with_other_weights_is_warned_of(tmp_path: Path):
    sl.save(trained_adapters(tmp_path, "llama"), tmp_path / "saved")
    for name, change in (("rounded", lambda x: x.bfloat16().float()), ("coarse", lambda x: (x * 8).round() / 8)):
        other = tiny_model("llama")
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.copy_(change(parameter))
        sl.save(other, tmp_path / name)
    sl.load(tmp_path / "saved", base=tmp_path / "rounded")
    with pytest.warns(UserWarning, match=r"trained on other weights: those of this base model differ by \d"):
        sl.load(tmp_path / "saved", base=tmp_path / "coarse")


def test_adapters_that_do_not_fit_are_refused(tmp_path: Path):
    sl.save(trained_adapters(tmp_path), tmp_path / "saved")
    file = tmp_path / "saved" / "adapter_model.safetensors"
    whole, tensors = file.read_bytes(), load_file(file)
    lost = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
    save_file({name: value for name, value in tensors.items() if name != lost}, file)
    with pytest.raises(ValueError, match=r"lacks model\.layers\.1\.self_attn\.v_proj\.lora_B\.weight"):
        sl.load(tmp_path / "saved")
    save_file({**tensors, "base_model.model.model.norm.weight": torch.ones(16)}, file)
    with pytest.raises(ValueError, match=r"also has model\.norm\.weight"):
        sl.load(tmp_path / "saved")
    file.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="truncated or damaged"):
        sl.load(tmp_path / "saved")
    file.unlink()
    with pytest.raises(ValueError, match=r"holds no adapter_model\.safetensors"):
        sl.load(tmp_path / "saved")
    file.write_bytes(whole)
    sl.save(tiny_model("gpt2"), tmp_path / "other")
    with pytest.raises(ValueError, match="do not fit"):
        sl.load(tmp_path / "saved", base=tmp_path / "other")
    sl.save(tiny_model("llama", hidden_size=32), tmp_path / "wider")
    with pytest.raises(ValueError, match=r"do not fit(?s:.)*size mismatch"):
        sl.load(tmp_path / "saved", base=tmp_path / "wider")


def test_shipped_adapters_find_their_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = trained_adapters(tmp_path)
    sl.save(model, tmp_path / "models" / "tiny-sparse", base_model="somebody/tiny")
    monkeypatch.setattr(places, "MODELS", tmp_path / "models")
    assert places.shipped_models() == ["tiny-sparse"]
    with pytest.raises(ValueError, match=r"'?tiny-sparse'? holds adapters of 'somebody/tiny'.*pass base=FOLDER_OR_ID"):
        sl.load("tiny-sparse")
    given = sl.load("tiny-sparse", base=tmp_path / "base")
    torch.testing.assert_close(logits(given), logits(model), atol=1e-4, rtol=1e-4)

    asked: list[str] = []

    def snapshot_download(repository: str, **_: Any) -> str:
        asked.append(repository)
        return str(tmp_path / "base")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert torch.equal(logits(sl.load("tiny-sparse")), logits(given))
    assert asked == ["somebody/tiny"]
    assert sl.load("tiny-sparse").cfg.n_layers == 2


def test_the_shipped_adapters_of_smollm2_open_on_any_base_of_their_shape(tmp_path: Path):
    """On a base made here with the same attention and little else; a warning says that it is a different base."""
    torch.manual_seed(0)
    shape = {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
    config = LlamaConfig(**shape, intermediate_size=8, vocab_size=32, max_position_embeddings=64)
    sl.save(LlamaForCausalLM(config), tmp_path / "base")
    with pytest.raises(ValueError, match="adapters of 'HuggingFaceTB/SmolLM2-135M-Instruct', which cannot be opened"):
        sl.load("smollm2-135m-sparse")
    with pytest.warns(UserWarning, match="trained on other weights"):
        sparse = sl.load("smollm2-135m-sparse", base=tmp_path / "base")
    assert sl.is_sparse(sparse) and sparse.cfg.n_layers == 30
    state = load_file(places.MODELS / "smollm2-135m-sparse" / "adapter_model.safetensors")
    a, b = (state[f"base_model.model.model.layers.7.self_attn.q_proj.lora_{part}.weight"].float() for part in "AB")
    before = load_file(tmp_path / "base" / "model.safetensors")["model.layers.7.self_attn.q_proj.weight"]
    after = sparse.blocks[7].attn.q.original_component.weight
    torch.testing.assert_close(after, before + 2 * b @ a, atol=1e-5, rtol=1e-4)
    size = sum(file.stat().st_size for file in (places.MODELS / "smollm2-135m-sparse").iterdir())
    assert size < 20 * 2**20


def test_adapters_of_a_local_folder_are_not_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.HfApi", lambda token=None: None)
    with pytest.raises(ValueError, match=r"a local folder, .*: pass base_model=HUB_ID, or merge=True"):
        sl.push_to_hub(trained_adapters(tmp_path), "me/adapters")


def test_switched_off_adapters_leave_the_base(tmp_path: Path):
    model = trained_adapters(tmp_path)
    base = sl.sparsify(load_transformers(tmp_path / "base")[0], GATE_BIAS)
    trained = logits(model)
    with adapters_off(model):
        assert torch.equal(logits(model), logits(base))
    assert torch.equal(logits(model), trained)
    assert adapters.trained_besides_adapters(model) == []


def test_teacher_of_a_model_with_adapters_is_no_copy(tmp_path: Path):
    model = trained_adapters(tmp_path)
    teacher = Teacher(model, 1.0)
    assert teacher._model is model
    tokens = tiny_tokens()
    base = load_transformers(tmp_path / "base")[0]
    with sl.record_gates(model) as gates:
        student = model.train()(tokens).logits
        seen = gates.open_fraction.clone()
        loss = teacher.blend(torch.tensor(0.0), student, tokens, next_token_loss)
        assert torch.equal(gates.open_fraction, seen)  # of the student alone
    expected = Teacher(base, 1.0).blend(torch.tensor(0.0), student, tokens, next_token_loss)
    torch.testing.assert_close(loss, expected)
    assert model.training


def lora_model() -> PreTrainedModel:
    return sl.sparsify(add_lora(tiny_model("llama"), 2), 2.0)


def test_training_moves_adapters_only_and_distils_from_the_base():
    shared, copied = lora_model(), lora_model()
    before = {name: value.clone() for name, value in shared.state_dict().items()}
    first = run(shared, distillation=0.5)
    data = {"batches": counting_rows, "held_out": HELD_OUT, "dense": tiny_model("llama")}  # a teacher of its own
    second = sl.post_train(copied, config=settings(distillation=0.5), progress=False, **data)
    assert first.dense.loss == pytest.approx(second.dense.loss, rel=1e-6)
    assert [r["loss"] for r in first.history] == pytest.approx([r["loss"] for r in second.history], rel=1e-4)
    moved = {name for name, value in shared.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all("lora_" in name for name in moved)


def test_dense_loss_is_that_of_the_base_whatever_the_adapters_are():
    model = lora_model()
    train(model)
    base = copy.deepcopy(tiny_model("llama"))
    with open_gates(base):
        assert run(model, steps=1).dense.loss == pytest.approx(evaluate(base, HELD_OUT).loss, rel=1e-6)


def test_a_run_with_adapters_goes_on(tmp_path: Path):
    whole, stopped, fresh = lora_model(), lora_model(), lora_model()
    expected = run(whole, out=tmp_path / "whole", distillation=0.5)
    steps = 0

    def fails(logits: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += stopped.training
        if steps == 7:
            raise KeyboardInterrupt
        return next_token_loss(logits, batch)

    with pytest.raises(KeyboardInterrupt):
        run(stopped, out=tmp_path / "stopped", loss=fails, distillation=0.5)
    assert run(fresh, out=tmp_path / "stopped", resume=True, distillation=0.5) == expected
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), whole.parameters(), strict=True))
