"""Gates in a TransformerBridge: what its users do goes on working, and what cannot work is refused."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tr
from torch import Tensor, nn

from sparselens.gates import RowNoise
from sparselens.statistics import record_gates
from sparselens.surgery import densify, gate_settings, is_sparse, sparsify
from tests.tiny_models import VOCABULARY, bridge_of, tiny_bridge, tiny_model, tiny_tokens

LIVE_AND_WRAPPED = ("gpt2", "llama", "neo", "opt")  # the bridge computes attention itself, or leaves it to transformers


@pytest.fixture(params=LIVE_AND_WRAPPED)
def model(request: pytest.FixtureRequest) -> Any:
    return sparsify(tiny_bridge(request.param), 0.0)


def run(model: Any, tokens: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        return model(tokens, **options)


# what goes on working


def test_training_is_noisy_and_evaluation_deterministic(model: Any) -> None:
    tokens = tiny_tokens()
    assert torch.equal(run(model, tokens), run(model, tokens))
    model.train()
    assert not torch.equal(run(model, tokens), run(model, tokens))
    gate_settings(model).noise = RowNoise(seed=0, step=0)
    assert torch.equal(run(model, tokens), run(model, tokens))


def test_generation_with_and_without_cache(model: Any) -> None:
    tokens = tiny_tokens(batch=1, length=5)
    options = {"max_new_tokens": 6, "do_sample": False, "verbose": False, "return_type": "tokens", "stop_at_eos": False}
    with torch.no_grad():
        cached, uncached = (model.generate(tokens, use_past_kv_cache=use, **options) for use in (True, False))
    assert cached.shape == (1, 11)
    assert torch.equal(cached, uncached)


def test_left_padding_changes_nothing_and_gets_no_gates(model: Any) -> None:
    tokens = tiny_tokens(batch=1, length=5)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), tokens], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 5])
    with torch.no_grad(), record_gates(model) as gates:
        logits, cache = model.run_with_cache(padded, attention_mask=mask)
    torch.testing.assert_close(logits[:, 3:], run(model, tokens), atol=1e-5, rtol=1e-5)
    for layer in range(2):
        gate = cache[f"blocks.{layer}.attn.hook_gate"]
        assert not gate[..., :3].any()
        assert not gate[..., :3, :].any()
    assert gates.visible_pairs.tolist() == [[15.0] * 4] * 2


@pytest.mark.parametrize("option", ["use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_options_of_the_bridge_change_nothing(family: str, option: str) -> None:
    model = sparsify(tiny_bridge(family), 0.0)
    tokens = tiny_tokens()
    plain = run(model, tokens)
    getattr(model, f"set_{option}")(True)
    torch.testing.assert_close(run(model, tokens), plain, atol=1e-5, rtol=1e-5)


def test_removing_all_hooks_leaves_the_gates(model: Any) -> None:
    tokens = tiny_tokens()
    sparse = run(model, tokens)
    model.reset_hooks(including_permanent=True)
    assert torch.equal(run(model, tokens), sparse)


def test_deep_copy_is_independent(model: Any) -> None:
    tokens = tiny_tokens()
    run(model, tokens)
    sparse = run(model, tokens)
    twin = copy.deepcopy(model)
    assert torch.equal(run(twin, tokens), sparse)
    sparsify(twin, 1e4)
    assert gate_settings(model).gate_bias == 0.0
    densify(twin)
    assert torch.equal(run(model, tokens), sparse)
    assert not torch.equal(run(twin, tokens), sparse)


def test_position_slices_of_the_cache(model: Any) -> None:
    with torch.no_grad():
        _, whole = model.run_with_cache(tiny_tokens())
        _, last = model.run_with_cache(tiny_tokens(), pos_slice=-1)
    for name in ("hook_gate", "hook_gate_logits", "hook_gate_probs"):
        name = f"blocks.1.attn.{name}"
        assert torch.equal(last[name].squeeze(-2), whole[name][..., -1, :])


@pytest.mark.parametrize("family", LIVE_AND_WRAPPED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(family: str, dtype: torch.dtype) -> None:
    dense = tiny_model(family).to(dtype)
    model, tokens = bridge_of(dense), tiny_tokens()
    before = run(model, tokens)
    sparsify(model, 1e4)
    assert torch.equal(run(model, tokens), before)
    sparsify(model, 0.0)
    with torch.no_grad(), record_gates(model) as gates:
        logits, cache = model.run_with_cache(tokens)
    assert logits.dtype == dtype
    assert logits.isfinite().all()
    assert cache["blocks.0.attn.hook_gate_logits"].dtype == torch.float32
    assert gates.open_fraction.gt(0).any()


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_gradient_checkpointing_gives_the_same_gradients(family: str) -> None:
    gradients = []
    for checkpointed in (False, True):
        model = sparsify(tiny_bridge(family), 0.0)
        gate_settings(model).noise = RowNoise(seed=0, step=0)
        model.train()
        if checkpointed:
            model.original_model.activation_checkpointing_enable({"use_reentrant": False})
        with record_gates(model) as gates:
            loss = model(tiny_tokens()).square().mean() + gates.expected_share
            loss.backward()
        assert gates.visible_pairs.tolist() == [[45.0] * 4] * 2  # means: running a layer twice changes none
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    plain, again = gradients
    assert plain.keys() == again.keys()
    assert all(torch.equal(again[name], gradient) for name, gradient in plain.items())


@pytest.mark.parametrize("family", LIVE_AND_WRAPPED)
def test_state_goes_into_a_fresh_model(family: str) -> None:
    tokens = tiny_tokens()
    model, other = (sparsify(tiny_bridge(family, seed=seed), 0.0) for seed in (0, 1))
    assert not torch.equal(run(other, tokens), run(model, tokens))
    other.load_state_dict(model.state_dict())
    assert torch.equal(run(other, tokens), run(model, tokens))


def test_second_sparsify_changes_the_bias_only(model: Any) -> None:
    settings = gate_settings(model)
    assert sparsify(model, 2.0) is model
    assert gate_settings(model) is settings
    assert settings.gate_bias == 2.0
    assert settings.n_layers == 2


def test_a_given_mask_of_zeros_opens_both_directions() -> None:
    model = sparsify(tiny_bridge("gpt2"), 0.0)
    with torch.no_grad(), record_gates(model) as gates:
        model(tiny_tokens(length=6), attention_mask=torch.zeros(2, 1, 6, 6))
    assert gates.visible_pairs.tolist() == [[36.0] * 4] * 2


# hooks


@pytest.mark.parametrize("family", LIVE_AND_WRAPPED)
@pytest.mark.parametrize("permanent", [False, True])
def test_user_hooks_survive_both_ways(family: str, permanent: bool) -> None:
    model, seen = tiny_bridge(family), []

    def note(value: Tensor, hook: Any) -> None:
        seen.append(hook.name)

    names = ["blocks.0.attn.hook_attn_scores", "blocks.0.attn.hook_pattern", "blocks.1.hook_resid_pre"]
    for name in names:
        model.add_hook(name, note, is_permanent=permanent)
    sparsify(model, 0.0)
    assert seen == []  # the surgery's own forward passes are none of theirs
    for change in (lambda m: m, densify):
        run(change(model), tiny_tokens())
        assert sorted(set(seen)) == sorted({model.hook_dict[name].name for name in names})
        assert len(seen) == len(names)
        seen.clear()


def test_pattern_hooks_see_and_edit_what_acts(model: Any) -> None:
    seen: list[Tensor] = []

    def double(pattern: Tensor, hook: Any) -> Tensor:
        seen.append(pattern)
        return 2 * pattern

    tokens = tiny_tokens()
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
        with model.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", double)]):
            _, edited = model.run_with_cache(tokens)
    assert torch.equal(seen[0], cache["blocks.0.attn.hook_pattern"])
    assert not seen[0][cache["blocks.0.attn.hook_gate"] == 0].any()
    torch.testing.assert_close(edited["blocks.0.attn.hook_z"], 2 * cache["blocks.0.attn.hook_z"])


def test_one_patched_gate_moves_one_edge(model: Any) -> None:
    tokens = tiny_tokens()

    def open_edge(gate: Tensor, hook: Any) -> Tensor:
        gate = gate.clone()
        gate[:, 1, 4, 2] = 1 - gate[:, 1, 4, 2]
        return gate

    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
        with model.hooks(fwd_hooks=[("blocks.0.attn.hook_gate", open_edge)]):
            _, patched = model.run_with_cache(tokens)
    changed = (patched["blocks.0.attn.hook_pattern"] != cache["blocks.0.attn.hook_pattern"]).nonzero()
    assert changed.tolist() == [[0, 1, 4, 2], [1, 1, 4, 2]]
    moved = (patched["blocks.0.attn.hook_z"] != cache["blocks.0.attn.hook_z"]).any(-1).nonzero()
    assert moved.tolist() == [[0, 4, 1], [1, 4, 1]]


def test_evaluation_gates_carry_gradient_only_when_patched(model: Any) -> None:
    tokens = tiny_tokens()
    grown: dict[str, Tensor] = {}

    def plain(gate: Tensor, hook: Any) -> None:
        assert not gate.requires_grad

    def patch(gate: Tensor, hook: Any) -> Tensor:
        grown["gate"] = gate.clone().requires_grad_()
        return grown["gate"]

    model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_gate", plain)])
    model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_gate", patch)]).square().sum().backward()
    gradient = grown["gate"].grad
    assert gradient is not None
    assert gradient.tril().abs().gt(0).float().mean() > 0.3  # closed edges have one too
    assert not gradient.triu(1).any()


def test_backward_hooks_see_the_gradient_of_what_acts(model: Any) -> None:
    gradients: list[Tensor] = []
    model.add_hook("blocks.1.attn.hook_pattern", lambda g, hook: gradients.append(g), dir="bwd")
    model(tiny_tokens()).square().sum().backward()
    assert gradients[0].any()


def test_hooks_and_modes_are_as_before_the_surgery() -> None:
    model = tiny_bridge("gpt2")
    model.train()
    model.blocks[1].mlp.eval()
    modes = [(name, module.training) for name, module in model.named_modules()]
    hooks = [(name, dict(module._forward_hooks)) for name, module in model.named_modules()]
    random_state = torch.random.get_rng_state()
    densify(sparsify(model, 0.0))
    assert [(name, module.training) for name, module in model.named_modules()] == modes
    assert [(name, dict(module._forward_hooks)) for name, module in model.named_modules()] == hooks
    assert torch.equal(torch.random.get_rng_state(), random_state)


# weight processing


@pytest.mark.parametrize("family", LIVE_AND_WRAPPED)
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


# refusals


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
    """A bridge one of whose attentions is of a class that nobody has seen before."""
    model = tiny_bridge(family)
    attn = model.blocks[layer].attn
    attn.__class__ = type("UnknownAttention", (type(attn),), {"forward": forward})
    return model


def _shows_afterwards(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Transformers computes; the hook points get copies that nothing reads."""
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
        (_name_taken, "layer 1 .*already has a hook_gate"),
        (_no_pattern, "layer 1 .*no hook point hook_pattern"),
        (_another_attention, "blocks.1.cross_attn.hook_pattern"),
        (lambda: _changed_attention("opt", 1, _shows_afterwards), "layer 1: .*UnknownAttention"),
        (lambda: _changed_attention("opt", 0, _shows_pattern_first), "pattern came without scores"),
        (lambda: _changed_attention("opt", 1, _shows_nothing), "layer 1: .*UnknownAttention shows no scores"),
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
    with pytest.raises(ValueError, match="carries no gates"):
        densify(tiny_bridge("gpt2"))


def test_native_bridges_take_gates() -> None:
    from transformer_lens import TransformerBridge

    sizes = {"n_layers": 2, "d_model": 16, "n_heads": 4, "d_head": 4, "n_ctx": 16, "d_mlp": 24, "d_vocab": VOCABULARY}
    model = TransformerBridge.boot_native({**sizes, "act_fn": "gelu", "normalization_type": "LN", "seed": 0})
    model.eval()
    tokens = tiny_tokens()
    dense = run(model, tokens)
    sparsify(model, 1e4)
    torch.testing.assert_close(run(model, tokens), dense)
    sparsify(model, -1e4)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    assert not cache["blocks.1.attn.hook_z"].any()
    densify(model)
    assert torch.equal(run(model, tokens), dense)
