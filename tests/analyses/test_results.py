"""Every result of an analysis shows itself: a line, a small table, a tidy frame, a plot, parts by their names."""

import json
import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import pytest
import torch

import sparselens as sl
from sparselens import analyses
from sparselens.prompts.intervals import Interval
from sparselens.tasks import TASKS

QUIET: dict[str, Any] = {"progress": False}


class Addition:
    """What several tests look at; made when first asked for, since every process of the suite imports this file."""

    @cached_property
    def model(self) -> Any:
        return sl.load("addition-sparse")  # 4 layers of 2 heads, 11 positions

    @cached_property
    def pairs(self) -> sl.TokenizedPairs:
        return TASKS["addition"].tokenize(self.model.tokenizer, 12)

    @cached_property
    def scores(self) -> Any:
        return analyses.attribute_edges(self.model, self.pairs, **QUIET)

    @cached_property
    def heads(self) -> Any:
        return analyses.patch_heads(self.model, self.pairs, **QUIET)

    @cached_property
    def by_position(self) -> Any:
        return analyses.patch_heads(self.model, self.pairs, by_position=True, **QUIET)

    @cached_property
    def attention(self) -> Any:
        return analyses.attribute_attention_edges(self.model, self.pairs, **QUIET)


addition = Addition()

MADE: dict[str, Callable[[], Any]] = {  # with what its line says
    "eap-ig scores of 175 edges, 12 prompts: metric ": lambda: addition.scores,
    "13 nodes, 12 prompts: largest ": lambda: analyses.attribute_nodes(addition.model, addition.pairs, **QUIET),
    "6 attention edges with a score, 4 layers of 2 heads, 11 positions, 12 prompts": lambda: addition.attention,
    "heads, corrupted into clean, 12 prompts: metric ": lambda: addition.heads,
    "heads, corrupted into clean, 12 prompts: metric": lambda: addition.by_position,
    "mlps, corrupted into clean, 12 prompts": lambda: analyses.patch_activations(
        addition.model, addition.pairs, site="mlps", **QUIET
    ),
    "residual, corrupted into clean, 12 prompts": lambda: analyses.patch_activations(
        addition.model, addition.pairs, site="residual", by_position=True, **QUIET
    ),
    "attention_edges, zero into clean, 2 prompts": lambda: analyses.patch_activations(
        addition.model, addition.pairs[:2], site="attention_edges", ablation="zero", **QUIET
    ),
    "12 prompts, ": lambda: analyses.keep_top(addition.model, addition.pairs, [addition.heads], **QUIET),
    "1 [1, 1], 12 prompts: metric ": lambda: analyses.faithfulness(
        addition.model, addition.scores.top(175), addition.pairs, **QUIET
    ),
    "2 circuits of up to 175 of 175 edges: CPR ": lambda: analyses.faithfulness_curve(
        addition.model, addition.pairs, addition.scores, sizes=(0, 175), **QUIET
    ),
    "90% of |score|, 12 prompts: ": lambda: addition.scores.stability(),
    "12 prompts, 175 edges: ": lambda: analyses.share_curves(addition.scores),
    "a1.h0 at '?' (9) reads '?' (8) in 12 prompts: mean score ": lambda: analyses.explain_edge(
        addition.model, addition.pairs, "a1.h0", 9, 8
    ),
    "2 circuits of ": lambda: analyses.robustness(
        addition.model, {"one": addition.pairs[:6], "other": addition.pairs[6:]}, **QUIET
    ),
    "1 of 8 heads have a label: a1.h0 previous token 0.76": lambda: analyses.label_heads(addition.model),
    "12 prompts: ": lambda: analyses.dependency_cone(addition.model, addition.pairs),
    "dense: loss ": lambda: analyses.measure_loss(addition.model, addition.pairs, name="dense"),
    "logit_difference of 9 streams, 12 prompts: ": lambda: analyses.logit_lens(addition.model, addition.pairs, **QUIET),
    "logit_difference of 9 streams at 11 positions, ": lambda: analyses.logit_lens(
        addition.model, addition.pairs, by_position=True, **QUIET
    ),
    "probability of the likeliest token of 9 streams at 11 positions, ": lambda: analyses.logit_lens(
        addition.model, addition.pairs.clean
    ),
    "14 direct effects, 12 prompts: largest ": lambda: analyses.direct_logit_attribution(
        addition.model, addition.pairs, **QUIET
    ),
    "10 paths to a3.h0<q>, 12 prompts: largest ": lambda: analyses.patch_paths(
        addition.model, addition.pairs, "a3.h0<q>", **QUIET
    ),
    "12 prompts, 14 links: no roles": lambda: analyses.head_roles(addition.model, addition.pairs, **QUIET),
}


