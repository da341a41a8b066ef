"""Flaws once found by reading the pairs: shortcuts that solve a task without doing it, years as digits, wording."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import transformers as tr
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from sparselens.prompts.fitting import Fit, MisfitError
from sparselens.prompts.pairs import PromptPair
from sparselens.tasks import TASKS
from sparselens.tasks.addition import ALPHABET
from sparselens.tasks.greater_than import greater_than
from sparselens.tasks.induction import BEFORE, TEXTS
from sparselens.tasks.opposites import EITHER, PAIRS, PEOPLE, PERSONAL, STORIES

DIGITS = tuple("0123456789")


def reader(numbers: str, tokens: set[str]) -> Any:
    """A tokenizer that splits digits by a rule, has these tokens for them, and one token for any other character."""
    letters = {chr(code) for code in range(32, 127)}
    vocabulary = {token: number for number, token in enumerate(sorted(letters | tokens))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="~"))
    cut = [pre_tokenizers.Split(Regex(rule), "isolated") for rule in (numbers, r"[^\p{N}]")]
    backend.pre_tokenizer = pre_tokenizers.Sequence(cut)
    return tr.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="~")


ONE_DIGIT = reader(r"\p{N}", set(DIGITS))  # as Qwen, Gemma, Llama 2 and SmolLM2
THREE_DIGITS = reader(r"\p{N}{1,3}", {str(number) for number in range(1000)})  # as Llama 3


def test_years_where_every_digit_is_a_token():
    tokens = greater_than.tokenize(ONE_DIGIT, 100)
    for row, pair in enumerate(tokens.prompts):
        first, second = re.findall(r"\d+", pair.clean)
        tens = int(first[2])
        assert second == first[:2] and 1 <= tens <= 8
        assert [*map(int, pair.answers)] == list(range(tens + 1, 10))
        assert [*map(int, pair.wrong_answers)] == list(range(tens))
        assert pair.corrupted == pair.clean.replace(first, f"{first[:2]}0{first[3]}")
        assert ONE_DIGIT.decode(tokens.clean[row, tokens.positions["YY"][row]]) == first[2]


def test_years_where_three_digits_are_a_token():
    for pair in greater_than.tokenize(THREE_DIGITS, 100).prompts:
        first, second = re.findall(r"\d+", pair.clean)
        assert second == first[:3] and [*map(int, pair.answers)] == list(range(int(first[3]) + 1, 10))
        assert [*map(int, pair.wrong_answers)] == list(range(int(first[3]) + 1))
        assert pair.corrupted == pair.clean.replace(first, f"{first[:3]}0")


@pytest.mark.parametrize("corruption", TASKS["addition"].corruptions)
def test_the_answer_is_not_read_inside_a_longer_token(corruption: str):
    """`47+28=?????` as SmolLM2 splits it: ?? ?? ?, or with the last two as one token."""
    vocabulary = {token: number for number, token in enumerate((*ALPHABET, "??"))}
    for rule in (r"\?\?|.", r"\?\?$|."):
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token="="))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(rule), "isolated")
        longer = tr.PreTrainedTokenizerFast(tokenizer_object=backend)
        if corruption == "carry" or rule.endswith("$|."):
            with pytest.raises(ValueError, match=f"'S{int(corruption == 'carry')}' lies inside a longer token"):
                TASKS["addition"].tokenize(longer, 1, corruption=corruption)


def test_an_answer_that_is_read_in_the_middle_is_read_at_a_whole_token():
    backend = Tokenizer(models.WordLevel({"a": 0, "??": 1, "?": 2}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\?\?|."), "isolated")
    pairs = [PromptPair("a??a", "a??", ("a",), ("?",), {"END": end}, {"END": end}) for end in ((2, 3), (1, 3))]
    fit = Fit(tr.PreTrainedTokenizerFast(tokenizer_object=backend), equal_length=False)
    assert [isinstance(found, MisfitError) for found in fit.check(pairs)] == [True, False]


def test_no_sum_can_be_copied():
    for name in ("arithmetic", "modular_addition"):
        for pair in TASKS[name].pairs(1000):
            operands = {pair.clean[slice(*pair.positions[slot])] for slot in "AB"}
            assert pair.answers[0].strip() not in operands and not operands & {"0", "zero"}, pair.clean


def test_half_of_the_sums_wrap_around():
    pairs = TASKS["modular_addition"].pairs(1000)
    wrapped = [
        sum(int(pair.clean[slice(*pair.positions[slot])]) for slot in "AB")
        >= int(pair.clean[slice(*pair.positions["MODULUS"])])
        for pair in pairs
    ]
    assert sum(wrapped) / 1000 == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("name", ["induction", "induction_text"])
def test_every_word_that_is_repeated_has_a_space_before_it(name: str):
    texts = [pair.clean for pair in TASKS[name].pairs(200)]
    for text in texts:
        last = text.split()[-1]
        assert text.count(f" {last}") == len(re.findall(rf"\b{last}\b", text)) >= 2
    assert BEFORE and not any(text.startswith("{") for text in TEXTS)


def test_a_second_word_can_be_the_answer():
    places = Counter(len(pair.clean.removeprefix(BEFORE).split()) for pair in TASKS["induction"].pairs(300))
    assert min(places) == 6  # five words, and the first of them again


# -- how many


LEAST = {"opposites": 800, "opposites_stories": 800, "opposites_quoted": 800, "hypernymy": 800, "country_capital": 800}


@pytest.mark.parametrize("name", LEAST)
def test_a_thousand_draws_have_hundreds_of_different_prompts(name: str, shared_data: Path):
    """There were only 295 (opposites_quoted) to 503 (opposites) before templates and words were added."""
    gpt2 = tr.AutoTokenizer.from_pretrained(shared_data / "tokenizers/gpt2")
    assert TASKS[name].fitted(gpt2).count_prompts(most=1000) >= LEAST[name]


# -- wording


def test_nobody_says_so():
    texts = [pair.clean for name in TASKS if name != "induction" for pair in TASKS[name].pairs(200)]
    wrong = r"\bmost (sad|happy|kind|busy|proud|brave)\b|contrary of|\bVery \w+ \w+ \(|\bred (girl|boy|cow|king|doctor)"
    assert not [text for text in texts if re.search(wrong, text)]
    opposite = dict(PAIRS)
    assert opposite["big"] == "small" and opposite["small"] == "big" and "afraid" not in {*opposite, *opposite.values()}


def test_only_people_are_happy():
    shapes = [
        (template, re.compile(re.escape(template).replace(r"\{WORD\}", r"(\w+)"))) for template in STORIES + PEOPLE
    ]
    for pair in TASKS["opposites_stories"].pairs(500):
        (template,) = [template for template, shape in shapes if shape.fullmatch(pair.clean)]
        word = pair.clean[slice(*pair.positions["WORD"])]
        assert word not in PERSONAL if template in STORIES else word in PERSONAL | EITHER


def test_who_is_not_safe_is_not_dangerous_and_no_thing_is_young():
    for pair in TASKS["opposites_stories"].pairs(1000):
        word = pair.clean[slice(*pair.positions["WORD"])]
        of_people = any(re.fullmatch(re.escape(t).replace(r"\{WORD\}", word), pair.clean) for t in PEOPLE)
        assert not (of_people and word in ("safe", "dangerous")), pair.clean
        assert of_people or word not in ("old", "young"), pair.clean


@pytest.mark.parametrize("name", TASKS)
def test_the_documentation_shows_the_pairs_that_are_drawn(name: str):
    shown = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8").partition(f"\n## {name}\n")[2]
    for pair in TASKS[name].pairs(3):
        assert repr(pair.clean) in shown.partition("\n## ")[0] and repr(pair.corrupted) in shown, pair
