"""Influences of features through heads: they add up to the target, and equal a sum over all paths."""

from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

import sparselens as sl
from sparselens import analyses
from sparselens.analyses.engine.request import OpenModel
from sparselens.analyses.features.feature_attribution import heads_needed
from sparselens.analyses.features.frozen_run import FrozenRun, freeze
from sparselens.analyses.features.transcoders import Transcoders
from tests.analyses.features.transcoders_for import KINDS, random_transcoders, relu_model
from tests.tiny_models import FAMILIES, KINDS_OF_BLOCKS, tiny_bridge, tiny_tokens

READABLE = sorted(set(FAMILIES) - {"bert"})
TOKENS = tiny_tokens(batch=1)[0]
CASES = [(family, list(KINDS)[number % len(KINDS)]) for number, family in enumerate(READABLE)]
CASES += [(family, kind) for family in ("gptj", "llama") for kind in KINDS if (family, kind) not in CASES]


def frozen_run(model: Any, transcoders: Transcoders) -> FrozenRun:
    with torch.no_grad():
        return freeze(OpenModel(model), transcoders, TOKENS)


def one_active(transcoders: Transcoders, frozen: FrozenRun, layer: int, pos: int) -> int:
    """The most active feature of a layer at a position."""
    return int(frozen.layers[layer].activations[pos].argmax())


@pytest.mark.parametrize(
    ("family", "kind", "gated"),
    [*((*case, False) for case in CASES), *((*case, True) for case in CASES if case[0] in KINDS_OF_BLOCKS)],
)
def test_influences_add_up_to_the_target(family: str, kind: str, gated: bool):
    """Rotary and absolute positions, grouped queries, parallel blocks, norms after attention, sinks, biases."""
    model = tiny_bridge(family)
    if gated:
        sl.sparsify(model, gate_bias=0.3)
    transcoders = random_transcoders(model, **KINDS[kind])
    for target in ("f1.0", "f1.5", "logits", (3, 4)):
        found = analyses.attribute_feature(model, transcoders, TOKENS, target, -2)
        sizes = float(found.direct.abs().sum() + found.through.abs().sum())
        assert abs(found.missing) <= 1e-5 * sizes, (target, found.missing, sizes)
        assert found.n_features and found.through.any()
    with torch.no_grad():
        logits = model(TOKENS[None])[0, -2]
    assert found.value == pytest.approx(float(logits[3] - logits[4]), rel=1e-3) or family == "gemma2"  # a soft-cap


def walked(frozen: FrozenRun, transcoders: Transcoders, source: tuple[int, int, int], target: tuple[int, int, int]):
    """Forward from one feature, head by head: what arrives directly, and by each last head, in how many steps."""
    (layer, index, pos), (last, wanted, end) = source, target
    arriving: dict[tuple[str, ...], Tensor] = {}
    activation = frozen.layers[layer].activations[pos, index]
    encoder = transcoders.encoder[last, wanted]
    for number in range(layer, last + 1):
        held = frozen.layers[number]
        if number > layer:  # attention reads what has been written before this layer
            for path, stream in list(arriving.items()):
                inverse, norm = held.attention_norm.inverse, held.layer.norm
                normed = stream if norm is None else norm.centre(stream) * inverse * norm.gain
                for head in range(len(held.w_v)):
                    moved = held.pattern[head] @ (normed @ held.w_v[head] @ held.w_o[head])
                    arriving[(*path, f"a{number}.h{head}")] = moved
        if number == last:
            break
        if number - layer < transcoders.decoder[layer].shape[1]:
            written = torch.zeros_like(frozen.start)
            written[pos] = activation * transcoders.decoder[layer][index, number - layer]
            arriving[()] = arriving.get((), torch.zeros_like(written)) + written
    held, norm = frozen.layers[last].read_norm, frozen.layers[last].read_norm.norm
    read = {
        path: (stream if norm is None else norm.centre(stream) * held.inverse * norm.gain)[end] @ encoder
        for path, stream in arriving.items()
    }
    return {path: float(value) for path, value in read.items()}


