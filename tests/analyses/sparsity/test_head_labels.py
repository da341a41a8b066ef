"""Head labels: the scores of TransformerLens, also on prompts that its detector does not accept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens import ActivationCache, head_detector
from transformer_lens.head_detector import HEAD_NAMES, detect_head

import sparselens as sl
from sparselens.analyses import label_heads
from sparselens.analyses.sparsity.head_labels import HeadScores, repeated_tokens
from tests.analyses.small_models import native_model, two_layers
from tests.tiny_models import tiny_bridge, tiny_model, tiny_tokenizer, tiny_tokens


@pytest.fixture(scope="module", params=["stories260k", "stories260k-sparse"])
def stories(request: pytest.FixtureRequest) -> Any:
    return sl.load(request.param)


PROMPTS = ["Once upon a time, Tim and Sue saw Tim and Sue.", "The cat sat. The cat sat."]


@pytest.mark.parametrize("exclude", [False, True])
def test_scores_are_those_of_detect_head_where_every_query_counts(stories: Any, exclude: bool):
    """Without the attention of queries that have no target, TransformerLens' detector gives the same scores."""
    options = {"exclude_bos": exclude, "exclude_current_token": exclude}
    found = label_heads(stories, PROMPTS, **options)
    makers = (
        head_detector.get_previous_token_head_detection_pattern,
        head_detector.get_duplicate_token_head_detection_pattern,
        head_detector.get_induction_head_detection_pattern,
    )
    for scores, kind, make in zip(found.scores, HEAD_NAMES, makers, strict=True):
        own: list[torch.Tensor] = []
        for prompt in PROMPTS:
            has_target = make(stories.to_tokens(prompt).cpu()).any(-1)
            _, cache = stories.run_with_cache(prompt, remove_batch_dim=True)
            patterns = {name: value for name, value in cache.items() if name.endswith("hook_pattern")}
            masked = {name: value * has_target[:, None] for name, value in patterns.items()}
            cache = ActivationCache(masked, stories, has_batch_dim=False)
            own.append(detect_head(stories, prompt, kind, cache=cache, **options).nan_to_num())
        torch.testing.assert_close(scores, torch.stack(own).mean(0), atol=1e-6, rtol=1e-5)


def test_the_example():
    found = label_heads(sl.load("stories260k-sparse")).labels(threshold=0.98)
    assert found == {"a1.h2": "previous token 0.99", "a3.h6": "previous token 1.00"}


def test_attention_is_one_only_in_a_dense_model(stories: Any):
    attention = label_heads(stories, PROMPTS).attention
    if sl.is_sparse(stories):
        assert attention.max() < 1.0
    else:
        torch.testing.assert_close(attention, torch.ones(5, 8))


def test_by_hand():
    # heads with uniform attention: of the weights 1, 1/2 1/2, 1/3 1/3 1/3, those on the previous token are 1/2 and 1/3,
    # for the two queries that have one; only the last token has occurred before
    found = label_heads(two_layers(), torch.tensor([[0, 1, 0]]))
    assert found.kinds == ("previous token", "duplicate token", "induction")
    previous, duplicate, induction = found.scores[:, 0, 0].tolist()
    assert previous == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert duplicate == pytest.approx(1 / 3)
    assert induction == pytest.approx(1 / 3)
    assert found.label(0, 0, threshold=0.35) == "previous token 0.42"
    assert found.labels(threshold=0.35) == {"a0.h0": "previous token 0.42", "a1.h0": "previous token 0.42"}
    assert found.labels(threshold=0.5) == {}


def test_prompts_in_which_nothing_repeats_say_nothing_of_induction():
    alone, both = (label_heads(two_layers(), torch.tensor(rows)) for rows in ([[0, 1, 0]], [[0, 1, 0], [0, 1, 2]]))
    torch.testing.assert_close(alone.scores, both.scores)
    assert not label_heads(two_layers(), torch.tensor([[0, 1, 2]])).scores[1:].any()


