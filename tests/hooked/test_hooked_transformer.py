"""Gates in a HookedTransformer, which TransformerLens has up to 3.9: the same surgery through the same hook points."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from sparselens.gates.noise import RowNoise
from sparselens.gates.statistics import record_gates
from sparselens.gates.surgery import densify, gate_settings, is_sparse, sparsify
from tests.tiny_models import tiny_bridge, tiny_tokens

KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {
        "positional_embedding_type": "rotary",
        "rotary_dim": 4,
        "normalization_type": "RMS",
        "n_key_value_heads": 2,
    },
    "alibi": {"positional_embedding_type": "alibi"},
    "soft-cap": {"attn_scores_soft_cap": 2.0},
    "window": {"use_local_attn": True, "attn_types": ["local", "global"], "window_size": 5},
    "both ways": {"attention_dir": "bidirectional"},
}


def build(kind: str = "gpt2", seed: int = 0, **options: Any) -> Any:
    import transformer_lens

    sizes = {"n_layers": 2, "d_model": 16, "n_heads": 4, "d_head": 4, "n_ctx": 32, "d_mlp": 24, "d_vocab": 31}
    common = {"act_fn": "gelu", "normalization_type": "LN", "device": "cpu"}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = transformer_lens.HookedTransformerConfig(**(sizes | common | KINDS[kind] | options))
        model = transformer_lens.HookedTransformer(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


@pytest.fixture(params=sorted(KINDS))
def model(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


def run(model: Any, tokens: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        return model(tokens, **options)


def test_open_gates_change_nothing(model: Any) -> None:
    tokens = tiny_tokens()
    dense = run(model, tokens).log_softmax(-1)
    torch.testing.assert_close(run(sparsify(model, 1e4), tokens).log_softmax(-1), dense, atol=1e-5, rtol=0)


def test_pattern_is_softmax_times_gate_and_counts_agree(model: Any) -> None:
    tokens = tiny_tokens(batch=3)
    with torch.no_grad():
        _, dense = model.run_with_cache(tokens)
        sparsify(model, 0.0)
        with record_gates(model) as gates:
            _, cache = model.run_with_cache(tokens)
    for layer in range(2):
        scores, pattern, gate = (
            cache[f"blocks.{layer}.attn.{n}"] for n in ("hook_attn_scores", "hook_pattern", "hook_gate")
        )
        assert torch.equal(gate, (scores > 0).float())
        torch.testing.assert_close(pattern, torch.softmax(scores, -1) * gate)
        torch.testing.assert_close(gates.open[layer], gate.sum((0, 2, 3), dtype=torch.float64) / 3)
    first = dense["blocks.0.attn.hook_pattern"] * cache["blocks.0.attn.hook_gate"]
    torch.testing.assert_close(cache["blocks.0.attn.hook_pattern"], first)


def test_gates_know_nothing_of_longer_prompts_before(model: Any) -> None:
    """ALiBi biases are sliced from those of the longest prompt so far, which moves all scores of a query."""
    sparsify(model, 0.0)
    tokens = tiny_tokens()
    with torch.no_grad(), record_gates(model) as before:
        _, cache = model.run_with_cache(tokens)
    run(model, tokens.repeat(1, 3))
    with torch.no_grad(), record_gates(model) as after:
        _, again = model.run_with_cache(tokens)
    for layer in range(2):
        for point in ("hook_gate_logits", "hook_gate", "hook_pattern"):
            name = f"blocks.{layer}.attn.{point}"
            torch.testing.assert_close(again[name], cache[name])
    assert torch.equal(before.open, after.open)


def test_closed_gates_silence_every_head(model: Any) -> None:
    sparsify(model, -1e4)
    with torch.no_grad():
        _, cache = model.run_with_cache(tiny_tokens())
    assert not any(cache[f"blocks.{layer}.attn.hook_z"].any() for layer in range(2))


def test_densify_is_the_exact_inverse(model: Any) -> None:
    tokens = tiny_tokens()
    dense = run(model, tokens)
    points = [(name, id(p), p.name, type(p)) for name, p in model.hook_dict.items()]
    modules = [(name, id(m)) for name, m in model.mod_dict.items()]
    keys = list(model.state_dict())
    sparsify(model, 0.0)
    assert list(model.state_dict()) == keys
    assert not torch.equal(run(model, tokens), dense)
    densify(model)
    assert not is_sparse(model)
    assert [(name, id(p), p.name, type(p)) for name, p in model.hook_dict.items()] == points
    assert [(name, id(m)) for name, m in model.mod_dict.items()] == modules
    assert torch.equal(run(model, tokens), dense)


@pytest.mark.parametrize("name", ["hook_gate", "hook_gate_logits", "hook_attn_scores"])
def test_edits_act(model: Any, name: str) -> None:
    sparsify(model, 0.0)

    def close(value: Tensor, hook: Any) -> Tensor:
        return torch.zeros_like(value) if name == "hook_gate" else value - 1e6

    with torch.no_grad(), model.hooks(fwd_hooks=[(f"blocks.1.attn.{name}", close)]):
        _, cache = model.run_with_cache(tiny_tokens())
    assert not cache["blocks.1.attn.hook_z"].any()
    assert cache["blocks.0.attn.hook_z"].any()


@pytest.mark.parametrize("option", ["use_attn_result", "use_split_qkv_input", "use_hook_mlp_in"])
def test_options_change_nothing(option: str) -> None:
    model, tokens = sparsify(build(), 0.0), tiny_tokens()
    plain = run(model, tokens)
    getattr(model, f"set_{option}")(True)
    torch.testing.assert_close(run(model, tokens), plain, atol=1e-5, rtol=1e-5)


def test_generation_with_and_without_cache() -> None:
    model = sparsify(build("llama"), 0.0)
    options = {"max_new_tokens": 6, "do_sample": False, "verbose": False, "return_type": "tokens", "stop_at_eos": False}
    with torch.no_grad():
        cached, uncached = (
            model.generate(tiny_tokens(1, 5), use_past_kv_cache=use, **options) for use in (True, False)
        )
    assert torch.equal(cached, uncached)


def test_noise_hooks_copies_and_gradients() -> None:
    model, seen = build(), []
    model.add_perma_hook("blocks.0.attn.hook_pattern", lambda value, hook: seen.append(hook.name))
    sparsify(model, 0.0)
    tokens = tiny_tokens()
    assert seen == []
    sparse = run(model, tokens)
    assert seen == ["blocks.0.attn.hook_pattern"]
    twin = copy.deepcopy(model)
    densify(twin)
    assert torch.equal(run(model, tokens), sparse)
    model.reset_hooks(including_permanent=True)
    assert torch.equal(run(model, tokens), sparse)
    model.train()
    assert not torch.equal(run(model, tokens), run(model, tokens))
    gate_settings(model).noise = RowNoise(seed=0, step=0)
    with record_gates(model) as gates:
        logits = model(tokens)
    (logits.square().mean() + gates.expected_share()).backward()
    assert all(block.attn.W_Q.grad.any() for block in model.blocks)


def test_folded_value_biases_are_refused() -> None:
    source = build()
    model = build(seed=1)
    model.load_and_process_state_dict(source.state_dict())
    assert not model.b_V.any()
    with pytest.raises(ValueError, match="value biases are folded"):
        sparsify(model, 0.0)
    model = build(seed=1)
    model.load_and_process_state_dict(source.state_dict(), fold_value_biases=False)
    tokens = tiny_tokens()
    wanted = run(sparsify(source, 0.0), tokens).log_softmax(-1)
    torch.testing.assert_close(run(sparsify(model, 0.0), tokens).log_softmax(-1), wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="fold_value_biases=False"):
        model.load_and_process_state_dict(source.state_dict())


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "opt"])
def test_the_bridge_of_this_release_takes_the_same_gates(family: str) -> None:
    model, tokens = tiny_bridge(family), tiny_tokens()
    dense = run(model, tokens)
    torch.testing.assert_close(run(sparsify(model, 1e4), tokens), dense)
    sparsify(model, -1e4)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    assert not cache["blocks.1.attn.hook_z"].any()
    assert torch.equal(run(densify(model), tokens), dense)
