"""The table of attention edges, against hand-made counts and the model's own patterns and gates."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformer_lens.model_bridge.sources import build_bridge_from_module

import sparselens as sl
from sparselens.analyses import AttentionEdges, attention_edges, side_by_side
from sparselens.models.character_model import character_model
from tests.tiny_models import tiny_tokenizer

TOKENS = torch.tensor([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])


def make_bridge(bidirectional: bool = False):
    model = character_model("0123456", 5, 2, 2, 8, bidirectional)
    for parameter in model.parameters():
        parameter.data *= 4
    return build_bridge_from_module(model, "GPT2LMHeadModel", hf_config=model.config).eval()


@pytest.mark.parametrize(("bidirectional", "pairs"), [(False, 15), (True, 25)])
def test_a_dense_model_has_every_visible_pair(bidirectional: bool, pairs: int):
    edges = attention_edges(make_bridge(bidirectional), TOKENS)
    assert (edges.n_prompts, edges.n_layers, edges.n_heads, edges.n_pos) == (2, 2, 2, 5)
    assert len(edges) == 2 * 2 * 2 * pairs
    assert edges.per_layer().tolist() == [[2 * pairs] * 2] * 2
    assert bidirectional or (edges.key_pos <= edges.query_pos).all()


def test_weights_too_small_for_half_precision_are_edges_still():
    model = make_bridge()
    for block in model.blocks:
        block.attn.hook_attn_scores.add_hook(lambda scores, hook: scores * 1000, is_permanent=True)
    _, cache = model.half().run_with_cache(TOKENS)
    assert (cache["blocks.0.attn.hook_pattern"] > 0).sum() < 2 * 2 * 15
    assert len(attention_edges(model, TOKENS)) == 2 * 2 * 2 * 15


def test_weights_are_those_of_the_pattern():
    model = make_bridge()
    _, cache = model.run_with_cache(TOKENS)
    edges = attention_edges(model, TOKENS)
    rebuilt = np.zeros((2, 2, 2, 5, 5), dtype=np.float32)
    rebuilt[edges.prompt, edges.layer, edges.head, edges.query_pos, edges.key_pos] = edges.weight
    for layer in range(2):
        np.testing.assert_array_equal(rebuilt[:, layer], cache[f"blocks.{layer}.attn.hook_pattern"].numpy())


def test_the_picture_is_of_one_prompt_without_its_padding():
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    strings = (("a", "b", "c", "d", "e"), ("f", "g", "h"))
    answers = torch.tensor([1, 2]), torch.tensor([3, 4])
    pairs = sl.TokenizedPairs(TOKENS, TOKENS, *answers, attention_mask=mask, token_strings=strings)
    edges = attention_edges(make_bridge(), pairs)
    assert edges.tokens == strings and edges.starts == (0, 2)
    (panel,) = edges.plot(prompt=1).layout.panels
    assert panel.tokens == ["f", "g", "h"] and len(panel.edges) == 2 * 2 * 6
    assert panel.edges.query_pos.max() == 2 and panel.edges.key_pos.min() == 0
    one, other = side_by_side({"this": edges, "that": edges}, prompt=1).layout.panels
    assert (one.name, other.name, len(other.edges)) == ("this", "that", 24)
    assert attention_edges(make_bridge(), TOKENS).tokens[0] == ("1", "2", "3", "4", "5")


def test_rows_are_in_order():
    edges = attention_edges(make_bridge(), TOKENS)
    rows = list(zip(edges.prompt, edges.layer, edges.head, edges.query_pos, edges.key_pos, strict=True))
    assert rows == sorted(rows)


def test_a_sparse_model_has_its_open_gates():
    model = sl.sparsify(make_bridge(bidirectional=True), gate_bias=0.0)
    _, cache = model.run_with_cache(TOKENS)
    edges = attention_edges(model, TOKENS)
    for layer in range(2):
        gate = cache[f"blocks.{layer}.attn.hook_gate"]
        here = edges.take(edges.layer == layer)
        assert len(here) == gate.sum().item()
        assert (gate[here.prompt, here.head, here.query_pos, here.key_pos] == 1).all()
    assert 0 < len(edges) < 2 * 2 * 2 * 25
    with sl.record_gates(model) as gates:
        model(TOKENS)
    assert edges.per_layer().sum(1).mean() == pytest.approx(gates.open.sum().item())


def test_all_gates_closed():
    edges = attention_edges(sl.sparsify(make_bridge(), gate_bias=-1e4), TOKENS)
    assert len(edges) == 0 and edges.per_layer().tolist() == [[0, 0], [0, 0]]


def test_of_prompt_and_take():
    edges = attention_edges(make_bridge(), TOKENS)
    second = edges.of_prompt(1)
    assert len(second) == len(edges) // 2 and set(second.prompt) == {1}
    assert second.take(np.array([3, 0])).weight.tolist() == [second.weight[3], second.weight[0]]
    with pytest.raises(ValueError, match="prompt = 2"):
        edges.of_prompt(2)


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match="eval"):
        attention_edges(make_bridge().train(), TOKENS)


def test_a_model_without_patterns_is_refused():
    class TransformerBridge(torch.nn.Module):
        __module__ = "transformer_lens"  # a model is recognised by this and its name
        cfg = type("cfg", (), {"n_layers": 2})

        def run_with_cache(self, tokens, names_filter):
            return tokens, {}

    with pytest.raises(ValueError, match=r"hook_pattern.*eager"):
        attention_edges(TransformerBridge().eval(), TOKENS)


def test_it_is_plain_data():
    edges = attention_edges(make_bridge(), TOKENS)
    assert isinstance(edges, AttentionEdges)
    assert all(type(getattr(edges, name)) is np.ndarray for name in ("prompt", "layer", "head", "weight"))


def left_padded() -> sl.TokenizedPairs:
    """Prompts of 5, 3 and 5 tokens."""
    clean = torch.tensor([[1, 2, 3, 4, 5], [0, 0, 3, 2, 1], [5, 4, 3, 2, 1]])
    mask = torch.tensor([[1] * 5, [0, 0, 1, 1, 1], [1] * 5])
    return sl.TokenizedPairs(clean, clean.flip(0), torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6]), mask, mask.flip(0))


@pytest.mark.parametrize("gate_bias", [None, 0.0])
def test_padded_pairs_have_the_edges_of_each_prompt_alone(gate_bias: float | None):
    model, pairs = make_bridge(), left_padded()
    if gate_bias is not None:
        sl.sparsify(model, gate_bias)
    edges = attention_edges(model, pairs)
    assert (edges.n_prompts, edges.n_pos) == (3, 5)
    for prompt, first in enumerate([0, 2, 0]):
        own, alone = edges.of_prompt(prompt), attention_edges(model, pairs.clean[prompt : prompt + 1, first:])
        np.testing.assert_array_equal(own.query_pos - first, alone.query_pos)
        np.testing.assert_array_equal(own.key_pos - first, alone.key_pos)
        np.testing.assert_allclose(own.weight, alone.weight, atol=1e-6)
    rows = list(zip(edges.prompt, edges.layer, edges.head, edges.query_pos, edges.key_pos, strict=True))
    assert rows == sorted(rows)


def test_padding_without_a_mask_is_refused(tmp_path: Path):
    model, pairs = make_bridge(), left_padded()
    model.tokenizer = tiny_tokenizer(tmp_path)  # pads with 0
    with pytest.raises(ValueError, match=r"prompt 1 holds the padding token 0 \(1 of 3 prompts do\).*TokenizedPairs"):
        attention_edges(model, pairs.clean)
    assert len(attention_edges(model, TOKENS)) == 2 * 2 * 2 * 15


def test_padding_inside_a_prompt_is_refused():
    mask = torch.tensor([[1, 0, 1, 1, 1], [1] * 5])
    pairs = sl.TokenizedPairs(TOKENS, TOKENS.flip(0), torch.tensor([1, 2]), torch.tensor([3, 4]), mask)
    with pytest.raises(ValueError, match="prompt 0 has padding inside"):
        attention_edges(make_bridge(), pairs)
