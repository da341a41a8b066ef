"""Prompts that a model cannot read as they were meant are refused, by every function that takes both."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import sparselens as sl
from sparselens import analyses
from sparselens.circuits.circuit import Circuit
from sparselens.circuits.graph import Graph
from sparselens.prompts.checks import refuse_unreadable
from sparselens.prompts.fitting import vocabulary_of
from sparselens.prompts.metrics import logit_difference
from sparselens.prompts.tokenized import TokenizedPairs
from tests.tiny_models import VOCABULARY, tiny_bridge, tiny_tokenizer, tiny_tokens

WORDS = [sl.PromptPair(f"w{i} w2 w3", f"w{i + 1} w2 w3", (" w4",), (" w5",)) for i in (6, 8)]


def other_tokenizer() -> Any:
    """The same words, each with another id."""
    words = {"<|endoftext|>": 0} | {f"w{i}": VOCABULARY - i for i in range(1, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<|endoftext|>")


def of_all_edges(model: Any, pairs: TokenizedPairs) -> Any:
    graph = Graph.of_shape(2, 4)
    circuit = Circuit(graph, graph.exists, torch.zeros(graph.exists.shape))
    return analyses.faithfulness(model, circuit, pairs, logit_difference, progress=False)


CALLS: dict[str, Callable[[Any, TokenizedPairs], Any]] = {
    "answer_logits": sl.answer_logits,
    "attribute_edges": lambda model, pairs: analyses.attribute_edges(model, pairs, logit_difference, progress=False),
    "attribute_nodes": lambda model, pairs: analyses.attribute_nodes(model, pairs, logit_difference, progress=False),
    "dependency_cone": analyses.dependency_cone,
    "faithfulness": of_all_edges,
    "measure_loss": analyses.measure_loss,
    "patch_edges": lambda model, pairs: analyses.patch_edges(
        model, pairs, logit_difference, ["input->logits"], progress=False
    ),
    "patch_heads": partial(analyses.patch_heads, progress=False),
    "score_by_magnitude": lambda model, pairs: analyses.score_by_magnitude(
        model, pairs, logit_difference, progress=False
    ),
    "with_reference": sl.with_reference,
}


@pytest.fixture(scope="module")
def words_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    model = tiny_bridge("gpt2")
    model.tokenizer = tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return model


@pytest.mark.parametrize("name", CALLS)
def test_pairs_made_for_another_tokenizer_are_refused(name: str, words_model: Any):
    CALLS[name](words_model, sl.tokenize_pairs(WORDS, words_model.tokenizer))
    with pytest.raises(ValueError, match=r"another vocabulary than that of this TransformerBridge"):
        CALLS[name](words_model, sl.tokenize_pairs(WORDS, other_tokenizer()))


def test_parts_of_pairs_keep_their_vocabulary():
    pairs = sl.tokenize_pairs(WORDS, other_tokenizer())
    assert pairs.vocabulary and pairs[:1].vocabulary == pairs.to("cpu").vocabulary == pairs.vocabulary
    assert {batch.vocabulary for _, batch in pairs.batches(1)} == {pairs.vocabulary}


def test_what_is_added_to_a_vocabulary_later_does_not_count(tmp_path: Path):
    tokenizer = tiny_tokenizer(tmp_path)
    name = vocabulary_of(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert vocabulary_of(tokenizer) == name != vocabulary_of(other_tokenizer())


def test_plain_tensors_and_models_without_a_tokenizer_are_not_refused(words_model: Any):
    pairs = TokenizedPairs(tiny_tokens(2, 4), tiny_tokens(2, 4, seed=1), torch.tensor([1, 2]), torch.tensor([3, 4]))
    sl.answer_logits(words_model, pairs)
    sl.answer_logits(tiny_bridge("gpt2"), sl.tokenize_pairs(WORDS, other_tokenizer()))
    assert vocabulary_of(object()) == ""  # as of a tokenizer that does not tell what was added to it


@pytest.mark.parametrize("name", CALLS)
def test_a_token_out_of_range_is_named(name: str):
    clean, right = tiny_tokens(2, 4), torch.tensor([1, 2])
    outside = clean.clone()
    outside[1, 2] = VOCABULARY
    model = tiny_bridge("gpt2")
    with pytest.raises(ValueError, match=f"token {VOCABULARY} of clean prompt 1: this model has tokens 0 to"):
        CALLS[name](model, TokenizedPairs(outside, clean, right, right + 1))
    with pytest.raises(ValueError, match=f"token {VOCABULARY} of wrong answer 0: this model has tokens 0 to"):
        CALLS[name](model, TokenizedPairs(clean, tiny_tokens(2, 4, seed=1), right, right + VOCABULARY - 1))


ROWS = {  # of tokens, and what is refused where 0 also is the EOS: among prompts, and in rows cut from running text
    "no padding": ([[1, 2, 3], [4, 5, 6]], False, False),
    "every row opens with it": ([[0, 1, 2], [0, 4, 5]], False, False),
    "one row opens with it": ([[1, 2, 3], [0, 4, 5]], True, False),
    "a row opens with two": ([[0, 0, 3], [0, 4, 5]], True, True),
    "a row ends with it": ([[1, 2, 0], [4, 5, 6]], True, False),
    "a row ends with two": ([[1, 0, 0], [4, 5, 6]], True, True),
    "inside": ([[1, 0, 3], [4, 5, 6]], False, False),
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("alone", [False, True])
def test_padding_without_a_mask(name: str, alone: bool, tmp_path: Path):
    tokens, as_prompts, as_text = ROWS[name]
    model = tiny_bridge("gpt2")
    model.tokenizer = tiny_tokenizer(tmp_path)
    if alone:  # a token that does nothing but pad is never meant
        model.tokenizer.eos_token = model.tokenizer.bos_token = model.tokenizer.unk_token = "w9"
        as_prompts = as_text = name != "no padding"
    for packed, refused in ((False, as_prompts), (True, as_text)):
        with pytest.raises(ValueError, match="holds the padding token 0") if refused else nullcontext():
            refuse_unreadable(model, torch.tensor(tokens), packed)


def test_rows_of_text_that_hold_padding_give_no_loss(tmp_path: Path):
    model = tiny_bridge("gpt2")
    model.tokenizer = tiny_tokenizer(tmp_path)
    padded = torch.tensor([[0, 0, 3, 4], [1, 2, 3, 4]])
    with pytest.raises(ValueError, match="holds the padding token 0"):
        analyses.measure_loss(model, padded)
    analyses.measure_loss(model, {"input_ids": padded, "attention_mask": (padded != 0).long()})
