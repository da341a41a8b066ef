"""Intervals hold the truth as often as they say, also of shares near one and of prompts that repeat.

What is recommended: `proportion_interval` for shares, `mean_interval` for means, both by clusters, and for other
statistics `bootstrap_interval`. Each simulation draws prompts from a population whose truth is known.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

import sparselens as sl
from sparselens.prompts.intervals import (
    Interval,
    bootstrap_interval,
    mean_interval,
    proportion_interval,
    ratio_interval,
)
from tests.sparselens.prompts.test_candidates import TASK

LOW, HIGH = 0.93, 0.97


def held(found: Interval, truth: float) -> bool:
    return found.low <= truth <= found.high


def coverage(times: int, draw: Callable[[np.random.Generator], tuple[Interval, float]]) -> float:
    generator = np.random.default_rng(0)
    return float(np.mean([held(*draw(generator)) for _ in range(times)]))


@pytest.mark.parametrize(("n", "share"), [(20, 0.98), (100, 0.9), (60, 0.5), (200, 0.97)])
def test_shares(n: int, share: float):
    exact = sum(
        math.comb(n, right) * share**right * (1 - share) ** (n - right)
        for right in range(n + 1)
        if held(proportion_interval([1.0] * right + [0.0] * (n - right)), share)
    )
    assert LOW <= exact <= HIGH


@pytest.mark.parametrize(
    ("groups", "a_group", "share", "alike"), [(60, 4, 0.9, 0.3), (14, 20, 0.7, 0.2), (30, 5, 0.8, 1)]
)
def test_shares_of_prompts_in_clusters(groups: int, a_group: int, share: float, alike: float):
    """Beta-binomial, with an intracluster correlation of `alike`; as hypernymy, whose prompts have few answers."""

    def draw(generator: np.random.Generator) -> tuple[list[float], list[int]]:
        labels = generator.integers(groups, size=groups * a_group)
        own = generator.random(groups) < share
        if alike < 1:
            scale = (1 - alike) / alike
            own = generator.beta(share * scale, (1 - share) * scale, size=groups)
        return (generator.random(len(labels)) < own[labels]).astype(float).tolist(), labels.tolist()

    def clustered(generator: np.random.Generator) -> tuple[Interval, float]:
        right, labels = draw(generator)
        return proportion_interval(right, clusters=labels), share

    def by_prompt(generator: np.random.Generator) -> tuple[Interval, float]:
        return proportion_interval(draw(generator)[0]), share

    assert LOW <= coverage(1500, clustered) <= HIGH
    assert coverage(300, by_prompt) < 0.85  # what repeated prompts do to an interval that does not know of them


@pytest.mark.parametrize(("name", "n"), [("normal", 20), ("exponential", 20), ("exponential", 60)])
def test_means(name: str, n: int):
    """The percentile bootstrap covers 0.92, 0.90 and 0.93."""

    def draw(generator: np.random.Generator) -> tuple[Interval, float]:
        return mean_interval(getattr(generator, name)(size=n).tolist()), float(name == "exponential")

    assert LOW <= coverage(600, draw) <= HIGH


@pytest.mark.parametrize("n", [2, 3])
def test_means_of_two_or_three_prompts(n: int):
    """Student's t. Resamples span no more than the values do, and hold the mean of two 50 times in a hundred."""

    def draw(generator: np.random.Generator) -> tuple[Interval, float]:
        found = mean_interval(generator.normal(size=n).tolist())
        assert found.caution.startswith(f"{n} prompts: the interval may be too narrow")
        return found, 0.0

    assert LOW <= coverage(400, draw) <= HIGH


@pytest.mark.parametrize("n", [30, 60])
def test_ratios_of_means(n: int):
    """Of edges that prompts need in two models, say: skewed, and larger together."""

    def draw(generator: np.random.Generator) -> tuple[Interval, float]:
        below = generator.exponential(size=n) + 1
        return ratio_interval((3 * below + generator.exponential(size=n)).tolist(), below.tolist()), 3.5

    assert LOW <= coverage(1000, draw) <= HIGH


@pytest.mark.parametrize(("name", "truth"), [("normal", 0.0), ("exponential", math.log(2))])
def test_other_statistics(name: str, truth: float):
    """The median, as a function of weights."""

    def draw(generator: np.random.Generator) -> tuple[Interval, float]:
        values = np.sort(getattr(generator, name)(size=61))

        def median(weights: np.ndarray) -> np.ndarray:
            return values[(weights.cumsum(1) >= 0.5 - 1e-9).argmax(1)]

        return bootstrap_interval(median, 61, resamples=600), truth

    assert LOW <= coverage(300, draw) <= HIGH


def test_means_of_prompts_in_clusters():
    """Of exponential cluster means, 40 of them, 0.925 is covered, 0.76 if prompts are taken for independent."""

    def draw(generator: np.random.Generator) -> tuple[Interval, float]:
        labels, own = generator.integers(60, size=180), generator.normal(size=60)
        return mean_interval((own[labels] + generator.normal(size=180)).tolist(), clusters=labels.tolist()), 0.0

    assert LOW <= coverage(600, draw) <= HIGH


