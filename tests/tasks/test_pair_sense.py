"""What the pairs of single tasks mean: the answer is right, the wrong one wrong, and every template appears."""

import importlib
import re

import pytest

from sparselens.tasks.colored_objects import colored_objects
from sparselens.tasks.greater_than import greater_than
from sparselens.tasks.subject_verb_agreement import NOUNS, VERBS, subject_verb_agreement
from tests.tasks.drawn import thousand

TEMPLATES = {
    "greater_than": "greater_than.TEMPLATES",
    "docstring": "docstring.TEMPLATES",
    "gendered_pronoun": "gendered_pronoun.TEMPLATES",
    "subject_verb_agreement": "subject_verb_agreement.STARTS",
    "subject_verb_agreement_stories": "subject_verb_agreement.STORY_STARTS",
    "induction_text": "induction.TEXTS",
    "colored_objects": "colored_objects.TEMPLATES",
    "country_capital": "country_capital.TEMPLATES",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_appears(name: str):
    module, _, attribute = TEMPLATES[name].partition(".")
    prompts = "\n\n".join(pair.clean for pair in thousand(name))
    for template in getattr(importlib.import_module(f"sparselens.tasks.{module}"), attribute):
        words = r"[\w ]+?".join(map(re.escape, re.split(r"{\w+}", template)))
        assert re.search(words, prompts), template


def test_years_are_sorted_into_later_and_not_later():
    for pair in greater_than.pairs(100):
        start = int(pair.clean[slice(*pair.positions["YY"])])
        assert [int(year) for year in pair.answers] == list(range(start + 1, 100))
        assert [int(year) for year in pair.wrong_answers] == list(range(1, start + 1))
        assert pair.corrupted[slice(*pair.corrupted_positions["YY"])] == "01"


def test_the_color_stands_before_the_thing():
    for corruption in colored_objects.corruptions:
        for pair in colored_objects.pairs(100, corruption=corruption):
            asked = pair.clean[slice(*pair.positions["ASKED"])]
            assert f"{pair.answers[0]} {asked}" in pair.clean
            asked = pair.corrupted[slice(*pair.corrupted_positions["ASKED"])]
            assert f"{pair.answers[0]} {asked}" not in pair.corrupted


def test_every_place_in_the_row_is_asked_for():
    places = {
        sorted(("OBJECT", "OBJECT2", "OBJECT3"), key=lambda name: pair.positions[name]).index("OBJECT")
        for pair in colored_objects.pairs(50)
    }
    assert places == {0, 1, 2}


def test_subject_and_verb_agree():
    plurals = {plural for _, plural in NOUNS}
    for pair in subject_verb_agreement.pairs(200):
        plural = pair.clean[slice(*pair.positions["SUBJECT"])] in plurals
        forms = (pair.answers[0].strip(), pair.wrong_answers[0].strip())
        assert (forms[::-1] if plural else forms) in VERBS
        assert plural is not (pair.corrupted[slice(*pair.corrupted_positions["SUBJECT"])] in plurals)
