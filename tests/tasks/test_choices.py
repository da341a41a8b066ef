"""Tasks whose answer follows from the prompt (multiple choice, acronyms, successors), and the tables of tasks."""

import re
from collections import Counter

import pytest

from sparselens.tasks.fact_retrieval import facts
from sparselens.tasks.fact_table import FACTS
from sparselens.tasks.opposites import PAIRS
from sparselens.tasks.successor import ROUND, STRAIGHT, kinds
from tests.tasks.drawn import thousand


def test_the_letter_stands_before_what_was_told():
    for pair in thousand("multiple_choice"):
        for text, spans, letter in (
            (pair.clean, pair.positions, pair.answers[0]),
            (pair.corrupted, pair.corrupted_positions, None),
        ):
            told = text[slice(*spans["FACT"])]
            (right,) = re.findall(rf"\((\w)\) {told}\b", text)
            assert letter in (None, right) and (letter is not None or right in pair.wrong_answers)
        assert sorted(pair.answers + pair.wrong_answers) == list("ABCD")


def test_no_option_keeps_its_letter_when_they_turn():
    pairs = thousand("multiple_choice", "options")
    for pair in pairs:
        for letter in "ABCD":
            clean, other = pair.positions[letter], pair.corrupted_positions[letter]
            assert pair.clean[slice(*clean)] != pair.corrupted[slice(*other)]
    assert set(Counter(pair.answers[0] for pair in pairs)) == set("ABCD")


@pytest.mark.parametrize("corruption", ["third", "words"])
def test_acronyms_are_made_of_initials(corruption: str):
    for pair in thousand("acronyms", corruption):
        words = [pair.clean[slice(*pair.positions[name])] for name in ("FIRST", "SECOND", "THIRD")]
        assert pair.clean.endswith("(" + words[0][0] + words[1][0]) and pair.answers == (words[2][0],)
        other = pair.corrupted[slice(*pair.corrupted_positions["THIRD"])]
        assert pair.wrong_answers == (other[0],)


def test_runs_by_hand():
    runs = {kind: words.entries for kind, words in kinds().items()}
    assert ("Friday", "Saturday", "Sunday", "Monday") in runs["day"] and len(runs["day"]) == 7
    assert ("November", "December", "January", "February") in runs["month"] and len(runs["month"]) == 12
    assert runs["number"][0] == ("1", "2", "3", "4") and runs["number"][-1] == ("97", "98", "99", "100")
    assert runs["letter"][-1] == ("w", "x", "y", "z") and len(runs["letter"]) == 23


def test_sequences_are_complete():
    assert len(STRAIGHT["letter"].split()) == len(STRAIGHT["capital letter"].split()) == 26
    assert len(ROUND["day"].split()) == 7 and len(ROUND["month"].split()) == 12
    assert len(STRAIGHT["number word"].split()) == 21 and len(STRAIGHT["ordinal"].split()) == 10


def test_the_last_item_alone_changes():
    for pair in thousand("successor", "last"):
        clean, corrupted = re.findall(r"\w+", pair.clean), re.findall(r"\w+", pair.corrupted)
        (changed,) = [(a, b) for a, b in zip(clean, corrupted, strict=True) if a != b]
        assert changed[0] == pair.clean[slice(*pair.positions["THIRD"])]


def test_no_two_words_share_their_opposite():
    answers = Counter(opposite for _, opposite in PAIRS)
    assert answers.most_common(1)[0][1] == 1
    assert max(Counter(word for word, _ in PAIRS).values()) == 1


@pytest.mark.parametrize("kind", FACTS)
def test_no_two_subjects_share_their_fact(kind: str):
    templates, source, table = FACTS[kind]
    rows = facts(table)
    assert source and len(rows) >= 7 and all(subject and answer for subject, answer in rows)
    assert len({answer for _, answer in rows}) == len({subject for subject, _ in rows}) == len(rows)
    assert all(template.count("{SUBJECT}") == 1 for template in templates)
    assert not any("\n" in subject or "\n" in answer for subject, answer in rows)
