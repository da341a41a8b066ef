"""Fused attention against the eager reference: values, counts and every gradient, with the same noise."""

import importlib.util
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sparselens.gates.fused import Call, fused
from sparselens.gates.gate import attention_gates, count_open
from sparselens.gates.noise import RowNoise, hashed_uniform, row_words, uniform_noise, words_of
from sparselens.gates.spans import Spans

CPU = torch.device("cpu")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs the triton package")


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles of the minimum size, the last of them not full."""
    from sparselens.gates import triton_attention

    monkeypatch.setattr(triton_attention, "tiles", lambda *_: triton_attention.Tiles(16, 16, 4, 1))


def spans_of(mask: str, queries: int, keys: int) -> Spans:
    """The keys that the queries see; the queries are at the last positions."""
    number = torch.arange(queries) + keys - queries
    first, last = torch.zeros(queries, dtype=torch.int32), (number + 1).int()
    if mask == "all":
        last = torch.full_like(last, keys)
    if mask in ("window", "long window"):
        first = (number - (4 if mask == "window" else 40)).clamp(min=0).int()
    if mask == "padded":  # at either end; a row of padding sees nothing
        first, last = torch.stack([first, first + 3]), torch.stack([last.clamp(max=keys - 2), last])
        return Spans(torch.minimum(first, last), last, keys)
    return Spans(first[None], last[None], keys)


def inputs(case: dict[str, Any], dtype: torch.dtype, device: torch.device = CPU) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(case["seed"])
    batch, heads, kv_heads = case["batch"], case["heads"], case["kv_heads"]
    queries, keys, width = case["queries"], case["keys"], case["width"]
    shapes = {"query": (batch, heads, queries, width), "key": (batch, kv_heads, keys, width)}
    shapes |= {"value": (batch, kv_heads, keys, width)} | ({"sinks": (heads,)} if case["sinks"] else {})
    return {name: torch.randn(shape, generator=generator).to(device, dtype) for name, shape in shapes.items()}


def call_of(case: dict[str, Any], sinks: Tensor | None, device: torch.device = CPU) -> Call:
    shape = torch.Size([case["batch"], case["heads"], case["queries"], case["keys"]])
    words = words_of(RowNoise(1, 2, first_row=3), 4, shape, device) if case["noisy"] else None
    first, last, keys = spans_of(case["mask"], case["queries"], case["keys"])
    spans = Spans(first.to(device), last.to(device), keys)
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


def results(function: Any, case: dict[str, Any], dtype: torch.dtype, device: torch.device = CPU) -> dict[str, Tensor]:
    """Values, and the gradients of a sum with fixed weights."""
    given = {name: t.requires_grad_() for name, t in inputs(case, dtype, device).items()}
    call = call_of(case, given.get("sinks"), device)
    output, expected, opened = function(given["query"], given["key"], given["value"], call)
    generator = torch.Generator().manual_seed(5)
    weights, cost = (torch.randn(t.shape, generator=generator).to(device) for t in (output, expected))
    ((output.float() * weights).sum() + (expected * cost).sum()).backward()
    found = {"output": output, "expected": expected, "opened": opened}
    return {k: t.detach() for k, t in found.items()} | {f"d_{name}": t.grad for name, t in given.items()}  # type: ignore[misc]


PLAIN = {"batch": 1, "heads": 2, "kv_heads": 1, "queries": 21, "keys": 21, "width": 16, "mask": "causal"}
PLAIN |= {"noisy": True, "bias": 0.3, "temperature": 0.4, "softcap": None, "sinks": False, "seed": 0}
CASES: dict[str, dict[str, Any]] = {
    "causal": {},
    "evaluation": {"noisy": False},
    "batch": {"batch": 2, "kv_heads": 2, "temperature": 1.0},
    "all": {"mask": "all", "noisy": False},
    "window": {"mask": "window"},
    "padded": {"mask": "padded", "batch": 2},
    "cached": {"queries": 5},
    "groups of three": {"heads": 6, "kv_heads": 2, "queries": 9},
    "one token": {"queries": 1, "keys": 1},
    "softcap": {"softcap": 0.8},
    "sinks": {"sinks": True},
    "sinks, evaluation": {"sinks": True, "noisy": False, "mask": "padded", "batch": 2},
    "closed": {"bias": -1e4, "queries": 3},
    "open": {"bias": 3e4, "queries": 3},
    "rows without an open gate": {"bias": -1.5, "noisy": False},
    "many tiles": {"queries": 53, "keys": 53},  # some of them fully visible
    "long window": {"mask": "long window", "queries": 69, "keys": 69},
    "padded tiles": {"mask": "padded", "batch": 2, "queries": 53, "keys": 53},
    "far from open": {"bias": -60.0, "queries": 3},
    "width 24": {"width": 24, "queries": 5},
    "width 80": {"width": 80, "queries": 5},
    "width 256": {"width": 256, "queries": 5},
}


def assert_same(ours: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    for key, value in wanted.items():
        scale = max(1.0, float(value.abs().max()))
        ours_, where = ours[key].double(), f"{key}: "
        torch.testing.assert_close(ours_, value, atol=tolerance * scale, rtol=tolerance, msg=lambda m, w=where: w + m)


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_is_the_reference(name: str, small_tiles: None) -> None:
    case = PLAIN | CASES[name]
    assert_same(results(fused("triton"), case, torch.float32), results(reference, case, torch.float64), 2e-5)


@needs_triton
def test_heads_that_share_keys_are_added_up_in_one_program(small_tiles: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As is done if there are enough programs to fill a GPU."""
    from sparselens.gates import triton_attention

    monkeypatch.setattr(triton_attention, "_PROGRAMS", 4)
    case = PLAIN | {"heads": 8, "queries": 18, "keys": 18}
    assert triton_attention._members(group=8, programs=16) == 4
    assert_same(results(fused("triton"), case, torch.float32), results(reference, case, torch.float64), 2e-5)


