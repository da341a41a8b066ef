"""Fused attention against the eager reference: values, counts and every gradient, with the same noise."""

import importlib.util
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sparselens.gates.fused import Call, fused
from sparselens.gates.gate import attention_gates, count_open
from sparselens.gates.noise import RowNoise, hashed_uniform, row_words, uniform_at, uniform_noise, words_of
from sparselens.gates.spans import Spans

CPU = torch.device("cpu")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs the triton package")


@pytest.fixture
def plain_flex(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """FlexAttention as it is written, neither compiled nor kept from backward passes on a CPU."""
    from torch.nn.attention import flex_attention as home

    from sparselens.gates import flex

    monkeypatch.setattr(flex, "_compiled", lambda: home.flex_attention)
    monkeypatch.setattr(home, "_validate_device", lambda *_: None)
    monkeypatch.setattr(home, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    yield


def spans_of(mask: str, batch: int, queries: int, keys: int) -> Spans:
    """What the queries see; they are the last of the positions."""
    number = torch.arange(queries) + keys - queries
    first, last = torch.zeros(queries, dtype=torch.int32), (number + 1).int()
    if mask == "all":
        last = torch.full_like(last, keys)
    if mask == "window":
        first = (number - 4).clamp(min=0).int()
    if mask == "padded":  # at either end; a row of padding sees nothing
        first, last = torch.stack([first, first + 3]), torch.stack([last.clamp(max=keys - 2), last])
        return Spans(torch.minimum(first, last), last, keys)
    return Spans(first[None], last[None], keys)


def inputs(case: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(case["seed"])
    batch, heads, kv_heads = case["batch"], case["heads"], case["kv_heads"]
    queries, keys, width = case["queries"], case["keys"], case["width"]
    shapes = {"query": (batch, heads, queries, width), "key": (batch, kv_heads, keys, width)}
    shapes |= {"value": (batch, kv_heads, keys, width)} | ({"sinks": (heads,)} if case["sinks"] else {})
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def call_of(case: dict[str, Any], sinks: Tensor | None) -> Call:
    shape = torch.Size([case["batch"], case["heads"], case["queries"], case["keys"]])
    words = words_of(RowNoise(1, 2, first_row=3), 4, shape, CPU) if case["noisy"] else None
    spans = spans_of(case["mask"], case["batch"], case["queries"], case["keys"])
    return Call(spans, 1.5 * case["width"] ** -0.5, case["bias"], case["temperature"], case["softcap"], words, sinks)


def reference(query: Tensor, key: Tensor, value: Tensor, call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """`attention_gates` and a softmax, over all pairs."""
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    scores = query @ key.mT * call.scale
    if call.softcap is not None:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    scores = scores.masked_fill(~call.spans.mask(), -torch.inf)
    noise = None if call.words is None else hashed_uniform(call.words, key.shape[2])
    gates = attention_gates(scores, call.gate_bias, noise, temperature=call.temperature)
    if call.sinks is not None:
        sink = call.sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sink], dim=-1)
    softmax = torch.softmax(scores, dim=-1).nan_to_num(nan=0.0)[..., : key.shape[2]]
    return (softmax * gates.gate) @ value, gates.probs.sum((-2, -1)), count_open(gates.gate)


def results(function: Any, case: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Values, and the gradients of a sum with fixed weights."""
    given = {name: t.requires_grad_() for name, t in inputs(case, dtype).items()}
    call = call_of(case, given.get("sinks"))
    output, expected, opened = function(given["query"], given["key"], given["value"], call)
    generator = torch.Generator().manual_seed(5)
    weights, cost = torch.randn(output.shape, generator=generator), torch.randn(expected.shape, generator=generator)
    ((output.float() * weights).sum() + (expected * cost).sum()).backward()
    found = {"output": output, "expected": expected, "opened": opened}
    return {k: t.detach() for k, t in found.items()} | {f"d_{name}": t.grad for name, t in given.items()}  # type: ignore[misc]


PLAIN = {"batch": 2, "heads": 2, "kv_heads": 2, "queries": 37, "keys": 37, "width": 16, "mask": "causal"}
PLAIN |= {"noisy": True, "bias": 0.3, "temperature": 0.4, "softcap": None, "sinks": False, "seed": 0}
CASES: dict[str, dict[str, Any]] = {
    "causal": {},
    "evaluation": {"noisy": False},
    "all": {"mask": "all", "noisy": False, "temperature": 1.0},
    "window": {"mask": "window"},
    "padded": {"mask": "padded"},
    "padded evaluation": {"mask": "padded", "noisy": False},
    "cached": {"queries": 5, "batch": 1},
    "grouped": {"heads": 6, "batch": 1},
    "one token": {"queries": 1, "keys": 1},
    "softcap": {"softcap": 0.8},
    "sinks": {"sinks": True},
    "sinks evaluation": {"sinks": True, "noisy": False, "mask": "padded"},
    "closed": {"bias": -1e4},
    "open": {"bias": 3e4},
    "some rows closed": {"bias": -1.5, "noisy": False},
    "width 24": {"width": 24, "batch": 1},
    "width 80": {"width": 80, "batch": 1, "queries": 18, "keys": 18},
    "width 256": {"width": 256, "batch": 1, "queries": 18, "keys": 18, "heads": 4},
}


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_is_the_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparselens.gates import triton_attention

    monkeypatch.setattr(triton_attention, "tiles", lambda *_: triton_attention.Tiles(16, 32, 4, 1))
    case = PLAIN | CASES[name]
    ours, wanted = results(fused("triton"), case, torch.float32), results(reference, case, torch.float64)
    for key, value in wanted.items():
        scale = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(
            ours[key].double(), value, atol=2e-5 * scale, rtol=2e-5, msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize("name", CASES)
def test_flex_is_the_reference(name: str, plain_flex: None) -> None:
    case = PLAIN | CASES[name]
    ours, wanted = results(fused("flex"), case, torch.float64), results(reference, case, torch.float64)
    for key, value in wanted.items():
        torch.testing.assert_close(ours[key].double(), value, atol=1e-6, rtol=1e-6, msg=lambda m, k=key: f"{k}: {m}")
