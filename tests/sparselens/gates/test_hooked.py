"""Gates in a TransformerBridge: everything that users do with a bridge still works."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from sparselens.gates.noise import RowNoise
from sparselens.gates.statistics import record_gates
from sparselens.gates.surgery import densify, gate_settings, sparsify
from tests.tiny_models import VOCABULARY, bridge_of, checkpoint_activations, tiny_bridge, tiny_model, tiny_tokens

LIVE_AND_WRAPPED = ("gpt2", "llama", "neo", "opt")  # the bridge computes attention itself, or leaves it to transformers


@pytest.fixture(params=LIVE_AND_WRAPPED)
def model(request: pytest.FixtureRequest) -> Any:
    return sparsify(tiny_bridge(request.param), 0.0)


def run(model: Any, tokens: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        return model(tokens, **options)


# features that still work


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
            checkpoint_activations(model.original_model, use_reentrant=False)
        with record_gates(model) as gates:
            loss = model(tiny_tokens()).square().mean() + gates.expected_share()
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
    assert seen == []  # user hooks do not see the forward passes that check the gates
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
    assert gradient.tril().abs().gt(0).float().mean() > 0.3  # closed edges have a gradient too
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


@pytest.mark.parametrize("training", [True, False])
def test_new_hook_points_are_in_the_mode_of_their_attention(training: bool) -> None:
    model = sparsify(tiny_bridge("gpt2").train(training), 0.0)
    for block in model.blocks:
        assert {point.training for point in (block.attn.hook_gate, block.attn.hook_gate_probs)} == {training}
    assert len({module.training for module in model.modules()}) == 1


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