@pytest.mark.parametrize("line", MADE)
def test_a_result_is_a_line_a_table_a_frame_and_a_plot(line: str):
    result = MADE[line]()
    assert repr(result).startswith(f"{type(result).__name__}({line}") and len(repr(result)) < 200
    rows = len(result.to_frame())
    assert rows and result._repr_html_().count("<tr") == 1 + min(rows, 10)
    assert json.loads(result.plot().to_json())["data"]
    both = analyses.side_by_side({"one": result, "other": result})
    traces = [trace for trace in both.data if trace.xaxis != "x"]
    assert 2 * len(traces) == len(both.data) and {trace.xaxis for trace in traces} == {"x2"}


ASKED: dict[str, Callable[[Any, sl.TokenizedPairs], Interval]] = {
    "faithfulness": lambda model, pairs: analyses.faithfulness(
        model, addition.scores.top(8), pairs, **QUIET
    ).interval(),
    "minimality": lambda model, pairs: next(
        iter(analyses.minimality(model, addition.scores.top(2), pairs, **QUIET).values())
    ),
    "edges": lambda model, pairs: analyses.attribute_edges(model, pairs, **QUIET).interval("m2->m3"),
    "one edge": lambda model, pairs: analyses.patch_edges(model, pairs, edges=["m2->m3"], **QUIET).interval("m2->m3"),
    "stability": lambda model, pairs: analyses.attribute_edges(model, pairs, **QUIET).stability().size_interval(),
    "nodes": lambda model, pairs: analyses.attribute_nodes(model, pairs, **QUIET).interval("m2"),
    "direct": lambda model, pairs: analyses.direct_logit_attribution(model, pairs, **QUIET).interval("m2"),
    "paths": lambda model, pairs: analyses.patch_paths(model, pairs, "a3.h0<q>", **QUIET).interval("m2"),
    "lens": lambda model, pairs: analyses.logit_lens(model, pairs, **QUIET).interval("2_mid"),
    "patching": lambda model, pairs: analyses.patch_heads(model, pairs, **QUIET).normalised_interval(0, 1),
    "top": lambda model, pairs: analyses.keep_top(
        model, pairs, [analyses.patch_heads(model, pairs, **QUIET)], counts=[2], **QUIET
    ).interval(2),
    "loss": lambda model, pairs: analyses.measure_loss(model, pairs).interval(),
    "attention edges": lambda model, pairs: analyses.attention_edge_curve(
        model, pairs, analyses.attribute_attention_edges(model, pairs, **QUIET), sizes=[4], **QUIET
    )[4].interval(),
}


@pytest.mark.parametrize("what", ASKED)
def test_a_prompt_that_is_asked_three_times_is_one_observation(what: str):
    again = addition.pairs[[row for row in range(4) for _ in range(3)]]
    found, once = (ASKED[what](addition.model, pairs) for pairs in (again, addition.pairs[:4]))
    assert (found.n, found.distinct, once.distinct) == (12, 4, 4)
    assert found.mean == pytest.approx(once.mean, rel=1e-4, abs=1e-5)
    assert found.standard_error == pytest.approx(once.standard_error, rel=1e-3, abs=1e-5)


def test_the_overlap_of_two_prompts_is_of_different_ones():
    again = addition.scores.of_prompts(torch.tensor([0, 0, 0, 1, 1, 1]))
    once = addition.scores.of_prompts(torch.tensor([0, 1])).stability()
    assert again.stability().mean_overlap == pytest.approx(once.mean_overlap)
    assert math.isnan(addition.scores.of_prompts(torch.tensor([2, 2])).stability().mean_overlap)  # there is but one


def test_noise_outside_the_cone_of_a_repeated_prompt_is_told_by_prompts():
    outside = analyses.dependency_cone(addition.model, addition.pairs[[0, 0, 0, 1, 1]]).outside
    assert outside is not None and (outside.surviving.n, outside.surviving.distinct) == (5, 2)


