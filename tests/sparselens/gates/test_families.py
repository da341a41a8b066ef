"""Properties of the gates that must hold for every model family, on tiny random models."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sparselens.gates.noise import RowNoise
from sparselens.gates.statistics import record_gates
from sparselens.gates.surgery import densify, gate_settings, is_sparse, sparsify
from tests.tiny_models import FAMILIES, LENGTH, bridge_of, tiny_bridge, tiny_model, tiny_tokens

# the one place where transformers accepts a custom attention function
OPEN_TO_TRANSFORMERS = sorted(set(FAMILIES) - {"neo", "gptj", "bloom", "falcon", "mpt"})
GATE_POINTS = ("hook_gate_logits", "hook_gate_probs", "hook_gate")


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def built(request: pytest.FixtureRequest) -> tuple[str, Any]:
    return request.param, tiny_bridge(request.param)


@pytest.fixture
def family(built: tuple[str, Any]) -> str:
    return built[0]


@pytest.fixture
def model(built: tuple[str, Any]) -> Iterator[Any]:
    bridge = built[1]
    yield bridge
    if is_sparse(bridge):
        densify(bridge)


def log_probs(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens).log_softmax(-1)


def registry(model: Any) -> list[tuple[str, int, str, type]]:
    return [(name, id(point), point.name, type(point)) for name, point in model.hook_dict.items()]


def own_softmax(attn: Any, scores: Tensor) -> Tensor:
    """The dense pattern for these scores; gpt-oss has an additional sink per row."""
    sinks = getattr(attn, "sinks", None)
    if sinks is None:
        return torch.softmax(scores, dim=-1)
    sinks = sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    return torch.softmax(torch.cat([scores, sinks], dim=-1), dim=-1)[..., :-1]


def expected_pairs(family: str, layer: int) -> int:
    """Visible pairs of one head over a sequence of nine tokens, with windows of five."""
    windows = {"mistral": (0, 1), "gemma2": (0,), "gemma3": (0, 1), "neo": (1,), "gpt-oss": (0,)}
    if family == "bert":
        return LENGTH**2
    return sum(min(i + 1, 5) for i in range(LENGTH)) if layer in windows.get(family, ()) else LENGTH * (LENGTH + 1) // 2


def test_open_gates_change_nothing(model: Any) -> None:
    tokens = tiny_tokens()
    dense = log_probs(model, tokens)
    sparsify(model, 1e4)
    torch.testing.assert_close(log_probs(model, tokens), dense, atol=1e-5, rtol=0)


def test_pattern_is_dense_softmax_times_gate(family: str, model: Any) -> None:
    tokens = tiny_tokens()
    with torch.no_grad():
        _, dense = model.run_with_cache(tokens)
        sparsify(model, 0.0)
        _, cache = model.run_with_cache(tokens)
    for layer, block in enumerate(model.blocks):
        scores, pattern, gate = (
            cache[f"blocks.{layer}.attn.{n}"] for n in ("hook_attn_scores", "hook_pattern", "hook_gate")
        )
        gate_logits = cache[f"blocks.{layer}.attn.hook_gate_logits"]
        visible = torch.isfinite(gate_logits)
        if family == "mpt":  # its scores depend on the number of later tokens: ALiBi biases of 1/4, 1/16, ... for each
            following = torch.arange(LENGTH - 1, -1, -1)[:, None] * 2.0 ** -torch.arange(2, 9, 2)[:, None, None]
            torch.testing.assert_close(gate_logits[visible], (scores + following)[visible])
            scores = torch.where(visible, gate_logits, scores)
        torch.testing.assert_close(gate, (scores > 0).float(), atol=0, rtol=0)
        torch.testing.assert_close(pattern, own_softmax(block.attn, scores) * gate)
        assert visible.sum().item() == 2 * 4 * expected_pairs(family, layer)
        assert 0 < gate.sum() < visible.sum()
    # the first layer has the same input as in the dense model
    first = dense["blocks.0.attn.hook_pattern"] * cache["blocks.0.attn.hook_gate"]
    torch.testing.assert_close(cache["blocks.0.attn.hook_pattern"], first)


def test_closed_gates_silence_every_head(model: Any) -> None:
    sparsify(model, -1e4)
    with torch.no_grad():
        _, cache = model.run_with_cache(tiny_tokens())
    for layer in range(2):
        assert not cache[f"blocks.{layer}.attn.hook_pattern"].any()
        assert not cache[f"blocks.{layer}.attn.hook_z"].any()


def test_densify_is_the_exact_inverse(model: Any) -> None:
    tokens = tiny_tokens()
    dense, points, state = log_probs(model, tokens), registry(model), model.state_dict()
    sparsify(model, 0.0)
    assert is_sparse(model)
    assert not torch.equal(log_probs(model, tokens), dense)
    assert list(model.state_dict()) == list(state)
    densify(model)
    assert not is_sparse(model)
    assert registry(model) == points
    assert torch.equal(log_probs(model, tokens), dense)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_new_hook_points_are_there_and_act(model: Any) -> None:
    sparsify(model, 0.0)
    tokens = tiny_tokens()
    sparse = log_probs(model, tokens)
    for layer in range(2):
        for name in GATE_POINTS:
            assert model.hook_dict[f"blocks.{layer}.attn.{name}"].name == f"blocks.{layer}.attn.{name}"

    def close(value: Tensor, hook: Any) -> Tensor:
        return value - 1e6

    def shut(value: Tensor, hook: Any) -> Tensor:
        return torch.zeros_like(value)

    for name, edit in (("hook_gate", shut), ("hook_gate_logits", close), ("hook_attn_scores", close)):
        with torch.no_grad():
            closed = model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.0.attn.{name}", edit)])
        assert not torch.allclose(closed.log_softmax(-1), sparse, atol=1e-4), name
        with model.hooks(fwd_hooks=[(f"blocks.0.attn.{name}", edit)]), torch.no_grad():
            _, cache = model.run_with_cache(tokens)
        assert not cache["blocks.0.attn.hook_z"].any(), name


def test_recorded_counts_are_those_of_the_cache(family: str, model: Any) -> None:
    sparsify(model, 0.5)
    with torch.no_grad(), record_gates(model) as gates:
        _, cache = model.run_with_cache(tiny_tokens(batch=3))
    for layer in range(2):
        opened = cache[f"blocks.{layer}.attn.hook_gate"].sum((0, 2, 3), dtype=torch.float64) / 3
        expected = cache[f"blocks.{layer}.attn.hook_gate_probs"].sum((2, 3)).mean(0)
        torch.testing.assert_close(gates.open[layer], opened)
        torch.testing.assert_close(gates.expected[layer], expected)
        assert gates.visible_pairs[layer].tolist() == [expected_pairs(family, layer)] * 4


def run_once(model: Any, tokens: Tensor, training: bool) -> tuple[Tensor, Any, Tensor]:
    """Logits, recorded gates and a loss that depends on both."""
    gate_settings(model).noise = RowNoise(seed=3, step=5)
    model.train(training)
    with record_gates(model) as gates:
        output = model(tokens)
    logits = output if isinstance(output, Tensor) else output.logits
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    return logits.detach(), gates, (logits * weights).mean() + gates.expected_share()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("family", OPEN_TO_TRANSFORMERS)
def test_both_ways_into_a_model_are_one(family: str, training: bool) -> None:
    plain, wrapped = tiny_model(family), tiny_model(family)
    parameters = dict(wrapped.named_parameters())
    bridge = bridge_of(wrapped)
    sparsify(plain, 0.3)
    sparsify(bridge, 0.3)
    tokens = tiny_tokens()
    logits, gates, loss = run_once(plain, tokens, training)
    bridge_logits, bridge_gates, bridge_loss = run_once(bridge, tokens, training)
    torch.testing.assert_close(bridge_logits, logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(bridge_gates.open, gates.open)
    assert torch.equal(bridge_gates.visible_pairs, gates.visible_pairs)
    torch.testing.assert_close(bridge_gates.expected, gates.expected)
    loss.backward()
    bridge_loss.backward()
    compared = 0
    for name, parameter in plain.named_parameters():
        ours = parameters[name].grad
        if ours is not None:  # a bridge that splits a fused weight trains its parts instead
            torch.testing.assert_close(ours, parameter.grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
            compared += 1
    assert plain.get_input_embeddings().weight.grad.any()
    assert compared > len(parameters) / 2


def test_gates_know_nothing_of_what_follows(family: str, model: Any) -> None:
    """Not even how many tokens follow, although MPT counts its biases from the last token."""
    sparsify(model)
    seen: list[Tensor] = []
    for length in (LENGTH, LENGTH - 3):
        with torch.no_grad():
            logits, cache = model.run_with_cache(tiny_tokens()[:, :length])
        seen += [logits[:, : LENGTH - 3], cache["blocks.1.attn.hook_gate_logits"][:, :, : LENGTH - 3, : LENGTH - 3]]
    if family == "bert":  # reads in both directions
        return
    torch.testing.assert_close(seen[2], seen[0], atol=2e-5, rtol=1e-4)
    visible = torch.ones(LENGTH - 3, LENGTH - 3).tril().bool()
    torch.testing.assert_close(seen[3][..., visible], seen[1][..., visible], atol=2e-5, rtol=1e-4)
