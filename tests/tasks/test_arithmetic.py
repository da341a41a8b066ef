"""Sums and remainders of the two arithmetic tasks, checked against Python's own, and a few by hand."""

import re

import pytest

from sparselens.prompts.draw import Draw
from sparselens.prompts.pairs import PromptPair
from sparselens.tasks.arithmetic import KINDS, NUMBER_WORDS, draw
from tests.tasks.drawn import thousand


def total(text: str) -> int:
    """The sum of the two numbers in a prompt."""
    numbers = [
        int(word) if word.isdigit() else NUMBER_WORDS.index(word)
        for word in re.findall(r"\w+", text)
        if word.isdigit() or word in NUMBER_WORDS
    ]
    assert len(numbers) == 2, text
    return sum(numbers)


def number(answer: str) -> int:
    word = answer.strip()
    return int(word) if word.isdigit() else NUMBER_WORDS.index(word)


def test_the_reading_of_prompts_by_hand():
    assert total("three plus four is") == 7 and number(" seven") == 7
    assert total("If you add 609 to 269, you get") == 878 and total("14+66=") == 80
    assert NUMBER_WORDS[7] == "seven" and NUMBER_WORDS[20] == "twenty" and len(NUMBER_WORDS) == 21


@pytest.mark.parametrize("corruption", ["second", "both"])
def test_both_answers_are_the_sums_of_their_prompts(corruption: str):
    for pair in thousand("arithmetic", corruption):
        assert total(pair.clean) == number(pair.answers[0])
        assert total(pair.corrupted) == number(pair.wrong_answers[0])


def test_one_to_three_digits_and_words():
    clean = [pair.clean for pair in thousand("arithmetic")]
    for form in (r"^\d\+\d=", r"^\d\d\+\d\d=", r"^\d{3}\+\d{3}=", r"^\d{3} plus \d{3} is", r"^four plus \w+ is"):
        assert any(re.search(form, text) for text in clean), form


def test_words_need_not_be_of_every_kind():
    lists = {"words": KINDS["words"].entries[:2]}  # two and three
    drawn = draw(Draw(0), lists, "second")
    assert {drawn.answers[0], drawn.wrong_answers[0]} == {" two", " three"}


@pytest.mark.parametrize("corruption", ["second", "both"])
def test_remainders(corruption: str):
    for pair in thousand("modular_addition", corruption):
        assert remainder(pair, "clean") == int(pair.answers[0])
        assert remainder(pair, "corrupted") == int(pair.wrong_answers[0])


def remainder(pair: PromptPair, side: str) -> int:
    text = getattr(pair, side)
    spans = pair.positions if side == "clean" else pair.corrupted_positions
    a, b, modulus = (int(text[slice(*spans[name])]) for name in ("A", "B", "MODULUS"))
    assert max(a, b) < modulus
    return (a + b) % modulus


def test_the_docstring_of_modular_addition():
    assert (61 + 80) % 113 == 28 and (61 + 57) % 113 == 5
