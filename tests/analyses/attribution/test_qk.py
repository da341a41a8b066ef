"""Why a gate is open: the score as a sum over pairs of sources, exact in every family, and what closes the gate."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import sparselens as sl
from sparselens import analyses
from sparselens.analyses.attribution.qk import explain_under
from sparselens.analyses.attribution.qk_attribution import QKAttribution
from sparselens.analyses.engine.request import OpenModel
from sparselens.tasks import TASKS
from tests.analyses.small_models import put, shipped, tiny_pairs, two_layers
from tests.tiny_models import FAMILIES, KINDS_OF_BLOCKS, tiny_bridge, tiny_tokens

READABLE = sorted(set(FAMILIES) - {"bert"})
BIASED = {"bloom", "falcon", "mpt"}  # by position


POINTS = ("hook_attn_scores", "hook_gate", "hook_pattern")


def shown(model: Any, tokens: Tensor, found: QKAttribution, hooks: Any = ()) -> tuple[Tensor, ...]:
    """Score, gate (in a sparse model) and weight that a run shows at the place that was explained."""
    layer, head = map(int, found.head[1:].split(".h"))
    names = [name for name in (f"blocks.{layer}.attn.{point}" for point in POINTS) if name in model.hook_dict]
    with torch.no_grad(), model.hooks(fwd_hooks=list(hooks)):
        _, cache = model.run_with_cache(tokens, names_filter=names)
    return tuple(cache[name][torch.arange(len(tokens)), head, found.query_pos, found.key_pos] for name in names)


def summed(found: QKAttribution) -> Tensor:
    total = found.per_prompt.sum((1, 2)) + found.position_bias
    return total if found.soft_cap is None else found.soft_cap * torch.tanh(total / found.soft_cap)


def worked_out() -> Any:
    """In layer 1 queries and keys are the residual stream as it is; see `two_layers`."""
    model = two_layers()
    put(model.blocks[1].attn.q, [[1, 0], [0, 1]])
    put(model.blocks[1].attn.k, [[1, 0], [0, 1]])
    return model


def test_pairs_worked_out_by_hand():
    """Tokens 0 1: the query at 1 is (0, 1) from the token and (1, 1) from head 0, the key at 0 is (1, 0) and (2, 0)."""
    found = analyses.explain_edge(worked_out(), torch.tensor([0, 1]), "a1.h0", 1, 0)
    assert found.query_sources == found.key_sources == ("token", "position", "a0.h0")
    assert found["token", "token"] == 0 and found["token", "a0.h0"] == 0
    expected = torch.tensor([[0.0, 0, 0], [0, 0, 0], [1, 0, 2]]) / 2**0.5
    torch.testing.assert_close(found.mean, expected)
    assert found.score.tolist() == pytest.approx([3 / 2**0.5]) and found.is_open is None
    assert [tuple(pair) for pair in found.top(2)] == [
        ("a0.h0", "a0.h0", pytest.approx(2**0.5)),
        ("a0.h0", "token", pytest.approx(0.5**0.5)),
    ]
    assert found.sentence(1) == (
        "a1.h0 at position 1 reads position 0: score 2.12, weight 0.20 (no gate); mostly a0.h0 (query) with a0.h0 "
        "(key) +1.41, 8 other pairs +0.71"
    )
    assert "hook_gate" not in "".join(worked_out().hook_dict)


def test_heads_are_split_by_where_they_read():
    """Head 0 writes (1, 0) from position 0 and (0, 1) from position 1 to the query at 1."""
    found = analyses.explain_edge(worked_out(), torch.tensor([0, 1]), "a1.h0", 1, 1, by_position=True)
    assert found.query_sources == ("token", "position", "a0.h0:0->1", "a0.h0:1->1")
    expected = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]]) / 2**0.5
    torch.testing.assert_close(found.mean, expected)


@pytest.mark.parametrize(
    ("family", "gated"),
    [*((family, False) for family in READABLE), *((family, True) for family in KINDS_OF_BLOCKS)],
)
def test_pairs_add_up_to_the_score(family: str, gated: bool):
    """Rotary, partly rotary, absolute and linear positions, soft-caps, and norms of queries and keys."""
    model, tokens = tiny_bridge(family), tiny_tokens(batch=3)
    points = dict(model.hook_dict)
    reader = OpenModel(model)
    witness = sl.sparsify(model if gated else tiny_bridge(family), 0.1 if gated else 1e4)
    for head, query, key in (("a0.h1", 4, 2), ("a1.h3", 7, 4), ("a1.h2", -1, 8)):
        for by_position in (False, True):
            found = explain_under(reader, tokens, head, query, key, (), by_position)
            scores, gates, weights = shown(witness, tokens, found)
            torch.testing.assert_close((found.score, found.weight), (scores, weights))
            torch.testing.assert_close(summed(found), scores, rtol=1e-4, atol=1e-5)
            assert bool(found.position_bias.any()) == (family in BIASED and (family, query) != ("mpt", -1))
            assert any(":" in name for name in found.query_sources) == (by_position and head != "a0.h1")
            if gated:
                assert found.is_open is not None
                assert found.is_open.tolist() == gates.bool().tolist()
            else:
                assert found.is_open is None and dict(model.hook_dict) == points  # as it was


def test_other_families_are_refused_as_everywhere():
    with pytest.raises(ValueError, match="cannot read layer 0 of this BertForMaskedLM"):
        analyses.explain_edge(tiny_bridge("bert"), tiny_tokens(), "a1.h0", 4, 2)


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "gptj", "bloom"])
def test_a_pair_is_the_score_of_what_two_wrote(family: str):
    """With that alone as query and key, the model's own attention shows the pair, and its position bias."""
    model, tokens = sl.sparsify(tiny_bridge(family), 0.1), tiny_tokens(batch=1)
    found = analyses.explain_edge(model, tokens, "a1.h3", 7, 3)
    _, cache = model.run_with_cache(tokens)
    norm, attn = model.blocks[1].ln1.original_component, model.blocks[1].attn

    def read(name: str, pos: int, weight: Tensor) -> Tensor:
        stream = cache["blocks.1.hook_resid_pre"][0, pos]
        layer, head = (0, None) if name == "m0" else (0, int(name[-1]))
        z = cache["blocks.0.attn.hook_z"][0, pos]
        write = cache["blocks.0.hook_mlp_out"][0, pos] if head is None else z[head] @ model.blocks[layer].attn.W_O[head]
        if family != "llama":
            stream, write = stream - stream.mean(), write - write.mean()
        root = (stream.square().mean() + getattr(norm, "eps", getattr(norm, "variance_epsilon", 0))).sqrt()
        return (write / root * norm.weight) @ weight[3 * len(weight) // 4]

    for query_source, key_source in (("m0", "m0"), ("a0.h1", "m0"), ("a0.h2", "a0.h0")):
        query, key = read(query_source, 7, attn.W_Q), read(key_source, 3, attn.W_K)

        def put(value: Tensor, head: int, pos: int, activation: Tensor, hook: Any) -> Tensor:
            changed = activation.clone()
            changed[0, pos, head * activation.shape[2] // 4] = value
            return changed

        hooks = [
            ("blocks.1.attn.hook_q", partial(put, query, 3, 7)),
            ("blocks.1.attn.hook_k", partial(put, key, 3, 3)),
        ]
        alone = shown(model, tokens, found, hooks)[0] - found.position_bias
        assert float(alone) == pytest.approx(found[query_source, key_source], rel=1e-4, abs=1e-5)


# -- what closes a gate, done


def opened(model: Any, prompts: list[Tensor], n: int) -> Iterator[tuple[Tensor, str, int, int]]:
    """Open edges of all layers, in steps as large as it takes to have `n`."""
    found = [(tokens, analyses.attention_edges(model, tokens)) for tokens in prompts]
    total = sum(len(edges) for _, edges in found)
    step, number = max(1, total // n), 0
    for tokens, edges in found:
        for layer, head, query, key in zip(edges.layer, edges.head, edges.query_pos, edges.key_pos, strict=True):
            if number % step == 0 and number // step < n:
                yield tokens, f"a{layer}.h{head}", int(query), int(key)
            number += 1


@pytest.mark.parametrize(
    ("name", "task"), [("stories260k-sparse", "gendered_pronoun"), ("addition-sparse", "addition")]
)
def test_without_the_closing_pairs_the_gate_closes(name: str, task: str):
    """On 24 open edges of each model: without the named pairs the gate is closed, with one of them back it is open."""
    model = shipped(name)
    pairs = TASKS[task].tokenize(model.tokenizer, 6)
    prompts = [tokens[row : row + 1] for rows, _, tokens in pairs.clean_rows() for row in range(len(rows))]
    edges = list(opened(model, prompts, 24))
    assert len(edges) == 24 and len({head for _, head, _, _ in edges}) > 2
    reader = OpenModel(model)
    for tokens, head, query, key in edges:
        found = explain_under(reader, tokens, head, query, key, (), False)
        closing = found.closing()
        values = [pair.score for pair in closing]
        assert values == sorted(values, reverse=True) and values[-1] > 0  # the largest: fewer cannot do
        score, gate, _ = shown(model, tokens, found)
        less, closed, weight = shown(model, tokens, found, found.without(closing))
        assert (gate.tolist(), closed.tolist(), weight.tolist()) == ([1], [0], [0])
        assert float(score - less) == pytest.approx(sum(values), rel=1e-4, abs=1e-4)
        assert shown(model, tokens, found, found.without(closing[:-1]))[1].tolist() == [1]


@pytest.mark.parametrize("family", ["gemma2", "mpt", "qwen3"])
def test_pairs_close_gates_behind_soft_caps_position_biases_and_norms(family: str):
    model = sl.sparsify(tiny_bridge(family), -0.1)
    for tokens, head, query, key in opened(model, [tiny_tokens(batch=1)], 10):
        found = analyses.explain_edge(model, tokens, head, query, key)
        closing = found.closing()
        assert shown(model, tokens, found, found.without(closing))[1].tolist() == [0]
        assert shown(model, tokens, found, found.without(closing[:-1]))[1].tolist() == [1]


def test_what_cannot_be_closed():
    model, tokens = tiny_bridge("gpt2"), tiny_tokens(batch=2)
    with pytest.raises(ValueError, match=r"is for one prompt, not for 2: call \.of_prompt"):
        analyses.explain_edge(model, tokens, "a1.h0", 4, 2).closing()
    with pytest.raises(ValueError, match="has no gate"):
        analyses.explain_edge(model, tokens[0], "a1.h0", 4, 2).closing()
    sl.sparsify(model, -1e3)
    with pytest.raises(ValueError, match="is closed already"):
        analyses.explain_edge(model, tokens[0], "a1.h0", 4, 2).closing()
    sl.sparsify(model, 1e3)
    with pytest.raises(ValueError, match="no pairs close this gate"):
        analyses.explain_edge(model, tokens[0], "a1.h0", 4, 2).closing()


# -- several prompts, names, results


def test_the_mean_over_pairs_is_taken_at_named_positions():
    """Prompts of several lengths, padded on the left."""
    model = shipped("stories260k-sparse")
    pairs = TASKS["gendered_pronoun"].tokenize(model.tokenizer, 6)
    assert pairs.attention_mask is not None
    found = analyses.explain_edge(model, pairs, "a3.h0", "END", "NAME")
    assert found.query == "END" and found.key == "NAME" and len(found) == 6
    torch.testing.assert_close(found.mean, found.per_prompt.mean(0))
    assert found.query_pos.tolist() == pairs.end.tolist() and found.key_pos.tolist() == pairs.positions["NAME"].tolist()
    for row, mask in enumerate(pairs.attention_mask):
        first = int(mask.argmax())
        places = (int(found.query_pos[row]) - first, int(found.key_pos[row]) - first)
        alone = analyses.explain_edge(model, pairs.clean[row, first:], "a3.h0", *places)
        torch.testing.assert_close(found.of_prompt(row).per_prompt, alone.per_prompt, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.of_prompt(row).score, alone.score, rtol=1e-4, atol=1e-5)
    assert found.is_open is not None
    said = f"a3.h0 at END reads NAME in 6 prompts: mean score {float(found.score.mean()):.2f}; open (score above 0) in "
    assert str(found).startswith(f"{said}{int(found.is_open.sum())}; ")


def test_a_text_is_read_as_tasks_read_it():
    model, text = shipped("stories260k-sparse"), "Lily saw a big dog. She was"
    found = analyses.explain_edge(model, text, "a2.h3", 3, 2)
    assert str(found).startswith(
        "a2.h3 at ' a' (3) reads ' saw' (2): score 1.51 > 0, open; mostly m0 (query) with a1.h0 (key) +0.57, "
    )
    assert repr(found).startswith("QKAttribution(a2.h3 at ' a' (3) reads ' saw' (2)") and len(repr(found)) < 200
    assert found.closing()[0] == found.top(1)[0] and "m0 with a1.h0 +0.566" in repr(found.top(1))
    frame = found.to_frame()
    assert list(frame.columns) == ["query_source", "key_source", "score"]
    assert len(frame) == found.mean.numel() and frame.score.sum() == pytest.approx(float(found.score), rel=1e-4)
    assert found._repr_html_().count("<tr") == 11


@pytest.mark.parametrize("most", [2, 8, 50])
def test_what_is_left_out_of_a_plot_is_added_up(most: int):
    found = analyses.explain_edge(shipped("stories260k-sparse"), "Lily saw a big dog. She was", "a3.h0", 9, 2)
    rows, columns, values = found.folded(most)
    assert len(rows) == values.shape[0] <= most + 1 and len(columns) == values.shape[1] <= most + 1
    assert float(values.sum()) == pytest.approx(float(found.score), rel=1e-4)
    assert rows[-1].endswith(" others") == (most < 10)
    heat = found.plot(most).data[0]
    assert list(heat.y) == rows and list(heat.x) == columns and heat.zmin == (-heat.zmax if (values < 0).any() else 0)


def test_a_head_that_a_hook_silences_is_not_split():
    model, tokens = sl.sparsify(tiny_bridge("llama"), 0.1), tiny_tokens(batch=1)
    hooks = [("blocks.0.attn.hook_z", lambda z: z.index_fill(2, torch.tensor([1]), 0))]
    found = explain_under(model, tokens, "a1.h3", 7, 3, hooks, by_position=True)
    assert "a0.h1" in found.query_sources and "a0.h1:7->7" not in found.query_sources
    assert found["a0.h1", "input"] == 0
    torch.testing.assert_close(summed(found), found.score, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("prompts", "head", "query", "key", "said"),
    [
        (tiny_tokens(), "a2.h0", 4, 2, "no such head: 'a2.h0'"),
        (tiny_tokens(), "m0", 4, 2, "no such head: 'm0'"),
        (tiny_tokens(), "a1.h0", 9, 2, "no such position: 9 .want 0 to 8, or -9 to -1"),
        (tiny_tokens(), "a1.h0", "END", 2, "no such position: 'END' .want a number"),
        (tiny_tokens(), "a1.h0", 2, 4, "in layer 1 position 2 does not see position 4"),
        ("some text", "a1.h0", 2, 1, "no tokenizer"),
        (tiny_tokens() + 99, "a1.h0", 1, 0, "this model has tokens 0 to 30"),
        (tiny_pairs(), "a1.h0", "S1", 0, "no such position: 'S1'"),
    ],
)
def test_mistakes_are_told(prompts: Any, head: str, query: Any, key: Any, said: str):
    with pytest.raises(ValueError, match=said):
        analyses.explain_edge(tiny_bridge("gpt2"), prompts, head, query, key)


def test_hidden_pairs_of_a_sliding_window():
    with pytest.raises(ValueError, match="does not see"):
        analyses.explain_edge(tiny_bridge("mistral"), tiny_tokens(), "a1.h0", 8, 1)


def test_other_mistakes():
    found = analyses.explain_edge(tiny_bridge("gpt2"), tiny_tokens(), "a1.h0", 4, 2)
    with pytest.raises(ValueError, match=r"no such source: 'a0\.h9' "):
        _ = found["a0.h9", "m0"]
    with pytest.raises(ValueError, match="no such source"):
        found.without([("m0", "a7.h0")])
    with pytest.raises(ValueError, match=r"prompt = 2: want 0 to 1"):
        found.of_prompt(2)
    with pytest.raises(ValueError, match="n = 0"):
        found.sentence(0)
    with pytest.raises(ValueError, match="by_position wants prompts of one length"):
        analyses.explain_edge(
            shipped("stories260k-sparse"),
            TASKS["gendered_pronoun"].tokenize(shipped("stories260k-sparse").tokenizer, 6),
            "a3.h0",
            "END",
            "NAME",
            by_position=True,
        )