def test_attention_edges_are_a_frame():
    edges = analyses.attention_edges(addition.model, addition.pairs)
    assert (
        repr(edges)
        == f"AttentionEdges({len(edges):,} attention edges on 12 prompts, 4 layers of 2 heads, 11 positions)"
    )
    assert edges.to_frame()["weight"].sum() == pytest.approx(edges.weight.sum())


def test_parts_are_found_by_their_names():
    edge = addition.scores.top(1).edges[0]
    assert (
        addition.scores[edge]
        == addition.scores[tuple(edge.split("->"))]
        == float(addition.scores.mean.flatten()[addition.scores.mean.abs().argmax()])
    )
    nodes = analyses.attribute_nodes(addition.model, addition.pairs, **QUIET)
    assert nodes.interval("a1.h0").mean == pytest.approx(nodes["a1.h0"], rel=1e-5)
    assert addition.heads["a1.h0"] == addition.heads.effects.mean(0)[1, 0]
    assert torch.allclose(addition.by_position["a1.h1"], addition.by_position.effects.mean(0)[1, :, 1])
    assert torch.equal(addition.attention["a0.h1"], addition.attention.mean[0, 1])
    mlps = analyses.patch_activations(addition.model, addition.pairs[:2], site="mlps", **QUIET)
    assert mlps["m3"] == mlps.effects.mean(0)[3]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda: addition.scores["a0.h1->a0.h0<q>"], "reads before"),
        (lambda: addition.heads["a4.h0"], r"no such head: 'a4\.h0' \(want a0\.h0 to a3\.h1\)"),
        (lambda: addition.heads["m0"], "no such head: 'm0'"),
        (lambda: addition.heads["a1h0"], r"no such head: 'a1h0', did you mean 'a1\.h0'"),
        (lambda: addition.scores["a0h1->m2"], r"no such source: 'a0h1', did you mean 'a0\.h1'"),
        (lambda: addition.scores["a0.h1->a2.h0q"], r"'a2\.h0q', did you mean 'a2\.h0<q>'"),
        (
            lambda: analyses.head_roles(addition.model, addition.pairs[:2], **QUIET).plot("S2->S1"),
            "no such link: 'S2->S1'",
        ),
        (
            lambda: analyses.patch_activations(addition.model, addition.pairs[:1], site="mlps", **QUIET)["m4"],
            r"'m4' \(want m0, m1",
        ),
        (lambda: analyses.label_heads(addition.model).plot("inductoin"), "did you mean 'induction'"),
        (lambda: addition.attention.plot("a0.h2"), r"no such head: 'a0\.h2'"),
    ],
)
def test_what_is_not_there_is_refused(part: Callable[[], Any], message: str):
    with pytest.raises(ValueError, match=message):
        part()


def test_maps_have_tokens_on_their_axes():
    (trace,) = addition.by_position.plot().data
    assert list(trace.x)[:3] == ["0 A1", "1 A0", "2 +"] and list(trace.y)[:3] == ["a0.h0", "a0.h1", "a1.h0"]
    assert trace.z[1, 0] == pytest.approx(float(addition.by_position["a0.h1"][0]), rel=1e-5)
    (pattern,) = addition.attention.plot("a0.h1").data
    assert list(pattern.x) == list(pattern.y) == list(addition.pairs.labels)
    (edges,) = addition.scores.plot().data
    assert "a1.h0&lt;q&gt;" in edges.x and list(edges.y) == list(addition.scores.sources)


def test_the_five_cells_fit_on_one_screen():
    """What once printed 33 screens of numbers: scores, patching, a model's results, tasks, an evaluation."""
    comparison = analyses.compare(
        sl.load("addition"), addition.model, addition.pairs[:4], method="eap", prune_runs=4, **QUIET
    )
    cells = [
        addition.scores,
        addition.heads,
        comparison.sparse,
        TASKS,
        sl.evaluate(addition.model, TASKS["addition"], n=8, **QUIET),
    ]
    assert sum(len(repr(cell).splitlines()) for cell in cells) <= 30
    assert sum(len(cell._repr_html_()) for cell in cells) < 20_000
    assert list(comparison.sparse.to_frame()["of"]) == ["attention", "labels", "heads", "mlps", "edges", "circuit"]
    assert len(comparison.to_frame()) == len(comparison.table())