def induction_model() -> Any:
    """A hand-built two-layer induction circuit: a0.h2 attends to the previous token, a1.h1 to a1.h3 to what followed.

    The residual stream has room for the token, for its position, and for the token before it. Heads without a task look
    at all positions alike.
    """
    n_tokens, n_pos, n_heads, width = 10, 20, 4, 40
    model = native_model(n_ctx=n_pos, d_vocab=n_tokens, n_heads=n_heads, d_model=width, d_head=20, attn_only=True)
    token, place, before = slice(0, n_tokens), slice(n_tokens, n_tokens + n_pos), slice(n_tokens + n_pos, width)
    model.embed.original_component.weight.data[:, token] = torch.eye(n_tokens)
    model.pos_embed.original_component.weight.data[:, place] = torch.eye(n_pos)
    first, second = (Heads(model.blocks[layer].attn, n_heads, 20) for layer in (0, 1))
    first.put("q", 2, place, torch.eye(n_pos).roll(-1, 1) * 16)  # position i attends to i - 1
    first.put("k", 2, place, torch.eye(n_pos))
    first.put("v", 2, token, torch.eye(n_tokens))
    first.write(2, before, torch.eye(n_tokens))
    for head, strength in ((1, 3.8), (2, 3.6), (3, 3.4)):
        second.put("q", head, token, torch.eye(n_tokens) * strength)
        second.put("k", head, before, torch.eye(n_tokens))
        second.put("v", head, token, torch.eye(n_tokens))
        second.write(head, token, torch.eye(n_tokens))
    model.unembed.original_component.weight.data[:, token] = torch.eye(n_tokens)
    return model


class Heads:
    """The weights of one attention layer, head by head: x @ W."""

    def __init__(self, attn: Any, n_heads: int, d_head: int) -> None:
        self._attn, self._n_heads, self._d_head = attn, n_heads, d_head

    def put(self, receiver: str, head: int, reads: slice, matrix: torch.Tensor) -> None:
        """Make a head's queries, keys or values these dimensions of the stream times the matrix."""
        weight = getattr(self._attn, receiver).original_component.weight.data  # out, in
        rows = slice(head * self._d_head, head * self._d_head + matrix.shape[1])
        weight[rows, reads] = matrix.T * (self._d_head**0.25 if receiver in "qk" else 1.0)

    def write(self, head: int, writes: slice, matrix: torch.Tensor) -> None:
        """Make a head write its value times the matrix to these dimensions."""
        columns = slice(head * self._d_head, head * self._d_head + matrix.shape[0])
        self._attn.o.original_component.weight.data[writes, columns] = matrix.T


def test_a_real_induction_circuit_gets_its_labels():
    model = induction_model()
    rows = repeated_tokens(model, n=8)
    assert rows.shape == (8, 20)  # two copies of ten tokens
    with torch.no_grad():
        guesses = model(rows).argmax(-1)
    assert (guesses[:, 10:-1] == rows[:, 11:]).float().mean() > 0.85
    labels = label_heads(model, rows).labels()
    assert {name: label.rpartition(" ")[0] for name, label in labels.items()} == {
        "a0.h2": "previous token",
        "a1.h1": "induction",
        "a1.h2": "induction",
        "a1.h3": "induction",
    }


def test_a_closed_head_scores_nothing():
    model = sl.sparsify(two_layers(), gate_bias=-1.0)
    found = label_heads(model, torch.tensor([[0, 1, 0]]))
    assert not found.scores.any()
    assert not found.attention.any()
    assert found.label(1, 0) == ""


