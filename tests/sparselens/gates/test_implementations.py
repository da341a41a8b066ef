"""The choice of the gates' implementation; all implementations compute the same model."""

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

import sparselens as sl
from sparselens.gates import attention, fused
from sparselens.gates.attention import NAMES
from sparselens.gates.gate import GateSettings
from sparselens.gates.noise import RowNoise, hashed_uniform, words_of
from sparselens.gates.spans import Spans, spans_mask
from sparselens.gates.statistics import GateStatistics
from sparselens.gates.surgery import gate_settings, sparsify
from tests.tiny_models import bridge_of, tiny_model, tiny_tokens

CPU = torch.device("cpu")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs the triton package")
PADDED = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])


class CountedNoise:
    """The noise of fused attention, for eager gates too."""

    def __init__(self, noise: RowNoise) -> None:
        self.noise = noise

    def __call__(self, layer: int, shape: torch.Size, device: torch.device) -> Tensor:
        return hashed_uniform(words_of(self.noise, layer, shape, device), shape[-1])


def outcome(model: Any, tokens: Tensor, training: bool, **inputs: Any) -> dict[str, Tensor]:
    """Logits, recorded gates and one gradient of a loss that depends on both."""
    model.train(training)
    with sl.record_gates(model) as gates:
        output = model(tokens, **inputs)
    logits = output if isinstance(output, Tensor) else output.logits
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    ((logits * weights).mean() + gates.expected_share()).backward()
    network = getattr(model, "original_model", model)
    found = {"logits": logits.detach(), "open": gates.open, "expected": gates.expected.detach()}
    return found | {"pairs": gates.visible_pairs, "gradient": network.get_input_embeddings().weight.grad}


@needs_triton
@pytest.mark.parametrize(("family", "training"), [("gemma2", True), ("llama", False)])
def test_four_ways_are_one_model(
    family: str, training: bool, plain_flex: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TransformerLens, eager, flex and triton; grouped heads, in Gemma a sliding window and a soft-cap."""
    allow_gradients_of_flex(monkeypatch)
    tokens, noise, found = tiny_tokens(), RowNoise(3, 5), {}
    for way in ("hooks", "eager", "flex", "triton"):
        model = tiny_model(family)
        if way == "hooks":
            model = sparsify(bridge_of(model), 0.3)
        else:
            sparsify(model, 0.3, implementation=way)
        settings = gate_settings(model)
        settings.temperature = 0.5
        settings.noise = noise if way in ("flex", "triton") else CountedNoise(noise)
        found[way] = outcome(model, tokens, training)
        assert settings.eager_because == ""
    for way, ours in found.items():
        for name, wanted in found["eager"].items():
            where = f"{way}, {name}: "
            torch.testing.assert_close(ours[name], wanted, atol=2e-5, rtol=2e-5, msg=lambda m, w=where: w + m)
    assert 0 < found["eager"]["open"].sum() < found["eager"]["pairs"].sum()


def allow_gradients_of_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this, calls that need a gradient run eagerly on a CPU."""
    known = fused.why_eager

    def why_eager(implementation: str, *args: Any, **options: Any) -> str:
        return "" if implementation == "flex" else known(implementation, *args, **options)

    monkeypatch.setattr(attention, "why_eager", why_eager)


@needs_triton
def test_padding_is_not_seen(plain_flex: None) -> None:
    tokens = tiny_tokens(length=6)
    for way in ("flex", "triton"):
        eager, ours = (sparsify(tiny_model("llama"), 0.3, implementation=w) for w in ("eager", way))
        with torch.no_grad():
            wanted, found = (m(tokens, attention_mask=PADDED).logits for m in (eager, ours))
        torch.testing.assert_close(found[PADDED.bool()], wanted[PADDED.bool()], atol=2e-5, rtol=2e-5)
        assert gate_settings(ours).eager_because == ""


def test_auto_is_eager_on_a_cpu_and_the_kernel_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sparsify(tiny_model("llama"), 0.3)
    assert model.config._attn_implementation == "sparselens"
    assert gate_settings(model).implementation == "auto"
    assert fused.resolve("auto", CPU) == "eager"
    monkeypatch.setattr(fused, "why_no_triton", lambda device: "")
    assert fused.resolve("auto", torch.device("cuda")) == "triton"
    monkeypatch.setattr(fused, "why_no_triton", lambda device: "no triton")
    assert fused.resolve("auto", torch.device("cuda")) == "eager"


def test_the_choice_is_seen_and_can_be_changed() -> None:
    model = sparsify(tiny_model("llama"), 0.3, implementation="flex")
    settings = gate_settings(model)
    assert model.config._attn_implementation == NAMES["flex"] == "sparselens_flex"
    assert "implementation='flex'" in repr(settings)
    sparsify(model, 0.5)  # changes only the bias
    assert (settings.gate_bias, settings.implementation) == (0.5, "flex")
    sparsify(model, implementation="eager")
    assert (settings.gate_bias, settings.implementation) == (0.5, "eager")
    assert model.config._attn_implementation == "sparselens_eager"
    sl.densify(model)
    assert model.config._attn_implementation == "eager"


def test_a_model_may_ask_for_it_itself() -> None:
    sl.register_attention()
    model = tiny_model("llama", attn_implementation="sparselens_flex")
    model.config.gate_bias = 0.3
    assert gate_settings(model).implementation == "flex"


def test_what_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="no such implementation: 'fast'"):
        fused.resolve("fast", CPU)
    monkeypatch.setattr(fused, "why_no_triton", lambda device: "no triton")
    with pytest.raises(ValueError, match="implementation='triton': no triton; or use 'auto'"):
        sparsify(model, 0.3, implementation="triton")
    assert not sl.is_sparse(model)
    assert model.config._attn_implementation == "eager"
    bridge = bridge_of(model)
    with pytest.raises(ValueError, match="shows its gates to hooks"):
        sparsify(bridge, 0.3, implementation="flex")
    assert not sl.is_sparse(bridge)
    assert gate_settings(sparsify(bridge, 0.3)).implementation == "eager"


