"""The order of a task's pairs: no clean prompt repeats while there are others, and the last pairs are found soon."""

from typing import Any

import pytest

import sparselens as sl
from sparselens.prompts.candidates import Candidates, every_pair
from sparselens.prompts.draw import Draw
from tests.tiny_models import tiny_tokenizer

WORDS = tuple(f"w{i}" for i in range(1, 9))


def draw(random: Draw, words: Any = WORDS, corruption: str = "") -> sl.PromptPair:
    """56 clean prompts, each with six others."""
    a, b, other = random.sample(WORDS, 3)
    return sl.pair("{A} {B}", {"A": a, "B": b}, {"A": other}, f" {b}", f" {a}")


TASK = sl.Task("two", "two words", draw, corruptions={"other": ("A",)})


def test_no_clean_prompt_comes_twice_before_all_have_come():
    with pytest.warns(UserWarning, match="'two' has 56 different clean prompts: 60 pairs repeat some of them"):
        pairs = TASK.pairs(60)
    assert len({pair.clean for pair in pairs[:56]}) == 56 and len({pair.key for pair in pairs}) == 60
    assert TASK.pairs(56) == pairs[:56] and TASK.pairs(9) == pairs[:9]


def test_clean_prompts_are_counted():
    assert TASK.count_prompts() == 56 and TASK.count_prompts(most=20) == 20


def test_a_clean_prompt_whose_pair_does_not_fit_gets_another_chance(tmp_path):
    def misfits(random: Draw, words: Any, corruption: str) -> sl.PromptPair:
        pair = draw(random)
        other = " zebra" if random.below(3) else ""  # unknown to the tokenizer: two thirds do not fit
        return sl.PromptPair(pair.clean, pair.corrupted + other, pair.answers, pair.wrong_answers)

    fitted = sl.Task("two", "", misfits, corruptions={"other": ()}).fitted(tiny_tokenizer(tmp_path))
    assert fitted.count_prompts() > 40  # 19 without


@pytest.mark.parametrize("n", [336, 1000])
def test_all_pairs_are_found_without_waiting_for_chance(n: int):
    calls = 0

    def rare(random: Draw) -> sl.PromptPair:
        """One of 100 numbers, in half of the draws; else one letter, 1 in 100 times another."""
        nonlocal calls
        calls += 1
        if random.flip():
            return sl.pair("{A}", {"A": str(random.below(n))}, {"A": "x"}, " 1", " 2")
        kind = "b" if random.below(50) == 0 and random.below(50) == 0 else "a"
        return sl.pair("{A}", {"A": kind}, {"A": "x"}, " 1", " 2")

    candidates, found = Candidates(rare, 0), list[sl.PromptPair]()
    while fresh := candidates.fresh(64) or (candidates.next_round({pair.clean for pair in found}) and [None]):
        found += [pair for pair in fresh if pair is not None]
    assert {pair.clean for pair in found} == {*map(str, range(n)), "a", "b"}
    assert len(found) == n + 2 and calls < 40 * n + 20_000


def test_every_series_of_choices_is_gone_through_once():
    pairs = every_pair(draw, 1000)
    assert pairs is not None and len(pairs) == len({pair.key for pair in pairs}) == 8 * 7 * 6
    assert every_pair(draw, 300) is None  # there are more


def test_a_draw_that_need_not_end_is_given_up():
    def endless(random: Draw) -> sl.PromptPair:
        while random.flip():
            pass
        return draw(random)

    assert every_pair(endless, 10**6) is None
