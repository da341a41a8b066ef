"""Indirect object identification: both orders, every template, and a real model that does it."""

import re
from pathlib import Path

import pytest

import sparselens as sl
from sparselens.tasks import TASKS
from sparselens.tasks.ioi import ABBA, STORIES, swapped
from tests.tasks.drawn import thousand


@pytest.mark.parametrize(("name", "templates"), [("ioi", ABBA), ("ioi_stories", STORIES)])
def test_every_template_appears_in_both_orders(name: str, templates: tuple[str, ...]):
    prompts = [pair.clean for pair in thousand(name)]
    assert len(set(ABBA)) == 15
    for template in (*templates, *map(swapped, templates)):
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\w+)", re.escape(template))
        found = [match for match in (re.fullmatch(pattern, prompt) for prompt in prompts) if match]
        assert any(match["S1"] == match["S2"] != match["IO"] for match in found), template


@pytest.mark.parametrize("name", ["ioi", "ioi_stories"])
def test_every_name_follows_a_space_as_in_the_answer(name: str):
    for pair in thousand(name):
        starts = [pair.positions[slot][0] for slot in ("IO", "S1", "S2")]
        assert all(pair.clean[start - 1 : start] == " " for start in starts), pair.clean


@pytest.mark.parametrize(
    ("corruption", "kept"), [("abc", {"IO", "S1"}), ("s2_io", {"IO", "S1"}), ("random_names", set())]
)
def test_corruptions(corruption: str, kept: set[str]):
    for pair, plain in zip(TASKS["ioi"].pairs(200, 1, corruption), TASKS["ioi"].pairs(200, 1), strict=True):
        names = {name: pair.clean[slice(*pair.positions[name])] for name in ("IO", "S1", "S2")}
        others = {name: pair.corrupted[slice(*pair.corrupted_positions[name])] for name in ("IO", "S1", "S2")}
        assert {name for name in names if names[name] == others[name]} == kept
        assert (others["S2"] == names["IO"]) == (corruption == "s2_io")
        assert pair.answers == (f" {names['IO']}",) and pair.clean == plain.clean


@pytest.mark.slow
def test_a_small_language_model_does_it_in_both_orders(shared_data: Path):
    found = sl.evaluate(sl.load(shared_data / "models/stories3m"), TASKS["ioi_stories"], 1000, progress=False)
    assert found.accuracy.low > 0.9 and found.metric.low > 4
    positions = found.pairs.positions
    io_first = positions["IO"] < positions["S1"]
    for order in (io_first, ~io_first):
        assert order.sum() > 400 and found.correct[order].double().mean() > 0.9
