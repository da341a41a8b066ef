"""Balanced and unbalanced brackets, classified by hand, and the two classes of the task."""

from collections import Counter

import pytest

from sparselens.prompts.draw import Draw
from sparselens.tasks.brackets import balanced, exchanged, is_balanced, rewritten
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


@pytest.mark.parametrize("counts", [True, False])
def test_rewritten_strings_differ_at_two_places_at_most(counts: bool):
    random = Draw(1)
    for _ in range(200):
        good = balanced(random, 4)
        found = rewritten(random, good, counts)
        if found is None:
            assert not counts and not exchanged(good)
            continue
        bad, first, second = found
        assert not is_balanced(bad) and first < second and good != bad
        assert all(good[i] == bad[i] for i in range(8) if i not in (first, second))
        assert (bad.count("(") != 4) == counts


def test_exchanges_by_hand():
    assert exchanged("((()))") == []  # stays balanced whatever is swapped inside
    assert exchanged("()()()") == [(2, 3)]  # ())(() closes before it opens
    assert exchanged("(())()") == [(1, 3)]  # ())(() again


def test_prompts_hold_what_their_answers_say():
    pairs = thousand("brackets")
    for pair in pairs:
        for text, answers in ((pair.clean, pair.answers), (pair.corrupted, pair.wrong_answers)):
            assert answers == (" yes" if is_balanced(asked(text)) else " no",)
    assert Counter(pair.answers[0] for pair in pairs)[" yes"] == pytest.approx(500, abs=50)


def test_counting_solves_half_of_those_that_are_not_balanced():
    texts = [asked(pair.clean) for pair in thousand("brackets") if pair.answers == (" no",)]
    alike = sum(text.count("(") == text.count(")") for text in texts)
    assert alike / len(texts) == pytest.approx(0.5, abs=0.06)
    assert all(text[0] == "(" and text[-1] == ")" for text in texts if text.count("(") == text.count(")"))


def asked(prompt: str) -> str:
    """The brackets in question in a prompt: those after its examples."""
    question = prompt.rpartition("no. ")[2] if prompt.endswith("balanced:") else prompt
    if "yes. " in question:
        question = question.rpartition("yes. ")[2]
    return "".join(character for character in question if character in "()")
