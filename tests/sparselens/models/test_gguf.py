"""GGUF files: a tiny one written here, with llama.cpp's names and order of rows."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import sparselens as sl
from sparselens.models.folder import load_tokenizer, load_transformers
from tests.tiny_models import VOCABULARY, logits, tiny_model

FILE = "tiny.gguf"
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
}


def rows_of_llama_cpp(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp stores the two halves of a rotated head interleaved."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write_gguf(file: Path, model: Any) -> None:
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(["<|endoftext|>", *map(chr, range(97, 123)), "ab", "bc", "cd", "de"])
    writer.add_token_types([3] + [1] * (VOCABULARY - 1))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, weight in model.state_dict().items():
        for part, heads in (("q", config.num_attention_heads), ("k", config.num_key_value_heads)):
            if f"{part}_proj" in name:
                weight = rows_of_llama_cpp(weight, heads)
        short = name.removesuffix(".weight")
        block = short.split(".")[2] if ".layers." in short else None
        inner = short if block is None else ".".join(short.split(".")[3:])
        renamed = f"blk.{block}.{NAMES[inner]}.weight" if block is not None else f"{NAMES[inner]}.weight"
        writer.add_tensor(renamed, weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model("llama")


@pytest.fixture
def folder(tmp_path: Path, model: PreTrainedModel) -> Path:
    (tmp_path / "gguf").mkdir()
    write_gguf(tmp_path / "gguf" / FILE, model)
    return tmp_path / "gguf"


def test_file_is_read_saved_and_read_again(folder: Path, tmp_path: Path, model: PreTrainedModel):
    plain, tokenizer, gate_bias = load_transformers(folder, gguf_file=FILE)
    assert gate_bias is None and tokenizer("a").input_ids[-1] == 1
    state = plain.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(logits(sl.load(folder, gguf_file=FILE)), logits(model), atol=1e-4, rtol=1e-4)

    gated = sl.sparsify(sl.load(folder / FILE), 0.5)  # the file's own path does as well
    assert gated.cfg.dtype == torch.float32
    sl.save(gated, tmp_path / "saved")
    assert torch.equal(logits(sl.load(tmp_path / "saved")), logits(gated))
    assert json.loads((tmp_path / "saved" / "sparselens.json").read_text())["base_model"] == FILE
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    assert load_tokenizer(folder / FILE)("a").input_ids[-1] == 1


def test_adapters_of_a_gguf_file_find_it(folder: Path, tmp_path: Path):
    from sparselens.models.adapters import add_lora

    network = add_lora(load_transformers(folder, gguf_file=FILE)[0], 2)
    sl.save(network, tmp_path / "adapters")
    torch.testing.assert_close(logits(sl.load(tmp_path / "adapters")), logits(network), atol=1e-4, rtol=1e-4)


def test_files_that_are_none(folder: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match=r"no such file: .*other\.gguf"):
        sl.load(folder, gguf_file="other.gguf")
    whole = (folder / FILE).read_bytes()
    for share in (0.0, 0.1, 0.9):
        (folder / FILE).write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match="is truncated or not a GGUF file"):
            sl.load(folder, gguf_file=FILE)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    with pytest.raises(ImportError, match="pip install gguf"):
        sl.load(folder, gguf_file=FILE)