def test_strongly_skewed_values_of_few_prompts_come_with_a_caution():
    """A lognormal at 20 values is covered 0.91 times here and 0.84 by the percentile interval."""
    generator = np.random.default_rng(0)
    few = [mean_interval(generator.lognormal(size=20).tolist()) for _ in range(50)]
    assert sum("use at least 30" in found.caution for found in few) > 25
    assert not mean_interval(generator.normal(size=20).tolist()).caution
    assert not mean_interval(generator.lognormal(size=40).tolist()).caution
    assert "same value" in mean_interval([2.0] * 20).caution and not mean_interval([2.0] * 30).caution
    assert all(mean_interval([0.0] * n + [9.0]).caution for n in range(1, 29))  # a skew that few values cannot show


# -- by hand


def test_wilson_by_hand():
    found = proportion_interval([1.0] * 20)  # 1 / (1 + z^2 / 20), z = 1.96
    assert (found.mean, found.high) == (1.0, 1.0) and found.low == pytest.approx(1 / (1 + 1.959964**2 / 20))
    none = proportion_interval(torch.zeros(20))
    assert (none.low, none.high) == (0.0, pytest.approx(1 - found.low))
    half = proportion_interval([0.0, 1.0] * 10)
    assert half.low == pytest.approx(0.29929, abs=1e-4) and half.high == pytest.approx(0.70071, abs=1e-4)


def test_clusters_of_one_prompt_change_nothing():
    right = [0.0, 1.0, 1.0, 1.0, 0.0, 1.0] * 5
    plain, clustered = proportion_interval(right), proportion_interval(right, clusters=range(30))
    assert (plain.low, plain.high, plain.distinct) == (clustered.low, clustered.high, 30)
    assert mean_interval(right) == mean_interval(right, clusters=[f"prompt {i}" for i in range(30)])


def test_a_prompt_that_is_asked_again_adds_nothing():
    right = [0.0, 1.0, 1.0, 1.0, 0.0, 1.0] * 5
    labels = list(range(30))
    once, again = (proportion_interval(right * times, clusters=labels * times) for times in (1, 7))
    assert (again.low, again.high) == (pytest.approx(once.low, abs=0.01), pytest.approx(once.high, abs=0.01))
    assert (again.n, again.distinct) == (210, 30)
    all_right = proportion_interval([1.0] * 70, clusters=list(range(10)) * 7)
    assert all_right.low == pytest.approx(proportion_interval([1.0] * 10).low, abs=0.08) and all_right.low < 0.75
    mean, mean_again = mean_interval(right), mean_interval(right * 7, clusters=labels * 7)
    assert mean_again.standard_error == pytest.approx(mean.standard_error)


def test_a_single_cluster_says_nothing():
    for found in (proportion_interval([1.0, 0.0], clusters="aa"), mean_interval([1.0, 2.0], clusters="aa")):
        assert np.isnan([found.low, found.high]).all()


def test_any_statistic_by_clusters():
    values = np.random.default_rng(0).normal(size=40)
    twice = np.repeat(values, 2)
    labels = [i // 2 for i in range(80)]
    once, again = (
        bootstrap_interval(lambda weights, v=v: weights @ v, len(v), clusters=c)
        for v, c in ((values, None), (twice, labels))
    )
    assert (again.low, again.high) == (pytest.approx(once.low, abs=0.02), pytest.approx(once.high, abs=0.02))
    loose = bootstrap_interval(lambda weights: weights @ twice, 80)
    assert loose.high - loose.low < 0.8 * (again.high - again.low)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: proportion_interval([0.5, 1.0]), r"values 0 and 1, not 0\.5"),
        (lambda: mean_interval([1.0, 2.0], clusters="abc"), "3 clusters for 2 values"),
        (lambda: proportion_interval([1.0], level=2.0), "level must be between 0 and 1, not 2"),
    ],
)
def test_mistakes_name_the_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -- pairs


def test_pairs_know_which_of_them_ask_the_same(tmp_path):
    from tests.tiny_models import tiny_tokenizer

    with pytest.warns(UserWarning, match="56 different clean prompts with this tokenizer"):
        tokens = TASK.tokenize(tiny_tokenizer(tmp_path), 100)
    assert len(set(tokens.clusters())) == 56 and len(set(tokens.clusters("answer"))) == 8
    for label, pair in zip(tokens.clusters(), tokens.prompts, strict=True):
        assert label == tuple(int(word[1:]) for word in pair.clean.split())
    with pytest.raises(ValueError, match="cannot cluster by 'word': want prompt or answer"):
        tokens.clusters("word")


def test_what_a_model_can_do_is_told_by_clusters():
    right = torch.tensor([True, True, False, True] * 5)
    tokens = torch.arange(4).repeat(5)[:, None]
    pairs = sl.TokenizedPairs(tokens, tokens + 4, torch.ones(20, dtype=torch.long), torch.zeros(20, dtype=torch.long))
    by_prompt, by_answer = (
        sl.Capability("t", "rank", pairs, right, right.double(), 0.5, by) for by in ("prompt", "answer")
    )
    assert by_prompt.distinct_prompts == by_prompt.accuracy.distinct == 4 and by_answer.accuracy.distinct == 1
    assert by_prompt.accuracy.high - by_prompt.accuracy.low > 0.6 and np.isnan(by_answer.accuracy.low)
