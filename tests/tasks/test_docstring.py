"""The docstring task: the arguments at their places, and what the corruptions leave unchanged."""

import re

from sparselens.tasks.docstring import docstring


def test_the_third_argument_is_right_after_two_in_order():
    for pair in docstring.pairs(50):
        head = pair.clean.partition("(self, ")[2].partition("):")[0].split(", ")
        described = re.findall(r"[:@]param (\w+):", pair.clean)
        assert described == head[:2]
        assert pair.answers == (f" {head[2]}",)
        assert set(pair.wrong_answers) == {f" {head[i]}" for i in (0, 1, 3)}


def test_no_new_name_stands_in_the_clean_prompt():
    for corruption, names in docstring.corruptions.items():
        for pair in docstring.pairs(50, corruption=corruption):
            new = {pair.corrupted[slice(*pair.corrupted_positions[name])] for name in names}
            old = {pair.clean[slice(*pair.positions[f"{letter}_DEF"])] for letter in "ABCD"}
            assert len(new) == len(names)
            assert not new & old


def test_the_clean_prompts_are_the_same_under_both_corruptions():
    one, other = ([p.clean for p in docstring.pairs(20, corruption=name)] for name in docstring.corruptions)
    assert one == other
