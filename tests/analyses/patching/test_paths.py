"""Path patching, against exact edge scores and a separate implementation with plain TransformerLens hooks."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import sparselens as sl
from sparselens.analyses import patch_edges, patch_paths
from sparselens.prompts.metrics import logit_difference
from tests.analyses.small_models import tiny_pairs
from tests.tiny_models import KINDS_OF_BLOCKS, tiny_bridge

QUIET: dict[str, Any] = {"progress": False}


def by_hooks(model: Any, pairs: sl.TokenizedPairs, sender: str, receivers: Sequence[str]) -> Tensor:
    """Wang et al. 2022, with everything in between frozen: three runs, using only the model's own hook points.

    1. Clean and corrupted runs. 2. A clean run in which every head and MLP writes what it did on the clean prompt, but
    for the sender; what the receivers compute there is kept. 3. A clean run with that put in its place.
    """
    with torch.no_grad():
        _, clean = model.run_with_cache(pairs.clean)
        _, corrupted = model.run_with_cache(pairs.corrupted)
    layer, _, head = sender.lstrip("am").partition(".h")
    seen: dict[str, Tensor] = {}
    points = [_point(name) for name in receivers]

    def freeze(name: str, _activation: Tensor, hook: Any) -> Tensor:
        if name == f"blocks.{layer}.hook_mlp_out" and sender[0] == "m":
            return corrupted[name]
        kept = clean[name].clone()
        if name == f"blocks.{layer}.attn.hook_z" and sender[0] == "a":
            kept[:, :, int(head)] = corrupted[name][:, :, int(head)]
        return kept

    def keep(name: str, activation: Tensor, hook: Any) -> None:
        seen[name] = activation.clone()

    def put(name: str, activation: Tensor, hook: Any) -> Tensor:
        changed = activation.clone()
        for number in (number for other, number in points if other == name):
            where = (slice(None), slice(None)) if number is None else (slice(None), slice(None), number)
            changed[where] = seen[name][where]
        return changed

    first, names = "blocks.0.hook_resid_pre", {name for name, _ in points}
    writes = [f"blocks.{number}.{at}" for number in range(3) for at in ("attn.hook_z", "hook_mlp_out")]
    hooks: list[Any] = [(first, lambda x, hook: corrupted[first])] if sender == "input" else []
    hooks += [(name, partial(keep, name)) for name in names] + [(name, partial(freeze, name)) for name in writes]
    with torch.no_grad():
        model.run_with_hooks(pairs.clean, fwd_hooks=hooks)
        patched = model.run_with_hooks(pairs.clean, fwd_hooks=[(name, partial(put, name)) for name in names])
        return logit_difference(model(pairs.clean), pairs) - logit_difference(patched, pairs)


def _point(receiver: str) -> tuple[str, int | None]:
    """The hook point of a receiver: a head's query, key or value, or the input of an MLP."""
    if receiver[0] == "m":
        return f"blocks.{receiver[1:]}.mlp.hook_in", None
    return f"blocks.{receiver[1]}.attn.hook_{receiver[6]}", int(receiver[4])


@pytest.mark.parametrize("gate_bias", [None, -0.1])
@pytest.mark.parametrize(
    ("family", "receivers"),
    [
        ("gpt2", ["a1.h0<q>", "a1.h2<k>", "a2.h1<v>", "a2.h1<q>", "m1", "m2"]),
        ("gpt2", ["a2.h0<q>"]),
        ("llama", ["a1.h0<q>", "a2.h3<q>", "m2"]),
    ],
)
def test_equal_to_runs_under_plain_hooks(family: str, receivers: list[str], gate_bias: float | None):
    sizes = {"gpt2": {"n_layer": 3}, "llama": {"num_hidden_layers": 3}}
    model, pairs = tiny_bridge(family, **sizes[family]), tiny_pairs()
    if gate_bias is not None:
        sl.sparsify(model, gate_bias=gate_bias)
    found = patch_paths(model, pairs, receivers, **QUIET)
    assert found.sources[0] == "input" and len(found.sources) == (15 if "m2" in receivers else 11)
    moved = 0
    for sender, scores in zip(found.sources, found.per_prompt.T, strict=True):
        wanted = by_hooks(model, pairs, sender, receivers)
        torch.testing.assert_close(scores, wanted, atol=2e-5, rtol=1e-4)
        moved += bool(wanted.abs().max() > 1e-4)
    assert moved > len(found.sources) / 2


@pytest.mark.parametrize("family", KINDS_OF_BLOCKS)
def test_paths_to_one_receiver_are_its_exact_edges(family: str):
    model, pairs = tiny_bridge(family), tiny_pairs()
    edges = patch_edges(model, pairs, **QUIET)
    assert edges.per_prompt is not None
    for receiver in ("logits", "a1.h2<k>", "a1.h3<v>", "m1"):
        found = patch_paths(model, pairs, receiver, **QUIET)
        column = edges.per_prompt[:, : len(found.sources), edges.graph.destination(receiver)]
        torch.testing.assert_close(found.per_prompt, column, atol=1e-6, rtol=0)