@needs_triton
@pytest.mark.parametrize("mask", ["causal", "long window", "padded", "all"])
def test_the_kernel_knows_which_queries_see_a_block_of_keys(mask: str) -> None:
    from sparselens.gates.triton_attention import _queries_of_blocks

    spans = spans_of(mask, 70, 85)
    visible = spans.mask()[:, 0].mT
    for block, ours in enumerate(_queries_of_blocks(spans, 16).unbind(1)):
        part = visible[:, 16 * block : 16 * block + 16]
        for (begin, end, run, run_end), seen in zip(ours.tolist(), part, strict=True):
            assert seen[:, begin:end].any(0).sum() == seen.any(0).sum()  # no other query sees anything
            whole = seen.all(0) & (16 * block + 16 <= 85)
            assert whole[run:run_end].all()
            assert run_end == run or run_end - run == whole.sum()  # these masks leave no second run


@needs_triton
def test_the_kernel_wants_a_positive_scale() -> None:
    given, call = inputs(PLAIN, torch.float32), call_of(PLAIN, None)
    with pytest.raises(ValueError, match="positive scale, not -1"):
        fused("triton")(*given.values(), call._replace(scale=-1.0))


@pytest.mark.parametrize("name", CASES)
def test_flex_is_the_reference(name: str, plain_flex: None) -> None:
    case = PLAIN | CASES[name]
    ours, wanted = results(fused("flex"), case, torch.float64), results(reference, case, torch.float64)
    wanted.pop("d_sinks", None)  # flex cannot compute this gradient; such calls run eagerly
    assert_same(ours, wanted, 1e-6)


def assert_roughly_the_reference(
    dtype: torch.dtype, width: int = 16, device: torch.device = CPU, length: int = 21
) -> None:
    """Without noise and with most gates open: in half precision some may flip."""
    case = PLAIN | {"noisy": False, "bias": 5.0, "width": width, "queries": length, "keys": length}
    ours = results(fused("triton"), case, dtype, device)
    wanted = results(reference, case, torch.float64, device)
    assert ours["output"].dtype == ours["d_query"].dtype == dtype
    for key in ("output", "expected", "d_value"):
        torch.testing.assert_close(ours[key].double(), wanted[key], atol=16 * torch.finfo(dtype).eps, rtol=0.02)


@needs_triton
def test_the_kernel_in_half_precision(small_tiles: None) -> None:
    assert_roughly_the_reference(torch.float16)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])  # Triton's interpreter does not support bfloat16
@pytest.mark.parametrize("width", [64, 80, 128, 256])
def test_the_kernel_in_half_precision_on_a_gpu(dtype: torch.dtype, width: int) -> None:
    assert_roughly_the_reference(dtype, width, torch.device("cuda"), length=300)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_is_the_reference_on_a_gpu(name: str) -> None:
    case, cuda = PLAIN | CASES[name], torch.device("cuda")
    assert_same(
        results(fused("triton"), case, torch.float32, cuda), results(reference, case, torch.float64, cuda), 2e-5
    )