@pytest.mark.parametrize("one_head", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_influence_is_what_a_walk_along_every_path_gives(family: str, one_head: bool):
    """Paths of one head: activation * pattern * decoder . W_V W_O . encoder; of several: counted for the last."""
    name = "n_layer" if family == "gpt2" else "num_hidden_layers"
    model = tiny_bridge(family, **{name: 4})
    sl.sparsify(model, gate_bias=0.5)
    transcoders = random_transcoders(model, top_k=3)
    frozen = frozen_run(model, transcoders)
    target = 3, 7, 8
    found = analyses.attribute_feature(model, transcoders, TOKENS, "f3.7", one_head=one_head)
    longest = 0
    for layer, pos in ((0, 2), (0, 8), (1, 4), (2, 5)):
        index = one_active(transcoders, frozen, layer, pos)
        walks = walked(frozen, transcoders, (layer, index, pos), target)
        longest = max(longest, *map(len, walks))
        source, sizes = f"f{layer}.{index}@{pos}", sum(map(abs, walks.values())) + 1e-9
        assert float(found.direct[found.sources.index(source)]) == pytest.approx(walks[()], abs=1e-5 * sizes)
        for head in found.heads:
            paths = [path for path in walks if path[-1:] == (head,) and (len(path) == 1 or not one_head)]
            assert found[source, head] == pytest.approx(sum(walks[path] for path in paths), abs=1e-5 * sizes), head
    assert longest == 3 and (abs(found.missing) > 1e-3) == one_head


def test_exact_transcoders_leave_no_error():
    model, transcoders = relu_model()
    found = analyses.attribute_feature(model, transcoders, TOKENS)
    errors = [number for number, name in enumerate(found.sources) if name.startswith("error")]
    assert len(errors) == 2 * len(TOKENS)
    assert float(found.through[errors].abs().max()) < 1e-5 * float(found.through.abs().max())


def test_closed_gates_carry_nothing():
    model = tiny_bridge("llama")
    sl.sparsify(model, gate_bias=-1e4)
    found = analyses.attribute_feature(model, random_transcoders(model, top_k=3), TOKENS, "f1.0")
    assert not found.through.any() and found.heads_needed() == 0 and found.direct.any()
    with pytest.raises(ValueError, match="nothing to draw"):
        found.plot()


def test_a_result_shows_itself():
    model, transcoders = relu_model()
    found = analyses.attribute_feature(model, transcoders, TOKENS)
    assert repr(found).startswith("FeatureAttribution(logits ") and f"of {len(found.heads)} heads; largest f" in repr(
        found
    )
    frame, (source, head, value) = found.to_frame(), found.top(1)[0]
    assert (
        found[source, head]
        == value
        == found.through[: found.n_features].flatten()[found.through[: found.n_features].abs().argmax()]
    )
    assert frame["influence"].sum() == pytest.approx(found.value, rel=1e-4)
    assert found.plot().data[0].z.shape[1] == len(found.heads)
    with pytest.raises(ValueError, match=r"no such head: 'a9h1'"):
        _ = found[source, "a9h1"]


def test_heads_needed_by_hand():
    weights = torch.tensor([[1.0, 5, 1, 3], [2, 2, 2, 2], [0, 0, 0, 0], [0, 0, 9, 0]])
    assert heads_needed(weights, 0.8).tolist() == [2, 4, 0, 1]
    assert heads_needed(weights, 0.5).tolist() == [1, 2, 0, 1]
    assert heads_needed(weights, 1.0).tolist() == [4, 4, 0, 1]
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"share = .*: want above 0"):
            heads_needed(weights, share)


WRONG: dict[str, tuple[Callable[[Any, Transcoders], Any], str]] = {
    "no feature": (
        lambda m, t: analyses.attribute_feature(m, t, TOKENS, "f1.99"),
        r"'f1\.99' \(want f0\.0 to f1\.11\)",
    ),
    "no target": (lambda m, t: analyses.attribute_feature(m, t, TOKENS, "m1"), "no such target: 'm1'"),
    "no tokens": (lambda m, t: analyses.attribute_feature(m, t, TOKENS, (3, 31)), r"\(3, 31\): want two tokens"),
    "no position": (lambda m, t: analyses.attribute_feature(m, t, TOKENS, "f1.1", 9), "no such position: 9"),
    "several prompts": (lambda m, t: analyses.attribute_feature(m, t, tiny_tokens()), "2 prompts: want one"),
    "a text without a tokenizer": (lambda m, t: analyses.attribute_feature(m, t, "Hello"), "no tokenizer"),
    "another model's": (
        lambda m, t: analyses.attribute_feature(tiny_bridge("gpt2", n_layer=3), t, TOKENS),
        "another model: they have 2 layers and d_model 16, this one 3 layers and d_model 16",
    ),
    "no MLP": (
        lambda m, t: t.refuse_other_model(OpenModel(_attention_only()).reading),
        "layer 0 of the model has no MLP",
    ),
}


def _attention_only() -> Any:
    from tests.analyses.small_models import native_model

    return native_model(attn_only=True, d_model=16, d_head=16)


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused(case: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    call, message = WRONG[case]
    model = tiny_bridge("gpt2")
    with pytest.raises(ValueError, match=message):
        call(model, random_transcoders(model, top_k=2))
