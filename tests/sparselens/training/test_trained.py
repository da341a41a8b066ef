"""Which parameters training moves, and what no optimiser can train."""

from typing import Any

import pytest
import torch

import sparselens as sl
from sparselens.training.trained import attentions, choose_trained
from tests.tiny_models import tiny_bridge, tiny_model
from tests.tiny_runs import gated, run


def trained(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def named(text: str, *parts: str) -> set[str]:
    """Names in both of two blocks."""
    return {text.format(layer, part) for layer in range(2) for part in parts}


def test_attention_of_llama_and_of_gpt2():
    llama, gpt2 = tiny_model("llama"), tiny_model("gpt2")
    choose_trained(llama, "attention")
    assert trained(llama) == named("model.layers.{}.self_attn.{}_proj.weight", *"qkvo")
    choose_trained(gpt2, "attention")  # fused
    assert trained(gpt2) == {
        f"{name}.{kind}"
        for name in named("transformer.h.{}.attn.{}", "c_attn", "c_proj")
        for kind in ("weight", "bias")
    }


def test_queries_and_keys_with_their_norms_and_biases():
    llama, qwen, bert = tiny_model("llama"), tiny_model("qwen3"), tiny_model("bert")
    choose_trained(llama, "qk")
    assert trained(llama) == named("model.layers.{}.self_attn.{}_proj.weight", *"qk")
    choose_trained(qwen, "qk")
    both = named("model.layers.{}.self_attn.{}_proj.weight", *"qk")
    assert trained(qwen) == both | named("model.layers.{}.self_attn.{}_norm.weight", *"qk")
    choose_trained(bert, "qk")
    assert {name.split(".")[-2] for name in trained(bert)} == {"query", "key"}
    assert len(trained(bert)) == 8


def test_bridges_too_also_where_transformers_fuses_the_weight():
    for family in ("llama", "gpt2"):
        model = tiny_bridge(family)
        choose_trained(model, "qk")
        layers = {name.replace("._original_component", "").split(".")[-2] for name in trained(model)}
        assert layers == ({"q", "k"} if family == "gpt2" else {"q_proj", "k_proj"})


@pytest.mark.parametrize(("family", "fused"), [("gpt2", "c_attn"), ("neox", "query_key_value"), ("phi3", "qkv_proj")])
def test_fused_weights_have_no_queries_and_keys_of_their_own(family: str, fused: str):
    model = tiny_model(family)
    with pytest.raises(ValueError, match=rf"0\.\w+ has no separate query weight, only .*{fused}.*whole attention"):
        choose_trained(model, "qk")
    assert len(trained(model)) == len(list(model.parameters()))  # left as it was
    choose_trained(model, "attention")
    assert any(fused in name for name in trained(model))


def test_all_after_a_part_is_all():
    model = tiny_model("llama")
    choose_trained(model, "qk")
    choose_trained(model, "all")
    assert len(trained(model)) == len(list(model.parameters()))


def test_models_without_attention_and_unknown_parts_are_refused():
    with pytest.raises(ValueError, match="found no attention in this Linear"):
        attentions(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="cannot train 'mlp': want attention, qk, all"):
        choose_trained(tiny_model("llama"), "mlp")


def test_a_run_moves_what_was_chosen():
    model = gated("transformers", "llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    choose_trained(model, "qk")
    run(model, multiplier=1e-3, target=99.0)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == trained(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_not_trained(dtype: torch.dtype):
    model = sl.sparsify(tiny_model("llama").to(dtype), 2.0)
    with pytest.raises(ValueError, match=r"model\.embed_tokens\.weight is in b?float16.*call model\.float\(\)"):
        run(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="every parameter of the model is frozen"):
        run(model)