def test_an_induction_head_is_found():
    """Queries of the last block match the token before each key; a hook supplies the patterns."""
    model = native_model(n_ctx=16, d_vocab=12)
    rows = repeated_tokens(model, n=2)

    def attend(pattern: torch.Tensor, hook: Any) -> torch.Tensor:
        pattern = torch.zeros_like(pattern)
        pattern[..., 0] = 1.0
        for query in range(8, 16):  # the second copy: attend to the position after the first occurrence of the token
            pattern[:, :, query, 0] = 0.0
            pattern[:, :, query, query - 7] = 1.0
        return pattern

    with model.hooks([("blocks.1.attn.hook_pattern", attend)]):
        found = label_heads(model, rows)
        judged_by_the_rest = label_heads(model, rows, exclude_bos=True)
    assert found.label(1, 0) == "induction 1.00"
    assert judged_by_the_rest.label(1, 0) == "induction 1.00"
    assert found.label(0, 0) == ""


# rows


def test_random_tokens_repeat_and_are_the_same_every_time():
    model = native_model(n_ctx=11, d_vocab=13)
    rows = repeated_tokens(model, n=3, seed=1)
    assert rows.shape == (3, 10)
    assert torch.equal(rows[:, :5], rows[:, 5:])
    assert all(len(set(row.tolist())) == 5 for row in rows)
    assert torch.equal(rows, repeated_tokens(model, n=3, seed=1))
    assert not torch.equal(rows, repeated_tokens(model, n=3, seed=2))


def test_they_open_with_the_bos_of_the_tokenizer(stories: Any):
    rows = repeated_tokens(stories, n=2)
    assert rows.shape == (2, 65)
    assert (rows[:, 0] == stories.tokenizer.bos_token_id).all()
    assert torch.equal(rows[:, 1:17], rows[:, 49:])


@pytest.mark.parametrize("family", ["llama", "opt", "bert"])
def test_other_families_with_their_mode_left_alone(family: str):
    model = tiny_bridge(family).train()
    found = label_heads(model, n=2)
    assert model.training
    assert found.scores.shape == (3, 2, 4)
    assert ((found.scores >= 0) & (found.scores <= 1)).all()


def test_shipped_bidirectional_model():
    found = label_heads(sl.load("addition-sparse"))
    assert found.scores.shape == (3, 4, 2)
    assert not found.scores.isnan().any()


def test_refusals():
    model = tiny_bridge("gpt2")
    with pytest.raises(ValueError, match="no tokenizer for strings"):
        label_heads(model, ["a b"])
    with pytest.raises(ValueError, match="prompt 0 has 1 tokens: want 2 to 32"):
        label_heads(model, tiny_tokens(length=1))
    with pytest.raises(ValueError, match="prompt 0 has 33 tokens"):
        label_heads(model, tiny_tokens(length=33))
    with pytest.raises(ValueError, match="n = 0"):
        label_heads(model, n=0)
    with pytest.raises(ValueError, match="no prompt"):
        label_heads(model, tiny_tokens()[:0])
    with pytest.raises(ValueError, match="not a GPT2LMHeadModel"):
        label_heads(tiny_model("gpt2"))
    with pytest.raises(ValueError, match=r"no such head: a2.h0 \(2 layers of 4 heads\)"):
        HeadScores(("induction",), torch.zeros(1, 2, 4), torch.ones(2, 4)).label(2, 0)


def test_pairs_are_judged_without_their_padding(tmp_path: Path):
    model, tokens = tiny_bridge("gpt2"), tiny_tokens(2, 6)
    model.tokenizer = tiny_tokenizer(tmp_path)  # pads with 0
    padded = torch.stack([tokens[0], torch.nn.functional.pad(tokens[1, :4], (2, 0))])
    mask = (padded != 0).long()
    pairs = sl.TokenizedPairs(padded, padded.flip(0), torch.tensor([1, 2]), torch.tensor([3, 4]), mask, mask.flip(0))
    alone = [label_heads(model, row[None]).scores for row in (tokens[0], tokens[1, :4])]
    torch.testing.assert_close(label_heads(model, pairs).scores, torch.stack(alone).mean(0))
    with pytest.raises(ValueError, match="prompt 1 holds the padding token 0"):
        label_heads(model, padded)
