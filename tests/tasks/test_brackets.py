"""Brackets told from each other by hand, and the two classes of the task."""

from collections import Counter

import pytest

from sparselens.prompts.draw import Draw
from sparselens.tasks.brackets import balanced, is_balanced, rewritten
from tests.tasks.drawn import thousand


@pytest.mark.parametrize(
    ("brackets", "expected"),
    [("()", True), ("(()())()", True), ("", True), (")(", False), ("(()", False), ("())", False), ("())(()", False)],
)
def test_by_hand(brackets: str, expected: bool):
    assert is_balanced(brackets) == expected


def test_all_balanced_strings_of_three_pairs_turn_up():
    random = Draw(0)
    found = {balanced(random, 3) for _ in range(200)}
    assert found == {"()()()", "(())()", "()(())", "(()())", "((()))"}


def test_rewritten_strings_differ_at_two_places_at_most():
    random = Draw(1)
    for _ in range(200):
        good = balanced(random, 4)
        bad, first, second = rewritten(random, good)
        assert not is_balanced(bad) and first < second and good != bad
        assert all(good[i] == bad[i] for i in range(8) if i not in (first, second))


def test_prompts_hold_what_their_answers_say():
    pairs = thousand("brackets")
    for pair in pairs:
        for text, answers in ((pair.clean, pair.answers), (pair.corrupted, pair.wrong_answers)):
            assert answers == (" yes" if is_balanced(asked(text)) else " no",)
    assert Counter(pair.answers[0] for pair in pairs)[" yes"] == pytest.approx(500, abs=50)


def test_counting_is_not_enough():
    texts = [asked(text) for pair in thousand("brackets") for text in (pair.clean, pair.corrupted)]
    unbalanced = [text for text in texts if not is_balanced(text)]
    assert sum(text.count("(") == text.count(")") for text in unbalanced) > 100


def asked(prompt: str) -> str:
    """The brackets that a prompt asks about: those after its examples."""
    question = prompt.rpartition("no. ")[2] if prompt.endswith("balanced:") else prompt
    if "yes. " in question:
        question = question.rpartition("yes. ")[2]
    return "".join(character for character in question if character in "()")