@needs_triton
def test_what_cannot_be_fused_runs_eagerly_and_says_so() -> None:
    tokens = tiny_tokens(batch=1, length=4)
    model = sparsify(tiny_model("gpt2", attn_pdrop=0.5), 0.3, implementation="triton")
    with pytest.warns(UserWarning, match="runs eagerly here: attention dropout is 0.5"):
        model.train()(tokens)
    model.eval()
    with pytest.warns(UserWarning, match="attention weights were requested"):
        patterns = model(tokens, output_attentions=True).attentions
    sparsify(model, implementation="eager")
    wanted = model(tokens, output_attentions=True).attentions
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(patterns, wanted, strict=True))
    model = sparsify(tiny_model("llama"), 0.3, implementation="triton").double()
    with pytest.warns(UserWarning, match=r"does not support torch\.float64"):
        model(tokens)
    with pytest.warns(UserWarning, match="not one contiguous run of keys"):
        sparsify(tiny_model("llama"), 0.3, implementation="triton")(tokens, attention_mask=torch.tensor([[1, 0, 1, 1]]))
    model = sparsify(tiny_model("llama"), 0.3, implementation="flex").train()
    with pytest.warns(UserWarning, match="no backward pass on a CPU"):
        model(tokens)
    assert gate_settings(model).eager_because == "FlexAttention has no backward pass on a CPU"


def mask_of(**options: Any) -> Any:
    sizes = {"batch_size": 2, "q_length": 6, "kv_length": 6, "mask_function": causal_mask_function, "device": CPU}
    return spans_mask(**(sizes | options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask_function": sliding_window_causal_mask_function(3)},
        {"attention_mask": PADDED.bool()},
        {"q_length": 2, "q_offset": 4},
    ],
)
def test_spans_are_the_masks_of_transformers(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.masking_utils import sdpa_mask

    sizes = {"batch_size": 2, "q_length": 6, "kv_length": 6, "mask_function": causal_mask_function}
    wanted: Any = sdpa_mask(**(sizes | options), allow_is_causal_skip=False)
    monkeypatch.setattr("sparselens.gates.spans._AT_ONCE", 24)  # two queries at a time
    spans = mask_of(**options)
    assert isinstance(spans, Spans)
    assert torch.equal(spans.mask().expand_as(wanted), wanted)
    assert torch.equal(spans.cut(4).mask(), spans.mask()[..., :4])
    statistics = [GateStatistics(GateSettings(0.0, n_layers=1)) for _ in range(2)]
    for each, mask in zip(statistics, (spans, wanted), strict=True):
        each.add(0, torch.ones(2, 3), torch.ones(2, 3), mask)
    for name in ("visible_pairs", "queries", "all_pairs"):
        assert torch.equal(*(getattr(each, name) for each in statistics))


def test_a_mask_with_holes_stays_a_tensor() -> None:
    holes = mask_of(attention_mask=torch.tensor([[1, 0, 1, 1, 1, 1]] * 2).bool())
    assert isinstance(holes, Tensor)
    assert holes.shape == (2, 1, 6, 6)
    assert (holes[0, 0, 5] == 0).tolist() == [True, False, True, True, True, True]


def test_an_attention_that_was_never_gated_is_refused() -> None:
    module, heads = tiny_model("gpt2").transformer.h[0].attn, torch.zeros(1, 4, 1, 4)
    with pytest.raises(ValueError, match=r"this attention has no gates: call sparselens\.sparsify"):
        attention.gated_attention(module, heads, heads, heads, None)
