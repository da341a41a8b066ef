"""Tests of plots side by side: a common colour scale and axis, and each figure's own labels."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from sparselens.analyses import direct_logit_attribution, logit_lens, patch_heads, side_by_side
from sparselens.analyses.attribution.nodes import NodeScores
from tests.analyses.small_models import tiny_pairs
from tests.tiny_models import tiny_bridge

QUIET: dict[str, Any] = {"progress": False}


def scores(size: float, nodes: tuple[str, ...] = ("a0.h0", "a0.h1", "m0")) -> NodeScores:
    values = size * torch.tensor([1.0, -2.0, 0.5])
    return NodeScores(nodes, values, values[None], torch.ones(1), None)


def test_heat_maps_have_one_colour_scale():
    both = side_by_side({"dense": scores(1), "sparse": scores(3)})
    assert [(trace.zmin, trace.zmax) for trace in both.data] == [(-6, 6)] * 2
    assert [trace.showscale for trace in both.data] == [False, True]
    assert both.data[1].z.tolist() == [[3, -6, 1.5]] and list(both.data[1].x) == ["h0", "h1", "MLP"]
    assert [note.text for note in both.layout.annotations] == ["dense", "sparse"]
    assert both.layout.title.text == "Nodes"
    assert (both.layout.yaxis.scaleanchor, both.layout.yaxis2.scaleanchor) == ("x", "x2")


def test_titles_that_differ_stand_above_each():
    both = side_by_side({"dense": scores(1, ("input", "a0.h1", "m0")), "<b>": scores(3, ("input", "a0.h1", "m0"))})
    assert [note.text for note in both.layout.annotations] == ["dense: Nodes; input +1", "&lt;b&gt;: Nodes; input +3"]


def test_curves_have_one_axis_and_their_own_place():
    model, pairs = tiny_bridge("gpt2"), tiny_pairs()
    lens = logit_lens(model, pairs, **QUIET)
    both = side_by_side({"one": lens, "two": lens, "three": lens})
    places = [both.layout[f"xaxis{number}"].domain for number in ("", 2, 3)]
    assert all(before[1] < after[0] for before, after in pairwise(places))
    assert both.layout.yaxis2.matches == "y"


@pytest.mark.parametrize("count", [0, 1])
def test_one_result_is_not_beside_another(count: int):
    with pytest.raises(ValueError, match="want two or more of one type"):
        side_by_side({"one": scores(1)} if count else {})


def test_other_kinds_are_refused():
    model, pairs = tiny_bridge("gpt2"), tiny_pairs()
    with pytest.raises(ValueError, match="2 results of types NodeScores, PatchingResult: want"):
        side_by_side({"a": direct_logit_attribution(model, pairs, **QUIET), "b": patch_heads(model, pairs, **QUIET)})
    with pytest.raises(ValueError, match=r"a TokenizedPairs has no plot\(\)"):
        side_by_side({"a": pairs, "b": pairs})
