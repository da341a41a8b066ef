"""A cut does what a hand-written hook does, in sparse and in dense models; names say what is cut."""

from typing import Any

import numpy as np
import pytest
import torch

from sparselens import sparsify
from sparselens.analyses import attention_edges
from sparselens.analyses.patching.cuts import Cuts, Shape, read_cut, refuse_unknown, run_with_cuts
from tests.tiny_models import tiny_bridge

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9]])


def model_of(kind: str) -> Any:
    return sparsify(tiny_bridge("llama"), gate_bias=1.0) if kind == "sparse" else tiny_bridge("llama")


def run(model: Any, *names: str) -> Any:
    return run_with_cuts(model, TOKENS, Cuts.of(names, Shape.of(model, TOKENS.shape[1])))


def by_hand(model: Any, hook_name: str, index: tuple[Any, ...]) -> torch.Tensor:
    """Log-probabilities with one slice of one activation set to zero."""

    def zero(activation: torch.Tensor, **_: Any) -> torch.Tensor:
        activation = activation.clone()
        activation[index] = 0
        return activation

    with torch.no_grad():
        return model.run_with_hooks(TOKENS, fwd_hooks=[(hook_name, zero)])[0].log_softmax(-1)


@pytest.mark.parametrize("kind", ["sparse", "dense"])
@pytest.mark.parametrize(
    ("cut", "point", "index"),
    [
        ("a1.h2:0->3", "blocks.1.attn.hook_pattern", (0, 2, 3, 0)),
        ("a0.h1", "blocks.0.attn.hook_z", (0, slice(None), 1)),
        ("a1", "blocks.1.attn.hook_z", (0,)),
        ("m0", "blocks.0.hook_mlp_out", (0,)),
    ],
)
def test_a_cut_is_what_a_hook_by_hand_computes(kind: str, cut: str, point: str, index: tuple[Any, ...]):
    model = model_of(kind)
    found, whole = run(model, cut), run(model)
    assert (found.log_probs - whole.log_probs).abs().max() > 1e-3
    torch.testing.assert_close(found.log_probs, by_hand(model, point, index), atol=1e-6, rtol=0)
    torch.testing.assert_close(run(model).log_probs, whole.log_probs, atol=0, rtol=0)  # nothing stays behind


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_a_cut_token_is_read_by_itself_alone(kind: str):
    model = model_of(kind)
    found, whole = run(model, "p2"), run(model)
    edges = found.edges
    assert not ((edges.key_pos == 2) & (edges.query_pos != 2)).any()
    assert ((edges.key_pos == 2) & (edges.query_pos == 2)).any()
    torch.testing.assert_close(found.log_probs[:3], whole.log_probs[:3])
    assert (found.log_probs[3:] - whole.log_probs[3:]).abs().max() > 1e-3
    one_by_one = [f"a{layer}.h{head}:2->{query}" for layer in range(2) for head in range(4) for query in range(3, 6)]
    torch.testing.assert_close(found.log_probs, run(model, *one_by_one).log_probs, atol=0, rtol=0)


def test_closing_all_gates_of_a_head_silences_it():
    model = model_of("sparse")
    gates = [f"a1.h3:{key}->{query}" for query in range(6) for key in range(query + 1)]
    torch.testing.assert_close(run(model, *gates).log_probs, run(model, "a1.h3").log_probs)


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_edges_are_those_of_the_model_less_the_cut_ones(kind: str):
    model = model_of(kind)
    whole, known = run(model).edges, attention_edges(model, TOKENS)
    for column in ("layer", "head", "query_pos", "key_pos", "weight"):
        np.testing.assert_array_equal(getattr(whole, column), getattr(known, column))
    after = run(model, "a1.h0", "a1.h2:0->3").edges  # in the last layer, so that no other edge can change
    gone = (whole.layer == 1) & (
        (whole.head == 0) | ((whole.head == 2) & (whole.query_pos == 3) & (whole.key_pos == 0))
    )
    assert gone.any()
    np.testing.assert_array_equal(after.weight, whole.weight[~gone])


@pytest.mark.parametrize(
    "name", ["", "a", "a0.h1<q>", "a0.h1:3", "a0.h1:3->", "a00", "a0 ", "A0", "p-1", "m٣", "a0.h1:3->7\n", "logits"]
)
def test_other_names_are_refused(name: str):
    with pytest.raises(ValueError, match=r"no such part: .*want a0\.h1:3->7"):
        read_cut(name)


@pytest.mark.parametrize("name", ["a2", "a0.h4", "m2", "p6", "a0.h0:6->5", "a0.h0:0->6"])
def test_parts_that_no_model_has_are_refused(name: str):
    shape = Shape.of(model_of("dense"), 6)
    with pytest.raises(ValueError, match=f"no such part: '{name}' .there are layer < 2, head < 4, mlp < 2, pos < 6"):
        refuse_unknown(["a1.h3", name], [shape])
    refuse_unknown([name], [shape, Shape(9, 9, 9, 9)])  # it is enough if one of two models has the part
    assert not any(mask.any() for mask in vars(Cuts.of([name], shape)).values())


def test_patterns_that_are_only_shown_are_not_cut():
    model = tiny_bridge("neo")
    with pytest.raises(ValueError, match=r"only a copy of its patterns.*gate_bias=1e4"):
        run(model, "a0.h0:0->3")
    with pytest.raises(ValueError, match="only a copy"):
        run(model, "p1")
    assert not torch.equal(run(model, "a0.h0", "m1").log_probs, run(model).log_probs)
    opened = sparsify(tiny_bridge("neo"), gate_bias=1e4)
    assert not torch.equal(run(opened, "a0.h0:0->3").log_probs, run(opened).log_probs)


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"model\.eval"):
        run(model_of("sparse").train())