@needs_triton
def test_the_kernel_follows_no_seed_but_the_rows(small_tiles: None) -> None:
    """Two halves of a batch, one after the other, get the same noise as the whole batch."""
    case = PLAIN | {"batch": 2, "queries": 9, "keys": 9}
    given, call = inputs(case, torch.float32), call_of(case, None)
    whole = fused("triton")(*given.values(), call)
    for row in (0, 1):
        half = torch.Size([1, case["heads"], 9, 9])
        part = call._replace(words=words_of(RowNoise(1, 2, first_row=3 + row), 4, half, CPU))
        ours = fused("triton")(*(t[row : row + 1] for t in given.values()), part)
        assert all(torch.equal(mine[0], all_[row]) for mine, all_ in zip(ours, whole, strict=True))


def test_hashed_noise_depends_on_the_place_alone() -> None:
    shape = torch.Size([4, 3, 5, 7])
    whole = hashed_uniform(words_of(RowNoise(1, 2), 0, shape, CPU), 7)
    half = torch.Size([2, 3, 5, 7])
    parts = [hashed_uniform(words_of(RowNoise(1, 2, first_row=row), 0, half, CPU), 7) for row in (0, 2)]
    assert torch.equal(torch.cat(parts), whole)
    longer = hashed_uniform(words_of(RowNoise(1, 2), 0, torch.Size([4, 3, 9, 11]), CPU), 11)
    assert torch.equal(longer[:, :, :5, :7], whole)  # nor on the length
    for noise, layer in ((RowNoise(2, 2), 0), (RowNoise(1, 3), 0), (RowNoise(1, 2), 1)):
        other = hashed_uniform(words_of(noise, layer, shape, CPU), 7)
        assert (other == whole).float().mean() < 0.01


def test_hashed_noise_is_uniform_and_independent() -> None:
    words = row_words(seed=7, first_row=0, shape=torch.Size([4, 4, 64, 64]), device=CPU)
    noise = hashed_uniform(words, 256).double()
    n = noise.numel()
    assert noise.min() > 0
    assert noise.max() < 1
    shares = torch.histc(noise, 64, 0, 1) / n * 64
    assert (shares - 1).abs().max() < 5 * math.sqrt(64 / n)
    centred = (noise - 0.5) * math.sqrt(12)
    for axis in range(4):  # neighbours
        both = centred.narrow(axis, 1, noise.shape[axis] - 1) * centred.narrow(axis, 0, noise.shape[axis] - 1)
        assert abs(both.mean().item()) < 5 / math.sqrt(both.numel())
    other = hashed_uniform(row_words(8, 0, torch.Size([4, 4, 64, 64]), CPU), 256).double()  # the next seed
    assert abs((centred * (other - 0.5)).mean().item()) * math.sqrt(12) < 5 / math.sqrt(n)


def test_hashed_noise_is_what_it_was() -> None:
    """Computed with Python integers, so that a run resumed after an update gets the same numbers."""

    def mixed(word: int) -> int:
        word = (word ^ word >> 16) * 0x7FEB352D % 2**32
        word = (word ^ word >> 15) * 0x846CA68B % 2**32
        return word ^ word >> 16

    def number(seed: int, row: int, head: int, query: int, key: int) -> float:
        first, second = seed, seed ^ 0x5BD1E995
        for place in (row, head, query):
            first, second = (mixed(((word ^ place) + 0x9E3779B9) % 2**32) for word in (first, second))
        bits = first ^ key
        bits = (bits ^ bits >> 16) * 0x7FEB352D % 2**32 ^ second
        bits = (bits ^ bits >> 15) * 0x846CA68B % 2**32
        return (((bits ^ bits >> 16) >> 9) + 0.5) / 2**23

    ours = hashed_uniform(row_words(2**32 - 5, 3, torch.Size([2, 2, 3, 4]), CPU), 4)
    for row, head, query, key in torch.cartesian_prod(*(torch.arange(n) for n in ours.shape)).tolist():
        assert ours[row, head, query, key].item() == number(2**32 - 5, 3 + row, head, query, key)


def test_noise_that_knows_no_rows_follows_torchs_seed() -> None:
    shape = torch.Size([1, 1, 4, 4])
    torch.manual_seed(0)
    first, second = (words_of(uniform_noise, 0, shape, CPU) for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(words_of(uniform_noise, 0, shape, CPU), first)
    assert not torch.equal(first, second)