def test_a_head_is_its_query_key_and_value():
    model, pairs = tiny_bridge("llama"), tiny_pairs()
    whole = patch_paths(model, pairs, "a1.h2", ["a0.h1", "m0"], batch_size=2, **QUIET)
    parts = patch_paths(model, pairs, ["a1.h2<q>", "a1.h2<k>", "a1.h2<v>"], ["m0", "a0.h1"], **QUIET)
    assert (whole.sources, parts.sources) == (("a0.h1", "m0"), ("m0", "a0.h1"))
    torch.testing.assert_close(whole.per_prompt, parts.per_prompt.flip(1))
    assert repr(whole).startswith("NodeScores(2 paths to a1.h2, 3 prompts: largest ")


@pytest.mark.parametrize("part", ["k", "v"])
def test_all_heads_that_share_a_key_or_value_as_by_one_plain_hook(part: str):
    """Heads 2 and 3 read key-value head 1: where both receive it, it is simply another one."""
    model, pairs = tiny_bridge("llama", num_hidden_layers=3), tiny_pairs()
    found = patch_paths(model, pairs, [f"a1.h2<{part}>", f"a1.h3<{part}>", "m2"], **QUIET)
    alone = patch_paths(model, pairs, [f"a1.h2<{part}>", "m2"], found.sources, **QUIET)
    for sender, scores in zip(found.sources, found.per_prompt.T, strict=True):
        wanted = by_hooks(model, pairs, sender, [f"a1.h1<{part}>", "m2"])
        torch.testing.assert_close(scores, wanted, atol=2e-5, rtol=1e-4)
    assert (alone.per_prompt - found.per_prompt).abs().max() > 1e-3


def test_an_interrupted_call_resumes(tmp_path: Any):
    model, pairs = tiny_bridge("gpt2"), tiny_pairs()
    whole = patch_paths(model, pairs, "m1", batch_size=2, **QUIET)
    again = [patch_paths(model, pairs, "m1", batch_size=2, out=tmp_path / "log", **QUIET) for _ in range(2)]
    assert torch.equal(again[0].per_prompt, whole.per_prompt) and torch.equal(again[1].per_prompt, whole.per_prompt)


@pytest.mark.parametrize(
    ("receivers", "senders", "message"),
    [
        ("a1h0<q>", None, r"no such destination: 'a1h0<q>', did you mean 'a1\.h0<q>'"),
        ("a1.h0<q>", "a0h3", r"no such source: 'a0h3', did you mean 'a0\.h3'"),
        ("a9.h0", None, r"no such destination: 'a9\.h0'.* within 2 layers of 4 heads"),
        ("a1.h0", "m1", r"m1 writes after a1\.h0<v> reads: no path"),
        (["logits", "m1"], None, "patch the other receivers in a separate call"),
        ([], None, "there is no receiver"),
        ("m1", [], "there is no sender"),
        (
            ["a0.h0<q>", "a1.h0<k>"],
            None,
            r"a1\.h0<k> is shared with other heads: receivers like this must be in one layer",
        ),
        (["a1.h0<k>", "a1.h1<v>"], None, r"heads 0 and 1 of a1 share keys and values, .* add a1\.h1<k>"),
        (["a1.h0<k>", "a1.h1<q>"], None, r"these receivers cannot include a1\.h0<k> alone: add a1\.h1<k>"),
        (["a1.h0<k>", "a1.h3<k>"], None, r"heads 0 and 1 of a1 share keys and values"),
    ],
)
def test_what_is_no_path_is_refused(receivers: Any, senders: Any, message: str):
    with pytest.raises(ValueError, match=message):
        patch_paths(tiny_bridge("llama"), tiny_pairs(), receivers, senders, **QUIET)


@pytest.mark.parametrize("receivers", [["a1.h0<k>", "a1.h2<k>"], ["a1.h0<k>", "a1.h0<q>"], ["a1.h0<v>", "a1.h1<v>"]])
def test_receivers_of_one_group_as_in_a_model_without_groups(receivers: list[str]):
    """The same model with every head's keys and values written out."""
    grouped, pairs = tiny_bridge("llama"), tiny_pairs()
    state = grouped.original_model.state_dict()
    n_heads, n_kv = grouped.cfg.n_heads, grouped.cfg.n_key_value_heads
    alone = tiny_bridge("llama", num_key_value_heads=n_heads)
    wanted = alone.original_model.state_dict()
    copied = {
        name: value if value.shape == wanted[name].shape else _per_head(value, n_kv, n_heads // n_kv)
        for name, value in state.items()
    }
    alone.original_model.load_state_dict(copied)
    torch.testing.assert_close(alone(pairs.clean), grouped(pairs.clean), atol=1e-5, rtol=1e-5)
    found, expected = (patch_paths(model, pairs, receivers, **QUIET).per_prompt for model in (grouped, alone))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def _per_head(weight: Tensor, groups: int, times: int) -> Tensor:
    return weight.unflatten(0, (groups, -1)).repeat_interleave(times, 0).flatten(0, 1)
