"""Weights in nanoGPT's layout, made on the spot from a GPT-2 whose logits are known."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

import sparselens as sl
from sparselens.models.nanogpt import GPT2_VOCABULARY, read_nanogpt
from tests.tiny_models import tiny_model

PADDED = 50304
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
TOKENS = torch.tensor([[1, 50256, 7, 12345, 3]])


@pytest.fixture(scope="module")
def gpt2() -> GPT2LMHeadModel:
    return tiny_model("gpt2", vocab_size=GPT2_VOCABULARY, activation_function="gelu")


def nanogpt_tensors(model: GPT2LMHeadModel, prefix: str = "", biases: bool = True) -> dict[str, Tensor]:
    """The same weights as the authors' training code writes them."""
    tensors = {}
    for name, value in model.state_dict().items():
        if name.endswith(".bias") and not biases:
            continue
        if name.endswith(TRANSPOSED):
            value = value.mT.contiguous()
        if value.shape[0] == GPT2_VOCABULARY:  # rows without a token
            value = torch.cat([value, torch.full((PADDED - GPT2_VOCABULARY, value.shape[1]), 9.0)])
        tensors[prefix + name] = value
    for layer in range(2):
        tensors[f"{prefix}transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
    return tensors


def answer(model: Any) -> Tensor:
    with torch.no_grad():
        out = model(TOKENS)
    return out if isinstance(out, Tensor) else out.logits


@pytest.mark.parametrize(
    ("prefix", "wrap"),
    [
        ("", lambda tensors: tensors),
        ("_orig_mod.", lambda tensors: {"model": tensors, "model_args": {"n_head": 4}, "iter_num": 9}),
        ("module._orig_mod.", lambda tensors: {"state_dict": tensors}),
    ],
)
def test_same_logits_as_the_model_it_was_made_of(tmp_path: Path, gpt2: GPT2LMHeadModel, prefix: str, wrap: Any):
    torch.save(wrap(nanogpt_tensors(gpt2, prefix)), tmp_path / "final.pth")
    heads = None if prefix == "_orig_mod." else 4
    model = read_nanogpt(tmp_path / "final.pth", n_heads=heads)
    assert torch.equal(answer(model), answer(gpt2))


def test_biases_that_are_not_there_are_zero(tmp_path: Path, gpt2: GPT2LMHeadModel):
    torch.save(nanogpt_tensors(gpt2, biases=False), tmp_path / "final.pth")
    model = read_nanogpt(tmp_path / "final.pth", n_heads=4)
    assert not any(value.any() for name, value in model.state_dict().items() if name.endswith(".bias"))
    assert torch.equal(model.state_dict()["transformer.wpe.weight"], gpt2.state_dict()["transformer.wpe.weight"])


def test_gates_are_the_sign_of_the_scores(tmp_path: Path, gpt2: GPT2LMHeadModel):
    torch.save(nanogpt_tensors(gpt2), tmp_path / "final.pth")
    model = sl.load_nanogpt(tmp_path / "final.pth", n_heads=4)
    _, cache = model.run_with_cache(TOKENS)
    scores, gate = cache["blocks.1.attn.hook_attn_scores"], cache["blocks.1.attn.hook_gate"]
    assert torch.equal(gate, (scores > 0).float())
    assert 0 < gate.sum() < gate.numel() / 2
    torch.testing.assert_close(answer(sl.densify(model)), answer(gpt2), atol=1e-4, rtol=1e-4)


def test_heads_are_64_wide_unless_told(tmp_path: Path):
    model = tiny_model("gpt2", n_embd=128, n_head=2, vocab_size=40, activation_function="gelu")
    torch.save(nanogpt_tensors(model), tmp_path / "final.pth")
    assert read_nanogpt(tmp_path / "final.pth", vocabulary=40).config.n_head == 2


class Code:
    """An object that runs code when it is unpickled, as in a malicious file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("was_run"),))


def test_code_in_the_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"transformer.wte.weight": Code()}, "final.pth")
    Path("plain.pth").write_bytes(pickle.dumps(Code()))
    for name in ("final.pth", "plain.pth"):
        with pytest.raises(ValueError, match="cannot be read as a file of tensors"):
            read_nanogpt(name)
    assert not Path("was_run").exists()


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (lambda t: {}, {}, "has no transformer.wte.weight"),
        (lambda t: [1, 2], {}, "holds a list, not a dictionary of tensors"),
        (lambda t: {**t, "transformer.h.0.extra": torch.zeros(1)}, {}, r"unknown \['transformer.h.0.extra'\]"),
        (lambda t: {n: v for n, v in t.items() if "ln_1" not in n}, {}, r"missing \['transformer.h.0.ln_1.weight'"),
        (lambda t: {**t, "transformer.ln_f.weight": torch.zeros(3)}, {}, "is not in nanoGPT's layout: Error"),
        (lambda t: t, {"n_heads": 5}, "d_model = 16 cannot be split evenly into 5 heads"),
        (lambda t: t, {"vocabulary": 99999}, "or less, not 99999"),
    ],
)
def test_other_layouts_are_refused(tmp_path: Path, gpt2: GPT2LMHeadModel, content: Any, options: Any, message: str):
    torch.save(content(nanogpt_tensors(gpt2)), tmp_path / "final.pth")
    with pytest.raises(ValueError, match=message):
        read_nanogpt(tmp_path / "final.pth", **{"n_heads": 4, **options})


def test_missing_file_is_an_error_of_the_system():
    with pytest.raises(FileNotFoundError):
        read_nanogpt("/no/such/final.pth")
