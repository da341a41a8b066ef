"""The logit lens: equal to TransformerLens' numbers; on pairs and on text."""

from typing import Any

import pytest
import torch

import sparselens as sl
from sparselens.analyses import logit_lens
from sparselens.prompts.metrics import logit_difference
from sparselens.tasks import TASKS
from tests.analyses.small_models import tiny_pairs
from tests.tiny_models import KINDS_OF_BLOCKS, tiny_bridge, tiny_tokens

QUIET: dict[str, Any] = {"progress": False}
TEXT = "Lily saw a big dog. She was"


@pytest.fixture(scope="module", params=["stories260k", "stories260k-sparse"])
def stories(request: pytest.FixtureRequest) -> Any:
    return sl.load(request.param)


def test_equal_to_transformer_lens(stories: Any):
    (_, pairs) = next(TASKS["gendered_pronoun"].tokenize(stories.tokenizer, 3).batches(3))
    _, cache = stories.run_with_cache(pairs.clean)
    streams, labels = cache.accumulated_resid(incl_mid=True, apply_ln=True, return_labels=True)
    logits = streams @ stories.W_U + stories.b_U
    found = logit_lens(stories, pairs, **QUIET)
    assert list(found.streams) == labels
    wanted = torch.stack([logit_difference(some, pairs) for some in logits], 1)
    torch.testing.assert_close(found.values, wanted, atol=1e-4, rtol=1e-4)
    everywhere = logit_lens(stories, pairs, by_position=True, **QUIET)
    answers = zip(pairs.answer.tolist(), pairs.wrong_answer.tolist(), strict=True)
    differences = [logits[:, row, :, right] - logits[:, row, :, wrong] for row, (right, wrong) in enumerate(answers)]
    torch.testing.assert_close(everywhere.values, torch.stack(differences), atol=1e-4, rtol=1e-4)
    said = logit_lens(stories, pairs.clean)
    torch.testing.assert_close(said.values, logits.softmax(-1).amax(-1).movedim(0, 1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", KINDS_OF_BLOCKS)
def test_the_last_stream_is_the_model_itself(family: str):
    model, pairs = tiny_bridge(family), tiny_pairs()
    with torch.no_grad():
        logits = model(pairs.clean)
    found = logit_lens(model, pairs, **QUIET)
    torch.testing.assert_close(found.values[:, -1], logit_difference(logits, pairs), atol=1e-5, rtol=1e-5)
    assert (found.values[:, 0] - found.values[:, -1]).abs().max() > 1e-3
    said = logit_lens(model, pairs.clean)
    assert [int(token) for token in said.tokens[0][-1]] == logits[0].argmax(-1).tolist()


def test_a_text(stories: Any):
    found = logit_lens(stories, TEXT)
    assert found.positions[:4] == ("0 <s>", "1 Lily", "2  saw", "3  a")
    assert found.tokens[0][0][1:3] == (" Lily", " saw") and found.tokens[0][-1][5] == "g"  # do, g
    (trace,) = found.plot().data
    assert list(trace.y) == list(found.streams) and trace.text[-1][5] == "g"
    row = found.to_frame().iloc[-1]
    assert (row["stream"], row["pos"], row["token"]) == ("final_post", "9  was", found.tokens[0][-1][-1])


def test_prompts_of_several_lengths():
    pairs = tiny_pairs()
    mask = torch.ones_like(pairs.clean)
    mask[0, 6:] = 0
    mixed = sl.TokenizedPairs(pairs.clean, pairs.corrupted, pairs.answer, pairs.wrong_answer, attention_mask=mask)
    model = tiny_bridge("gpt2")
    short = sl.TokenizedPairs(pairs.clean[:1, :6], pairs.corrupted[:1, :6], pairs.answer[:1], pairs.wrong_answer[:1])
    found, alone = (logit_lens(model, some, **QUIET).values for some in (mixed, short))
    torch.testing.assert_close(found[:1], alone)
    with pytest.raises(ValueError, match="prompts have lengths 6 to 9"):
        logit_lens(model, mixed, by_position=True, **QUIET)


def test_what_is_not_there_is_refused():
    model = tiny_bridge("gpt2")
    found = logit_lens(model, tiny_pairs(), **QUIET)
    with pytest.raises(ValueError, match="no such stream: '1_midd', did you mean '1_mid'"):
        _ = found["1_midd"]
    with pytest.raises(ValueError, match="no tokenizer for strings"):
        logit_lens(model, TEXT)
    with pytest.raises(ValueError, match="prompt = 2: want 0 to 1"):
        logit_lens(model, tiny_tokens()).plot(2)
    with pytest.raises(ValueError, match="by_position=False"):
        logit_lens(model, tiny_pairs(), by_position=True, **QUIET).interval("0_pre")
