"""The character model: transformers, a reloaded folder and a bridge compute the same, causal or bidirectional."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparselens.models.character_model import attend_both_ways, character_model, character_tokenizer

ALPHABET = "0123456789+=?"
TOKENS = torch.tensor([[5, 3, 10, 2, 1, 11, 12, 12], [1, 0, 10, 9, 9, 11, 12, 12]])


def small_model(bidirectional: bool = True, seed: int = 0):
    model = character_model(ALPHABET, 11, 2, 2, 8, bidirectional, seed)
    for parameter in model.parameters():  # far from the near-uniform attention of a fresh model
        parameter.data *= 3
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("character_model")
    small_model().save_pretrained(path)
    character_tokenizer(ALPHABET).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def bridge(folder: Path) -> TransformerBridge:
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    attend_both_ways(model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return TransformerBridge.boot_transformers(
        "character-model", hf_model=model, tokenizer=tokenizer, device="cpu"
    ).eval()


@pytest.fixture
def logits() -> Tensor:
    return small_model()(TOKENS).logits.detach()


def changes_first_position(model: torch.nn.Module) -> bool:
    later = TOKENS.clone()
    later[:, -1] = 7
    return not torch.allclose(model(TOKENS).logits[:, 0], model(later).logits[:, 0])


def test_direction():
    assert changes_first_position(small_model(bidirectional=True))
    assert not changes_first_position(small_model(bidirectional=False))


def test_seed():
    first, same, other = (dict(small_model(seed=seed).named_parameters()) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    state = torch.random.get_rng_state()
    small_model()
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_fresh_model_has_no_dropout():
    model = small_model().train()
    assert torch.equal(model(TOKENS).logits, model(TOKENS).logits)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_reloaded_folder(folder: Path, logits: Tensor, implementation: str):
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=implementation)
    attend_both_ways(model)
    attend_both_ways(model)
    assert len(model._forward_pre_hooks) == 1
    torch.testing.assert_close(model(TOKENS).logits, logits, atol=1e-5, rtol=0)
    embedded = model(inputs_embeds=model.transformer.wte(TOKENS))
    torch.testing.assert_close(embedded.logits, logits, atol=1e-5, rtol=0)


def test_causal_models_are_left_alone():
    model = small_model(bidirectional=False)
    attend_both_ways(model)
    assert not model._forward_pre_hooks


def test_padding_stays_hidden(bridge: TransformerBridge):
    model = small_model()
    shown = torch.ones_like(TOKENS)
    shown[:, -2:] = 0
    expected = model(TOKENS[:, :-2]).logits
    torch.testing.assert_close(model(TOKENS, attention_mask=shown).logits[:, :-2], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(bridge(TOKENS, attention_mask=shown)[:, :-2], expected, atol=1e-5, rtol=0)


def test_bridge_attends_both_ways(bridge: TransformerBridge, logits: Tensor):
    torch.testing.assert_close(bridge(TOKENS), logits, atol=1e-5, rtol=0)
    cached_logits, cache = bridge.run_with_cache(TOKENS)
    torch.testing.assert_close(cached_logits, logits, atol=1e-5, rtol=0)
    assert (cache["blocks.1.attn.hook_pattern"] > 0).all()


def test_bridge_has_every_hook(bridge: TransformerBridge, logits: Tensor):
    bridge.set_use_attn_result(True)
    bridge.set_use_split_qkv_input(True)
    try:
        result_logits, cache = bridge.run_with_cache(TOKENS)
    finally:
        bridge.set_use_attn_result(False)
        bridge.set_use_split_qkv_input(False)
    torch.testing.assert_close(result_logits, logits, atol=1e-5, rtol=0)
    assert cache["blocks.1.attn.hook_result"].shape == (2, 8, 2, 8)
    assert cache["blocks.1.hook_q_input"].shape == (2, 8, 2, 8)


def test_tokenizer_round_trip(folder: Path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("53+21=?????").input_ids
    assert ids == [5, 3, 10, 2, 1, 11, 12, 12, 12, 12, 12]
    assert tokenizer.decode(ids) == "53+21=?????"
    assert tokenizer("a").input_ids == [len(ALPHABET)]


def test_newlines_and_spaces_are_characters_too():
    assert character_tokenizer("a \n")("a\n a").input_ids == [0, 2, 1, 0]


def test_alphabet_twice():
    with pytest.raises(ValueError, match="'aba'"):
        character_tokenizer("aba")


def test_unknown_characters_are_refused():
    ids = torch.tensor([character_tokenizer(ALPHABET)("5-3").input_ids])
    with pytest.raises(IndexError):
        small_model()(ids)


def test_call_without_input():
    with pytest.raises(ValueError, match="input_ids"):
        small_model()()
