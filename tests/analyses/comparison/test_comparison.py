"""A comparison reports what its analyses report, and resumes after an interruption."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

import sparselens as sl
from sparselens import analyses
from sparselens.analyses.comparison.plots import edges_needed_plot, kept_plot, loss_plot
from sparselens.analyses.comparison.results import SIDES, Comparison
from sparselens.tasks import TASKS
from tests.analyses.comparison.compared import (
    QUICK,
    N,
    compared,
    same,
    tiny_comparison,
    tiny_models,
    whole_tiny_comparison,
)
from tests.analyses.small_models import native_model, tiny_pairs
from tests.tiny_models import tiny_bridge, tiny_tokens


def pairs_at_end(pairs: sl.TokenizedPairs) -> sl.TokenizedPairs:
    return sl.TokenizedPairs(pairs.clean[:, -1:], pairs.corrupted[:, -1:], pairs.answer, pairs.wrong_answer)


# -- what it says


def test_it_says_what_the_analyses_say(models: tuple[Any, Any], comparison: Comparison):
    pairs = TASKS["addition"].tokenize(models[0].tokenizer, N)
    for side, model in zip(SIDES, models, strict=True):
        answers = getattr(comparison, side)
        scores = analyses.attribute_edges(model, pairs, sl.metrics.logit_difference, "eap", progress=False)
        torch.testing.assert_close(answers.edges.per_prompt, scores.per_prompt)
        circuit = scores.smallest(0.9)
        assert comparison.circuit(side).edges == circuit.edges
        alone = analyses.faithfulness(model, circuit, pairs, sl.metrics.logit_difference, progress=False)
        assert answers.circuits.own.mean == pytest.approx(alone.mean, abs=1e-5)
        other = comparison.circuit(SIDES[1 - SIDES.index(side)])
        moved = analyses.faithfulness(model, other, pairs, sl.metrics.logit_difference, progress=False)
        assert answers.circuits.other.mean == pytest.approx(moved.mean, abs=1e-5)
        assert answers.circuits.faithful.mean >= 0.8
        smaller = analyses.faithfulness(
            model, scores.top(answers.circuits.faithful_edges - 1), pairs, sl.metrics.logit_difference, progress=False
        )
        assert smaller.mean < 0.8
        chance = analyses.random_connected_circuits(circuit, seed=0)
        assert len(answers.circuits.random) == len(chance) == 10
        drawn = analyses.faithfulness(model, chance[3], pairs, sl.metrics.logit_difference, progress=False)
        assert answers.circuits.random[3].mean == pytest.approx(drawn.mean, abs=1e-5)
    pruned = comparison.sparse.circuits.pruned
    scores = comparison.sparse.edges
    again = analyses.pruned_circuit(models[1], pairs, scores, sl.metrics.logit_difference, progress=False)
    assert pruned is not None and again is not None and pruned.circuit.edges == again.circuit.edges
    assert pruned.held_out.mean == pytest.approx(again.held_out.mean, abs=1e-5)
    assert bool(comparison.solved.kept.all())
    assert comparison.about.notes == (f"Only {N} pairs: confidence intervals are wide, and may still be too narrow.",)


def test_the_circuit_of_a_model_is_its_own(comparison: Comparison):
    for side in SIDES:
        results = getattr(comparison, side)
        assert results.circuit is results.circuit and results.circuit.edges == results.edges.smallest(0.9).edges
        assert comparison.circuit(side) is results.circuit
        assert torch.equal(results.edges.stability().sizes, results.stability.sizes)
    assert comparison.overlap == comparison.dense.circuit.jaccard(comparison.sparse.circuit)
    assert repr(comparison).startswith("Comparison(dense and sparse on addition-v")


def twice(logits: torch.Tensor, pairs: sl.TokenizedPairs) -> torch.Tensor:
    return 2 * sl.metrics.logit_difference(logits, pairs)


def test_a_metric_of_ones_own(tmp_path: Path):
    plain, doubled = whole_tiny_comparison(), tiny_comparison(metric=twice, out=tmp_path / "twice")
    assert doubled.about.metric == "twice"
    torch.testing.assert_close(doubled.dense.edges.mean, 2 * plain.dense.edges.mean)
    assert "| twice |" in doubled.table("markdown")
    with pytest.raises(ValueError, match="holds another comparison \\(other settings\\)"):
        tiny_comparison(out=tmp_path / "twice")
    with pytest.raises(ValueError, match="resumes only with a metric that has a name of its own"):
        tiny_comparison(metric=lambda logits, pairs: twice(logits, pairs), out=tmp_path / "other")


def test_weights_are_hashed_once_and_models_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from sparselens.analyses.engine import request

    calls: list[str] = []
    for name in ("of_model", "read_model"):
        whole = getattr(request, name)
        monkeypatch.setattr(request, name, lambda model, name=name, whole=whole: calls.append(name) or whole(model))
    tiny_comparison(out=tmp_path / "numbers")
    assert sorted(calls) == ["of_model"] * 2 + ["read_model"] * 2


def test_overlap_counts_the_shared_edges(comparison: Comparison):
    dense, sparse = (set(comparison.circuit(side).edges) for side in SIDES)
    assert comparison.shared_edges == len(dense & sparse) > 0
    assert comparison.overlap == pytest.approx(len(dense & sparse) / len(dense | sparse))


def test_ratios_are_those_of_the_sizes(comparison: Comparison):
    needed = [analyses.edges_needed(getattr(comparison, side).edges).double().mean() for side in SIDES]
    assert comparison.fewer_edges().mean == pytest.approx(float(needed[0] / needed[1]))
    sizes = [len(comparison.circuit(side)) for side in SIDES]
    assert comparison.fewer_edges_of_mean().mean == pytest.approx(sizes[0] / sizes[1])
    for part in ("heads", "heads_once", "components", "components_once"):
        counts = [getattr(getattr(comparison, side).kept, part).smallest(0.9) for side in SIDES]
        found = comparison.fewer_components(part)
        assert found is not None and found.mean == pytest.approx(counts[0] / counts[1])
        assert found.low <= found.mean <= found.high


def test_the_interval_of_the_mean_scores_is_a_bootstrap_over_prompts(comparison: Comparison):
    generator = np.random.default_rng(0)
    scores = [getattr(comparison, side).edges for side in SIDES]
    ratios = []
    for _ in range(300):
        rows = torch.from_numpy(generator.integers(N, size=N))
        sizes = [len(replace(s, mean=s.per_prompt[rows].mean(0)).smallest(0.9)) for s in scores]
        ratios.append(sizes[0] / sizes[1])
    found = comparison.fewer_edges_of_mean()
    assert [found.low, found.high] == pytest.approx(np.quantile(ratios, [0.025, 0.975]), rel=0.12)


def test_a_number_is_the_same_in_table_and_plot(comparison: Comparison):
    table = comparison.table().droplevel(0)
    points = {s.model: s for s in loss_plot(comparison.loss.points).series}
    assert points["sparse"].labels == ()
    again = replace(comparison.loss.named("sparse"), name="8,000 steps")  # of the same look: labelled, then
    labelled = [s.labels for s in loss_plot([*comparison.loss.points, again]).series if s.model == "sparse"]
    assert labelled == [("sparse",), ("8,000 steps",)]
    assert points["sparse"].y[0] == table.loc["loss on the answers (nats)", "sparse"]
    assert points["sparse"].x[0] == table.loc["open edges, share of visible pairs", "sparse"]
    curves = edges_needed_plot(comparison)
    for series, side in ((curves.series[1], "dense"), (curves.series[3], "sparse")):
        reached = next(x for x, y in zip(series.x, series.y, strict=True) if y >= 0.9)
        assert series.dotted and reached == table.loc["edges needed for 90 % of attribution, mean scores", side]
    kept = kept_plot(comparison).series[1]
    wanted = table.loc["heads needed for 90 % of the metric, ranked per prompt", "sparse"]
    assert next(x for x, y in zip(kept.x, kept.y, strict=True) if y >= 0.9) == wanted


# -- what is marked, what is refused


def test_a_model_with_itself_is_marked(models: tuple[Any, Any]):
    found = compared((models[1], models[1]), n=6, prune_runs=0, notes=["The text is a poem."])
    assert found.about.notes[0] == "The text is a poem."  # notes of the caller come first
    assert found.about.notes[1].startswith("Both models are the same")
    ratios = [found.fewer_edges(), found.fewer_edges_of_mean(), found.fewer_components("heads")]
    assert [(ratio.low, ratio.mean, ratio.high) for ratio in ratios if ratio] == [(1.0, 1.0, 1.0)] * 3
    assert found.overlap == 1.0


def test_models_that_cannot_be_compared_are_refused():
    gpt2, pairs = tiny_bridge("gpt2"), tiny_pairs()
    with pytest.raises(ValueError, match="the models differ in layers or heads: dense"):
        analyses.compare(gpt2, tiny_bridge("llama"), pairs, progress=False)
    with pytest.raises(ValueError, match="the models differ in vocabulary: dense 31 tokens, sparse 40"):
        analyses.compare(gpt2, tiny_bridge("gpt2", vocab_size=40), pairs, progress=False)


def test_different_tokenizers_are_refused(models: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch):
    words = dict(models[1].tokenizer.get_vocab())
    words["0"], words["1"] = words["1"], words["0"]
    monkeypatch.setattr(models[1].tokenizer, "get_vocab", lambda: words)
    with pytest.raises(ValueError, match=r"the models have different tokenizers: '[01]' is not the same token in both"):
        compared(models)


def test_pairs_that_neither_model_solves(tmp_path: Path):
    dense, sparse = tiny_bridge("gpt2"), sl.sparsify(tiny_bridge("gpt2", seed=1), 0.0)
    pairs = tiny_pairs(batch=4)
    logits = sl.answer_logits(dense, pairs)
    best = logits.argmax(-1)
    hard = replace(pairs, answer=(best + 1) % 31, wrong_answer=best)
    with pytest.raises(
        ValueError, match=r"none of the 4 pairs is solved by both models \(dense solves 0, sparse .\).*all_pairs=True"
    ):
        analyses.compare(dense, sparse, hard, progress=False)
    found = analyses.compare(dense, sparse, hard, out=tmp_path / "n", **QUICK)
    assert any(note.startswith("The dense model is not significantly better than chance") for note in found.about.notes)
    assert same(analyses.load_comparison(tmp_path / "n"), found)


def test_a_model_without_mlps(tmp_path: Path):
    dense, sparse = native_model(attn_only=True), native_model(attn_only=True)
    for model, seed in ((dense, 0), (sparse, 1)):
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
    clean = torch.tensor([[0, 1, 2], [1, 1, 2]])
    pairs = sl.TokenizedPairs(clean, clean.flip(1), torch.tensor([0, 1]), torch.tensor([2, 2]))
    found = analyses.compare(dense, sl.sparsify(sparse, 0.0), pairs, **QUICK)
    assert found.dense.mlps is None and not found.dense.kept.has("components")
    assert same(analyses.load_comparison(found.save(tmp_path / "n")), found)


# -- what cannot be divided, and odd prompts


def shown(found: Comparison, tmp_path: Path) -> Any:
    """Make everything that a comparison can produce (the report draws all figures); return the table by quantity."""
    found.save_html(tmp_path / "report.html")
    assert same(analyses.load_comparison(found.save(tmp_path / "numbers")), found)
    return found.table().droplevel(0)


def test_a_single_pair(tmp_path: Path):
    found = analyses.compare(*tiny_models(), tiny_pairs(1), **QUICK)
    table = shown(found, tmp_path)
    assert np.isnan(table.loc["overlap of two prompts' circuits (Jaccard)", "dense"])
    assert "nan" not in found.table("markdown") and "nan" not in found.table("latex")


def test_prompts_that_do_not_differ(tmp_path: Path):
    pairs = tiny_pairs()
    found = analyses.compare(*tiny_models(), replace(pairs, corrupted=pairs.clean), **QUICK)
    table = shown(found, tmp_path)
    assert table.loc["edges needed for 90 % of attribution, mean scores", "dense"] == 0
    assert np.isnan(table.loc["edges needed for 90 % of attribution, mean scores", "ratio"])
    assert sum("score significantly above corrupted ones" in note for note in found.about.notes) == 2


def test_a_model_whose_gates_are_all_closed(tmp_path: Path):
    dense, _ = tiny_models()
    closed = sl.sparsify(tiny_bridge("gpt2"), -1e4)
    found = analyses.compare(dense, closed, tiny_pairs(), **QUICK)
    table = shown(found, tmp_path)
    assert table.loc["open edges, share of visible pairs", "sparse"] == 0
    assert np.isnan(table.loc["open edges, share of visible pairs", "ratio"])
    assert loss_plot(found.loss.points).notes == ("sparse: no open edges",)


def test_prompts_of_several_lengths_text_and_a_control():
    pairs = tiny_pairs(4)
    mask = torch.ones_like(pairs.clean)
    mask[1, :3] = 0
    padded = replace(pairs, attention_mask=mask, corrupted_mask=mask)
    rows, control = tiny_tokens(3, 8), tiny_bridge("gpt2", seed=2)
    options = QUICK | {"prune_runs": 0}
    found = analyses.compare(*tiny_models(), padded, text=rows, control=control, ablation="zero", **options)
    for name, model in zip(("dense", "sparse", "control"), (*tiny_models(), control), strict=True):
        assert found.loss.named(name).loss == pytest.approx(analyses.measure_loss(model, [rows]).loss, rel=1e-5)
    assert found.dense.heads.ablation == "zero" and len(found.about.prompts) == 3
    alone = analyses.compare(*tiny_models(), padded[[1]], ablation="zero", **options)
    torch.testing.assert_close(alone.dense.heads.values[0], found.dense.heads.values[1], atol=1e-5, rtol=0)


def test_only_pairs_that_both_solve_are_used():
    dense, sparse = tiny_models()
    pairs = tiny_pairs(12)
    right = [
        sl.metrics.accuracy(sl.answer_logits(model, pairs)[:, None], pairs_at_end(pairs)) for model in (dense, sparse)
    ]
    both = (right[0] * right[1]).bool()
    assert 0 < int(both.sum()) < 12
    found = analyses.compare(dense, sparse, pairs, method="eap", prune_runs=0, progress=False)
    assert torch.equal(found.solved.kept, both) and len(found.dense.edges.clean) == int(both.sum())
    wanted = analyses.attribute_edges(
        dense, pairs[both.nonzero().flatten()], sl.metrics.logit_difference, "eap", progress=False
    )
    torch.testing.assert_close(found.dense.edges.mean, wanted.mean)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "guess"}, "no such method: 'guess'"),
        ({"ablation": "noise"}, "no such ablation: 'noise'"),
        ({"share": 0.0}, "share must be above 0 and at most 1, not 0.0"),
        ({"steps": 0}, "steps = 0: want 1 or more"),
        ({"metric": "accuracy"}, "accuracy has no gradient, which eap attribution needs"),
        ({"metric": "kl_divergence"}, "kl_divergence compares with a reference"),
        ({"names": ("a", "a")}, "want two different names"),
        ({"control": "llama"}, "the models differ in layers or heads"),
    ],
)
def test_mistakes_are_refused_at_once(options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sparselens.analyses.comparison.comparing.answer_logits", None)
    if "control" in options:
        options = {"control": tiny_bridge(options["control"])}
    with pytest.raises(ValueError, match=message):
        analyses.compare(*tiny_models(), tiny_pairs(), **({"method": "eap", "progress": False} | options))


def test_swapped_models_and_wrong_tasks_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as outside the tests
    with pytest.raises(ValueError, match="the dense model has gates and the sparse one has none: swap them"):
        analyses.compare(*tiny_models()[::-1], tiny_pairs(), progress=False)
    with pytest.raises(ValueError, match="task is 'ioi': want a Task"):
        analyses.compare(*tiny_models(), "ioi", progress=False)  # type: ignore[arg-type]
