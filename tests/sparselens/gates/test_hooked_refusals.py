"""TransformerBridge models that cannot be gated, and weight processing that is wrong for gates, raise errors."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tr
from torch import Tensor, nn

from sparselens.analyses.engine.residual_stream import read_model
from sparselens.gates.surgery import densify, is_sparse, sparsify
from tests.tiny_models import VOCABULARY, bridge_of, tiny_bridge, tiny_model, tiny_tokens


def run(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens)


@pytest.mark.parametrize("family", ["gpt2", "llama", "neo", "opt"])
def test_compatibility_mode_before_and_after(family: str) -> None:
    tokens = tiny_tokens()
    wanted = run(sparsify(tiny_bridge(family), 0.0), tokens).log_softmax(-1)
    first, later = tiny_bridge(family), sparsify(tiny_bridge(family), 0.0)
    later.enable_compatibility_mode(fold_value_biases=False)
    first.enable_compatibility_mode(fold_value_biases=False)
    sparsify(first, 0.0)
    for model in (first, later):
        torch.testing.assert_close(run(model, tokens).log_softmax(-1), wanted, atol=1e-4, rtol=1e-4)
        assert "blocks.1.attn.hook_gate" in model.hook_dict
        densify(model)
        assert not [name for name in model.hook_dict if "hook_gate" in name]


def test_folding_value_biases_is_refused_while_gated() -> None:
    model = sparsify(tiny_bridge("gpt2"), 0.0)
    tokens = tiny_tokens()
    sparse = run(model, tokens)
    twin = copy.deepcopy(model)
    for gated in (model, twin):
        with pytest.raises(ValueError, match=r"fold_value_biases=False"):
            gated.enable_compatibility_mode()
        with pytest.raises(ValueError, match=r"fold_value_biases=False"):
            gated.process_weights()
        with pytest.raises(ValueError, match=r"refactor_factored_attn_matrices=False"):
            gated.enable_compatibility_mode(fold_value_biases=False, refactor_factored_attn_matrices=True)
        assert torch.equal(run(gated, tokens), sparse)
        assert not gated.compatibility_mode
    model.enable_compatibility_mode(no_processing=True)
    torch.testing.assert_close(run(model, tokens), sparse)
    densify(twin).enable_compatibility_mode()
    assert not twin.blocks[0].attn.b_V.any()


@pytest.mark.parametrize("family", ["gpt2", "neo", "opt"])
def test_a_model_with_folded_value_biases_is_refused(family: str) -> None:
    model = tiny_bridge(family)
    model.enable_compatibility_mode()
    with pytest.raises(ValueError, match="value biases are folded"):
        sparsify(model, 0.0)
    assert not is_sparse(model)


def _state_space() -> Any:
    return bridge_of(tr.MambaForCausalLM(tr.MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2)))


def _encoder_decoder() -> Any:
    config = tr.T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return bridge_of(tr.T5ForConditionalGeneration(config))


def _not_eager() -> Any:
    return bridge_of(tiny_model("opt", attn_implementation="sdpa"))


def _name_taken() -> Any:
    from transformer_lens.hook_points import HookPoint

    model = tiny_bridge("llama")
    model.blocks[1].attn.hook_gate = HookPoint()
    return model


def _no_pattern() -> Any:
    model = tiny_bridge("llama")
    del model.blocks[1].attn.hook_pattern
    return model


def _another_attention() -> Any:
    from transformer_lens.hook_points import HookPoint

    model = tiny_bridge("llama")
    model.blocks[1].add_module("cross_attn", nn.Module())
    model.blocks[1].cross_attn.hook_pattern = HookPoint()
    return model


def _changed_attention(family: str, layer: int, forward: Callable[..., Any]) -> Any:
    """A bridge in which one attention is of an unknown class."""
    model = tiny_bridge(family)
    attn = model.blocks[layer].attn
    attn.__class__ = type("UnknownAttention", (type(attn),), {"forward": forward})
    return model


def _shows_afterwards(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Transformers computes; the hook points only get copies that are not used."""
    output = self.original_component(*args, **kwargs)
    scores = output[1].log().clamp_min(-1e9)
    self.hook_pattern(torch.softmax(self.hook_attn_scores(scores), dim=-1))
    return output


def _shows_pattern_first(self: Any, *args: Any, **kwargs: Any) -> Any:
    output = self.original_component(*args, **kwargs)
    self.hook_attn_scores(self.hook_pattern(output[1]))
    return output


def _shows_nothing(self: Any, *args: Any, **kwargs: Any) -> Any:
    return self.original_component(*args, **kwargs)


def _has_no_softmax(self: Any, hidden_states: Tensor, **_: Any) -> Any:
    value = hidden_states.unflatten(-1, (4, -1)).transpose(1, 2)
    scores = self.hook_attn_scores((value @ value.mT).tril())
    pattern = self.hook_pattern(scores.sigmoid())
    return (pattern @ value).transpose(1, 2).flatten(2), pattern


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (_state_space, "layer 0 .*has no attention.*state-space"),
        (_encoder_decoder, "encoder-decoder"),
        (_not_eager, "'sdpa'.*eager"),
        (_name_taken, "layer 1 .*already has a hook point hook_gate"),
        (_no_pattern, "layer 1 .*no hook point hook_pattern"),
        (_another_attention, "blocks.1.cross_attn.hook_pattern"),
        (lambda: _changed_attention("opt", 1, _shows_afterwards), "layer 1: .*UnknownAttention"),
        (lambda: _changed_attention("opt", 0, _shows_pattern_first), "hook_pattern was called before hook_attn_scores"),
        (lambda: _changed_attention("opt", 1, _shows_nothing), "layer 1: .*UnknownAttention does not pass scores"),
        (lambda: _changed_attention("gpt2", 1, _has_no_softmax), "layer 1: .*is not the softmax"),
    ],
)
def test_what_cannot_be_gated_is_refused_and_left_alone(build: Callable[[], Any], message: str) -> None:
    model = build()
    points = [(name, id(point), type(point)) for name, point in model.hook_dict.items()]
    modules = [(name, id(module)) for name, module in model.named_modules()]
    with pytest.raises(ValueError, match=message):
        sparsify(model, 0.0)
    assert not is_sparse(model)
    assert [(name, id(point), type(point)) for name, point in model.hook_dict.items()] == points
    assert [(name, id(module)) for name, module in model.named_modules()] == modules
    assert "enable_compatibility_mode" not in model.__dict__


def test_a_model_without_numbers_is_gated_unproved() -> None:
    model = tiny_bridge("llama").to("meta")
    assert is_sparse(sparsify(model, 0.0))


def test_dense_models_have_nothing_to_take_out() -> None:
    with pytest.raises(ValueError, match="has no gates"):
        densify(tiny_bridge("gpt2"))


def test_broken_weights_are_named() -> None:
    model = tiny_bridge("gpt2")
    name, values = next((name, values) for name, values in model.named_parameters() if "attn" in name)
    values.data[(0,) * values.ndim], values.data[(-1,) * values.ndim] = float("nan"), float("inf")
    with pytest.raises(ValueError, match=f"the weights of this model are not finite: 2 values of {name} are NaN"):
        sparsify(model, 0.0)
    with pytest.raises(ValueError, match="the weights of this model are not finite"):
        read_model(model)


def test_a_context_of_three_can_be_gated_and_read() -> None:
    model = tiny_bridge("gpt2", n_positions=3)
    assert read_model(model).graph.n_edges == read_model(sparsify(model, 0.0)).graph.n_edges
