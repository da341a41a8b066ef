"""A run that starts late and ends at the answer gives what the whole run gives, in every family."""

from typing import Any

import pytest
import torch

import sparselens as sl
from sparselens.analyses.engine.partial_runs import (
    only_at,
    peak_bytes,
    recording,
    returns_tuple,
    run,
    silent_projections,
    starting_at,
)
from tests.tiny_models import FAMILIES, tiny_bridge, tiny_tokens

TOKENS = tiny_tokens(3)
END = torch.tensor([8, 5, 7])
ROWS = torch.arange(3)


def residuals(model: Any) -> list[torch.Tensor]:
    kept: list[torch.Tensor] = []
    run(model, TOKENS, [(f"blocks.{layer}.hook_resid_pre", lambda x: kept.append(x.clone())) for layer in (0, 1)])
    return kept


@pytest.mark.parametrize("gate_bias", [None, 0.0])
@pytest.mark.parametrize("family", sorted(FAMILIES))
@torch.no_grad()
def test_part_of_a_run_is_the_whole_run(family: str, gate_bias: float | None):
    model = tiny_bridge(family)
    if gate_bias is not None:
        sl.sparsify(model, gate_bias)
    whole = model(TOKENS)
    as_tuple = returns_tuple(model, TOKENS)
    for layer, residual in enumerate(residuals(model)):
        other = torch.ones_like(TOKENS) if layer else TOKENS  # block 0 reads the tokens themselves
        with starting_at(model, layer, residual, as_tuple):
            torch.testing.assert_close(run(model, other), whole, atol=1e-6, rtol=0)
            with only_at(model, END, TOKENS.shape[1]):
                ended = run(model, other)
        assert ended.shape[1] == 1
        torch.testing.assert_close(ended[:, 0], whole[ROWS, END], atol=1e-6, rtol=0)
    torch.testing.assert_close(model(TOKENS), whole, atol=0, rtol=0)  # nothing is left behind


@pytest.mark.parametrize("family", sorted(FAMILIES))
@torch.no_grad()
def test_projections_that_hooks_replace_need_not_run(family: str):
    model = tiny_bridge(family)
    names = [f"blocks.{layer}.attn.hook_{name}" for layer in (0, 1) for name in "qkvz"]
    recorded, again = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
    whole = run(model, TOKENS, recording(recorded, names))
    replaced = [(name, lambda _, name=name: recorded[name]) for name in names if not name.endswith("z")]
    with silent_projections(model):
        run(model, TOKENS, [*replaced, *recording(again, [name for name in names if name.endswith("z")])])
        silent = run(model, TOKENS)
    for name, z in again.items():
        torch.testing.assert_close(z, recorded[name], atol=1e-6, rtol=0)
    if family == "llama":  # the projections are linear layers of their own
        assert not torch.allclose(silent, whole)
    torch.testing.assert_close(run(model, TOKENS), whole, atol=0, rtol=0)  # nothing is left behind


@torch.no_grad()
def test_blocks_are_passed_over():
    model = tiny_bridge("gpt2")
    ran: list[int] = []
    handles = [
        block.mlp.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
        for layer, block in enumerate(model.blocks)
    ]
    with starting_at(model, 1, residuals(model)[1], False):
        ran.clear()
        run(model, TOKENS)
    for handle in handles:
        handle.remove()
    assert ran == [1]


def test_a_forward_that_was_put_there_comes_back():
    model = tiny_bridge("gpt2")
    block = model.blocks[0]
    own = block.forward
    block.__dict__["forward"] = own
    with pytest.raises(RuntimeError, match="stop"), starting_at(model, 1, torch.zeros(1, 1, 16), False):
        assert block.__dict__["forward"] is not own
        raise RuntimeError("stop")
    assert block.__dict__["forward"] is own


def test_peak_counts_what_is_alive_at_once():
    weight = torch.ones(1000)  # from outside: not counted, nor is a view of it

    def one_after_the_other() -> torch.Tensor:
        view = weight[:10]
        for _ in range(5):
            total = (weight * 2).sum()  # 4,000 bytes, freed each time, and 4
        return total + view[0]

    result, peak = peak_bytes(one_after_the_other)
    assert float(result) == 2001
    assert 4000 <= peak < 4100
    _, both = peak_bytes(lambda: (weight * 2, weight * 3))
    assert both == 8000


def test_what_is_gone_hides_nothing_that_comes_after_it():
    def in_the_place_of_inputs() -> torch.Tensor:
        for _ in range(50):
            made_elsewhere = torch.frombuffer(bytearray(4000), dtype=torch.float32)
            made_elsewhere.abs_()
            del made_elsewhere
        return torch.stack([torch.zeros(1000) for _ in range(50)])

    assert peak_bytes(in_the_place_of_inputs)[1] == 2 * 50 * 4000


def test_the_count_is_the_same_every_time():
    model = tiny_bridge("gpt2")
    assert len({peak_bytes(lambda: model(TOKENS).sum())[1] for _ in range(5)}) == 1


@torch.no_grad()
def test_peak_grows_with_the_batch():
    model = tiny_bridge("llama")
    _, one = peak_bytes(lambda: run(model, TOKENS))
    _, four = peak_bytes(lambda: run(model, TOKENS.repeat(4, 1)))
    assert 3.9 < four / one < 4.1
