"""The strings and labels of the addition task, checked against the paper's Fig. 1 and sums computed by hand."""

from collections import Counter

import pytest

import sparselens as sl
from sparselens.tasks import TASKS
from sparselens.tasks.addition import ALPHABET, KINDS, Addition, addition_task, ids, text
from tests.tasks.drawn import thousand


def test_the_figures_instance():
    task = Addition()
    assert task.prompt(53, 21) == "53+21=?????"
    assert task.full(53, 21) == "53+21=00074"
    assert task.answer_positions == (6, 7, 8, 9, 10)
    assert task.length == len(task.prompt(53, 21)) == 11


def test_causal_prompts_predict_the_next_character():
    task = Addition(causal=True)
    assert task.prompt(53, 21) == "53+21=0007"
    assert task.answer_positions == (5, 6, 7, 8, 9)
    for place, character in zip(task.answer_positions, task.answer(53, 21), strict=True):
        assert task.full(53, 21)[place + 1] == character


@pytest.mark.parametrize("digits", [1, 2, 3])
@pytest.mark.parametrize("causal", [False, True])
def test_every_number_of_digits(digits: int, causal: bool):
    task = Addition(digits, causal)
    largest = 10**digits - 1
    assert int(task.answer(largest, largest)) == 2 * largest
    assert len(task.answer(0, 0)) == task.answer_width == 2 * digits + 1
    assert len(task.prompt(0, largest)) == task.answer_positions[-1] + 1
    assert task.full(1, 2).endswith("3") and len(task.full(1, 2)) == task.length


def test_all_problems_in_order():
    problems = Addition().problems()
    assert len(problems) == len(set(problems)) == 10_000
    assert problems[:2] == [(0, 0), (0, 1)] and problems[-1] == (99, 99)


def test_samples_are_the_same_everywhere_and_share_a_prefix():
    task = Addition()
    assert task.sample(4, seed=0) == [(84, 75), (42, 25), (51, 40), (78, 30)]
    assert task.sample(100, seed=3)[:10] == task.sample(10, seed=3) != task.sample(10, seed=4)
    assert set(Addition(1).sample(2000)) == set(Addition(1).problems())


@pytest.mark.parametrize(
    ("a", "b", "carries", "arrows", "kind"),
    [
        (53, 21, (False, False), (), "no carry"),
        (47, 25, (True, False), ((10, 9),), "one carry"),
        (61, 72, (False, True), ((9, 8),), "one carry"),
        (57, 68, (True, True), ((10, 9), (9, 8)), "propagated carry"),
        (55, 45, (True, True), ((10, 9), (9, 8)), "propagated carry"),
    ],
)
def test_carries(a: int, b: int, carries: tuple[bool, ...], arrows: tuple[tuple[int, int], ...], kind: str):
    task = Addition()
    assert task.carries(a, b) == carries
    assert task.carry_arrows(a, b) == arrows
    assert task.kind(a, b) == kind
    assert Addition(causal=True).carry_arrows(a, b) == tuple((i - 1, j - 1) for i, j in arrows)


def test_carries_agree_with_the_sum_of_digits():
    # every carry turns a ten into a one, so the digit sum falls by nine
    def digit_sum(n: int) -> int:
        return sum(int(digit) for digit in str(n))

    task = Addition()
    for a, b in task.problems():
        assert digit_sum(a) + digit_sum(b) - digit_sum(a + b) == 9 * sum(task.carries(a, b))


def test_kinds_of_three_digits():
    task = Addition(3)
    assert task.kind(506, 507) == "separate carries"
    assert task.kind(199, 901) == "propagated carry"
    assert set(Counter(task.kind(a, b) for a, b in task.sample(500))) == set(KINDS)


def test_ids_and_back():
    assert ids("53+21=?") == [5, 3, 10, 2, 1, 11, 12]
    assert text(ids(ALPHABET)) == ALPHABET


@pytest.mark.parametrize("call", [lambda: Addition(0), lambda: Addition().prompt(100, 1), lambda: ids("5-3")])
def test_mistakes_name_the_value(call):
    with pytest.raises(ValueError, match=r"0|100|'-'"):
        call()


def test_pairs_ask_for_the_digit_that_the_change_decides():
    for pair in thousand("addition"):
        a, b, other = int(pair.clean[:2]), int(pair.clean[3:5]), int(pair.corrupted[:2])
        assert pair.positions["END"] == (9, 10) and pair.clean.endswith("=?????")
        assert (*pair.answers, *pair.wrong_answers) == (str((a + b) // 10 % 10), str((other + b) // 10 % 10))
        assert a // 10 == other // 10 and (a % 10 + b % 10 >= 10) != (other % 10 + b % 10 >= 10)
    for pair in thousand("addition_causal", "units"):
        a, b = int(pair.clean[:2]), int(pair.clean[3:5])
        assert pair.clean == f"{a:02}+{b:02}={a + b:05}"[:-1] and pair.answers[0] == str(a + b)[-1]
        assert pair.clean[2:] == pair.corrupted[2:]


def test_more_digits_and_fewer():
    assert addition_task(Addition(1)).pairs(20)
    assert set(addition_task(Addition(3)).pairs(1)[0].positions) == {"A2", "A1", "A0", "B2", "B1", "B0", "S1", "END"}


def test_the_shipped_models_do_it():
    for model in ("addition", "addition-sparse"):
        found = sl.evaluate(sl.load(model), TASKS["addition"], 300, progress=False)
        assert found.accuracy.mean == 1.0 and found.chance == 0.5 and found.metric.low > 3
