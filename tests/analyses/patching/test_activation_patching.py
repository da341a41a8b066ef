"""Patched values against hand-computed numbers, plain whole runs, and TransformerLens' own functions."""

import contextlib
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformer_lens.patching as theirs

import sparselens as sl
from sparselens import analyses
from sparselens.analyses import PatchingResult, patch_activations, patch_heads
from sparselens.analyses.engine.budget import BATCH_SIZE
from sparselens.analyses.engine.partial_runs import peak_bytes
from sparselens.analyses.engine.request import open_request
from sparselens.analyses.patching.patch_runs import Patching, patching, record, with_means
from sparselens.analyses.patching.patch_sites import find_site
from sparselens.gates.modes import open_gates
from sparselens.prompts.metrics import logit_difference
from tests.analyses.hand_model import hand_model, hand_pairs
from tests.tiny_models import FAMILIES, KINDS_OF_BLOCKS, tiny_bridge, tiny_tokens

BUDGET = 10**5  # bytes: two or three rows of a tiny model


def make_pairs(n: int = 2, same: int = 0, length: int = 9) -> sl.TokenizedPairs:
    """Random pairs whose first `same` tokens are equal."""
    clean, other = tiny_tokens(n, length), tiny_tokens(n, length, seed=1)
    corrupted = torch.cat([clean[:, :same], other[:, same:]], 1)
    return sl.TokenizedPairs(clean, corrupted, torch.arange(n) + 1, torch.arange(n) + 2)


def patched(model: Any, pairs: sl.TokenizedPairs, site: str = "heads", **options: Any) -> PatchingResult:
    return patch_activations(model, pairs, site=site, progress=False, **options)


# -- by hand. Clean: (0, 2) at the answer -> mid (2, 4) -> (6, 6) -> mid (11, 6) -> (22, 6), metric 16.
# Corrupted: (4, -2) -> mid (6, -4) -> (6, 2) -> mid (9, 4) -> (18, 4), metric 14.


@pytest.mark.parametrize(
    ("site", "values"),
    [
        # head 1 of layer 0 writes -2, not 2: (2, 0) -> (2, 2); then 3 to x: (5, 2) -> (10, 2)
        ("heads", [[16, 8], [14, 12]]),
        ("mlps", [12, 14]),  # (2, 10): heads write (7, -4): (9, 6) -> (18, 6); and (11, 6) + (9, 0)
        ("attention", [8, 10]),  # (9, 8) -> (18, 8)
        ("residual", [14, 14]),
    ],
)
def test_by_hand(site: str, values: list[Any]):
    found = patched(hand_model(), hand_pairs(), site)
    assert (found.clean.tolist(), found.corrupted.tolist()) == ([16], [14])
    assert found.values[0].tolist() == values
    assert found.mean.tolist() == values


def test_zero_ablation_by_hand():
    model, pairs = hand_model(), hand_pairs()
    heads = patched(model, pairs, ablation="zero")
    assert heads.mean[1].tolist() == [16, 6]  # head 0 wrote nothing; without head 1 it is (6, 6) -> (12, 6)
    edges = patched(model, pairs, "attention_edges", ablation="zero", only=[(0, 1, 1, 0), (0, 1, 1, 1)])
    assert edges.mean[0, 1, 1].tolist() == [16, 12]  # position 0 has no value 1; (2, 2) -> (4, 4) -> (8, 4) -> (16, 4)
    assert edges.mean.isnan().sum() == edges.mean.numel() - 2


def test_denoising_by_hand():
    found = patched(hand_model(), hand_pairs(), base="corrupted", ablation="clean")
    # layer 0: (6, 0) -> (6, 6): heads write (5, 0): (11, 6) -> (22, 6); layer 1: (9, 2) -> (18, 2), (11, 4) -> (22, 4)
    assert found.mean.tolist() == [[14, 16], [16, 18]]
    assert found.normalised[0].tolist() == [[0, 1], [1, 2]]
    assert found.effects[0].tolist() == [[0, 2], [2, 4]]


def test_by_position_by_hand():
    found = patched(hand_model(), hand_pairs(), by_position=True)
    assert found.axes == ("batch", "layer", "pos", "head")
    assert found.mean.tolist() == [[[16, 16], [16, 8]], [[16, 16], [14, 12]]]


# -- against plain runs of the whole model


def one_patch(model: Any, pairs: sl.TokenizedPairs, hook: str, where: tuple[Any, ...]) -> torch.Tensor:
    """Corrupted run with one part of one activation from the clean run."""
    kept: list[torch.Tensor] = []

    def put(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        activation = activation.clone()
        activation[(slice(None), *where)] = kept[0][(slice(None), *where)]
        return activation

    model.run_with_hooks(pairs.clean, fwd_hooks=[(hook, lambda x, hook: kept.append(x.clone()))])
    return logit_difference(model.run_with_hooks(pairs.corrupted, fwd_hooks=[(hook, put)]), pairs)


ALL = slice(None)
CASES = [  # site, by position, hook, patch, what it replaces
    ("heads", False, "attn.hook_z", (3,), (ALL, 3)),
    ("heads", True, "attn.hook_z", (8, 1), (8, 1)),
    ("mlps", False, "hook_mlp_out", (), ()),
    ("mlps", True, "hook_mlp_out", (8,), (8,)),
    ("attention", True, "hook_attn_out", (8,), (8,)),
    ("residual", True, "hook_resid_pre", (7,), (7,)),
    ("attention_edges", False, "attn.hook_pattern", (2, 8, 5), (2, 8, 5)),
]


@pytest.mark.parametrize(
    ("family", "gate_bias"),
    [*((family, 0.0) for family in sorted(FAMILIES)), *((family, None) for family in KINDS_OF_BLOCKS)],
)
def test_every_family_as_in_whole_runs(family: str, gate_bias: float | None):
    model, pairs = tiny_bridge(family), make_pairs()
    if gate_bias is not None:
        sl.sparsify(model, gate_bias)
    moved = set[str]()
    for site, by_position, hook, cell, where in CASES:
        only = [(layer, *cell) for layer in (0, 1)]
        found = patched(model, pairs, site, base="corrupted", ablation="clean", by_position=by_position, only=only)
        # where the pattern shown is a copy, only open gates let it be patched
        live = open_gates if site == "attention_edges" and gate_bias is None else contextlib.nullcontext
        for layer in (0, 1):
            with torch.no_grad(), live(model):
                wanted = one_patch(model, pairs, f"blocks.{layer}.{hook}", where)
            got = found.values[(slice(None), layer, *cell)]
            torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
            if not torch.allclose(got, found.corrupted, atol=1e-6):
                moved.add(site)
    assert moved >= {"heads", "mlps", "attention", "residual"}


def test_edges_of_a_dense_model_can_be_patched_in_every_family():
    for family in ("neo", "gptj", "opt", "bert"):
        model = tiny_bridge(family)
        found = patched(
            model, make_pairs(), "attention_edges", ablation="zero", only=[(1, head, 8, 8) for head in range(4)]
        )
        assert (found.effects[:, 1, :, 8, 8].abs() > 1e-6).all()
        assert not sl.is_sparse(model)


# -- against TransformerLens


@pytest.mark.parametrize(("family", "gate_bias"), [("gpt2", None), ("llama", 0.0), ("neox", None), ("gemma2", 0.0)])
@pytest.mark.parametrize(
    ("site", "by_position", "function"),
    [
        ("heads", False, theirs.get_act_patch_attn_head_out_all_pos),
        ("heads", True, theirs.get_act_patch_attn_head_out_by_pos),
        ("mlps", True, theirs.get_act_patch_mlp_out),
        ("attention", True, theirs.get_act_patch_attn_out),
        ("residual", True, theirs.get_act_patch_resid_pre),
        ("attention_edges", False, theirs.get_act_patch_attn_head_pattern_dest_src_pos),
    ],
)
def test_equal_to_transformer_lens(family: str, gate_bias: float | None, site: str, by_position: bool, function: Any):
    model, pairs = tiny_bridge(family), make_pairs(length=3)
    if gate_bias is not None:
        sl.sparsify(model, gate_bias)
    with torch.no_grad():
        _, cache = model.run_with_cache(pairs.clean)
        wanted = function(model, pairs.corrupted, cache, lambda logits: logit_difference(logits, pairs).mean())
    found = patched(model, pairs, site, base="corrupted", ablation="clean", by_position=by_position)
    torch.testing.assert_close(found.mean, wanted, atol=1e-5, rtol=0)


# -- what must hold


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_everything_is_the_other_run_and_nothing_is_the_own(family: str):
    model, pairs = tiny_bridge(family), make_pairs()
    noised = patched(model, pairs, "residual")
    torch.testing.assert_close(noised.values[:, 0], noised.corrupted)
    denoised = patched(model, pairs, "residual", base="corrupted", ablation="clean")
    torch.testing.assert_close(denoised.values[:, 1], denoised.clean)
    same = sl.TokenizedPairs(pairs.clean, pairs.clean, pairs.answer, pairs.wrong_answer)
    unmoved = patched(model, same, "heads")
    assert (unmoved.effects == 0).all() and unmoved.normalised.isnan().all()
    with pytest.raises(ValueError, match="the ratio is undefined"):
        unmoved.normalised_interval(0, 0)


def test_baselines_are_the_metric_of_plain_runs():
    model, pairs = tiny_bridge("gpt2"), make_pairs(5)
    found = patch_heads(model, pairs, sl.metrics.answer_probability, progress=False)
    for baseline, tokens in ((found.clean, pairs.clean), (found.corrupted, pairs.corrupted)):
        torch.testing.assert_close(baseline, sl.metrics.answer_probability(model(tokens), pairs))
    assert not found.values.requires_grad


def test_what_is_equal_in_both_runs_is_not_run(monkeypatch: pytest.MonkeyPatch):
    rows: list[int] = []
    real = Patching.measure
    monkeypatch.setattr(
        Patching, "measure", lambda setup, batch, *rest: [rows.append(len(batch)), real(setup, batch, *rest)][1]
    )
    found = patched(tiny_bridge("gpt2"), make_pairs(same=7), by_position=True)
    assert sum(rows) == 2 * 2 * 2 * 4  # prompts, layers, differing positions, heads
    assert (found.effects[:, :, :7] == 0).all()


def test_a_sparse_model_is_patched_at_open_gates_only():
    model = sl.sparsify(tiny_bridge("gpt2"), 0.0)
    found = patched(model, make_pairs(), "attention_edges", ablation="zero")
    _, cache = model.run_with_cache(make_pairs().clean)
    for layer in range(2):
        closed = cache[f"blocks.{layer}.attn.hook_gate"] == 0
        assert (found.effects[:, layer][closed] == 0).all()
        assert (found.effects[:, layer][~closed] != 0).any()


def test_a_metric_of_ones_own_gets_all_logits():
    model, pairs = tiny_bridge("gpt2"), make_pairs()

    def everywhere(logits: torch.Tensor, pairs: sl.TokenizedPairs) -> torch.Tensor:
        assert logits.shape[1] == pairs.clean.shape[1]
        return logits.log_softmax(-1)[..., 5].sum(-1)

    found = patch_heads(model, pairs, everywhere, base="corrupted", ablation="clean", progress=False)
    kept: list[torch.Tensor] = []

    def put(z: torch.Tensor, hook: Any) -> torch.Tensor:
        z[:, :, 2] = kept[0][:, :, 2]
        return z

    with torch.no_grad():
        name = "blocks.0.attn.hook_z"
        model.run_with_hooks(pairs.clean, fwd_hooks=[(name, lambda z, hook: kept.append(z.clone()))])
        wanted = everywhere(model.run_with_hooks(pairs.corrupted, fwd_hooks=[(name, put)]), pairs)
    torch.testing.assert_close(found.values[:, 0, 2], wanted)


def test_answers_anywhere_and_padding():
    model, pairs = tiny_bridge("llama"), make_pairs(3)
    short = make_pairs(3, length=6)
    wanted = patched(model, short, by_position=True)
    for left in (True, False):
        padding = torch.zeros(3, 3, dtype=torch.long)
        clean, corrupted, mask = (
            torch.cat([padding, x] if left else [x, padding], 1)
            for x in (short.clean, short.corrupted, torch.ones_like(short.clean))
        )
        both = sl.TokenizedPairs(
            torch.cat([pairs.clean, clean]),
            torch.cat([pairs.corrupted, corrupted]),
            torch.cat([pairs.answer, short.answer]),
            torch.cat([pairs.wrong_answer, short.wrong_answer]),
            attention_mask=torch.cat([torch.ones_like(pairs.clean), mask]),
        )
        found = patched(model, both, by_position=True)
        inside = slice(3, 9) if left else slice(0, 6)
        torch.testing.assert_close(found.values[3:, :, inside], wanted.values, atol=1e-6, rtol=1e-5)
        outside = found.effects[3:].clone()
        outside[:, :, inside] = 0
        assert not outside.any()
        torch.testing.assert_close(found.values[:3], patched(model, pairs, by_position=True).values)


def test_answers_at_named_positions():
    model = tiny_bridge("gpt2")
    pairs = replace(make_pairs(), positions={"END": torch.tensor([3, 6])})
    found = patched(model, pairs, base="corrupted", ablation="clean")
    with torch.no_grad():
        torch.testing.assert_close(found.values[:, 1, 3], one_patch(model, pairs, "blocks.1.attn.hook_z", (ALL, 3)))


@pytest.mark.parametrize("site", ["heads", "mlps", "attention_edges"])
def test_mean_ablation(site: str):
    model, pairs = tiny_bridge("gpt2"), make_pairs(4)
    found = patched(model, pairs, site, ablation="mean", memory=3 * 10**5)
    hook = {"heads": "attn.hook_z", "mlps": "hook_mlp_out", "attention_edges": "attn.hook_pattern"}[site]
    where = {"heads": (ALL, 2), "mlps": (), "attention_edges": (1, 8, 4)}[site]
    cell = {"heads": (2,), "mlps": (), "attention_edges": (1, 8, 4)}[site]
    with torch.no_grad():
        _, cache = model.run_with_cache(pairs.corrupted)

        def put(activation: torch.Tensor, hook: Any) -> torch.Tensor:
            activation[(ALL, *where)] = cache[hook.name if site != "mlps" else "blocks.1.hook_mlp_out"].mean(0)[where]
            return activation

        wanted = logit_difference(model.run_with_hooks(pairs.clean, fwd_hooks=[(f"blocks.1.{hook}", put)]), pairs)
    torch.testing.assert_close(found.values[(ALL, 1, *cell)], wanted, atol=1e-5, rtol=0)


def test_half_precision_and_training_mode():
    model = tiny_bridge("gpt2", dtype=torch.bfloat16).train()
    found = patched(model, make_pairs())
    assert model.training and found.values.dtype == torch.float32
    exact = patched(tiny_bridge("gpt2"), make_pairs())
    assert (found.values - exact.values).abs().max() < 0.2


def test_intervals():
    found = patched(tiny_bridge("gpt2"), make_pairs(6))
    interval = found.interval(1, 2)
    assert interval.mean == pytest.approx(float(found.mean[1, 2])) and interval.n == 6
    share = found.normalised_interval(1, 2)
    wanted = (found.values[:, 1, 2] - found.corrupted).mean() / (found.clean - found.corrupted).mean()
    assert share.mean == pytest.approx(float(wanted), rel=1e-5)
    with pytest.raises(ValueError, match=r"no such patch: \(2, 0\) \(want layer 0 to 1, head 0 to 3\)"):
        found.interval(2, 0)


# -- old names


def test_the_old_name_of_ablation_warns_and_works():
    model, pairs = tiny_bridge("gpt2"), make_pairs()
    with pytest.warns(DeprecationWarning, match=r"patch_heads\(source=\.\.\.\) is now patch_heads\(ablation=\.\.\.\)"):
        old = patch_heads(model, pairs, source="zero", progress=False)  # type: ignore[call-arg]
    assert old.ablation == "zero" and torch.equal(old.values, patched(model, pairs, ablation="zero").values)
    with pytest.raises(TypeError, match="got both ablation= and its old name source="):
        patch_heads(model, pairs, source="zero", ablation="zero", progress=False)  # type: ignore[call-arg]
    with pytest.warns(DeprecationWarning, match=r"analyses\.Patched is now analyses\.PatchingResult"):
        assert analyses.Patched is PatchingResult


# -- memory


def test_a_small_model_runs_in_batches_of_a_fixed_size_without_a_trial(monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []
    real = Patching.measure
    monkeypatch.setattr(
        Patching, "measure", lambda setup, batch, *rest: [sizes.append(len(batch)), real(setup, batch, *rest)][1]
    )
    monkeypatch.setattr("sparselens.analyses.engine.budget.peak_bytes", None)  # nothing is measured
    model, pairs = tiny_bridge("gpt2"), make_pairs(20)
    wanted = patched(model, pairs)
    assert max(sizes) == BATCH_SIZE
    sizes.clear()
    found = patched(model, pairs, batch_size=7)
    assert max(sizes) == 7
    torch.testing.assert_close(found.values, wanted.values, atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="batch_size = 0: want 1 or more"):
        patched(model, pairs, batch_size=0)


def test_memory_stays_within_the_budget_for_any_number_of_prompts():
    model = tiny_bridge("gpt2")
    budget = 4 * 10**5
    few, many = make_pairs(16), make_pairs(29)
    peaks = [peak_bytes(lambda pairs=pairs: patched(model, pairs, memory=budget))[1] for pairs in (few, many)]
    assert all(budget / 2 < peak <= budget for peak in peaks)
    torch.testing.assert_close(
        patched(model, many, memory=2 * BUDGET).values, patched(model, many).values, atol=1e-6, rtol=1e-5
    )


def test_a_budget_too_small_for_one_prompt_says_what_is_needed():
    with pytest.raises(ValueError, match=r"memory = 1000 bytes is too small: one prompt takes (\d+)") as refusal:
        patched(tiny_bridge("gpt2"), make_pairs(), memory=1000)
    needed = int(str(refusal.value).split()[-1])
    assert patched(tiny_bridge("gpt2"), make_pairs(), memory=needed).values.isfinite().all()


def test_progress_can_be_seen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sparselens.bars.is_watched", lambda: True)
    patch_heads(tiny_bridge("gpt2"), make_pairs())
    shown = capsys.readouterr().err
    assert "heads:" in shown and "/16 " in shown
    patched(tiny_bridge("gpt2"), make_pairs())
    assert capsys.readouterr().err == ""


# -- bad input


def nan_in(layer: int, model: Any) -> Any:
    model.blocks[layer].mlp.out.weight.data[0, 0] = torch.nan
    return model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"site": "neurons"}, r"no such site: 'neurons' \(want heads, mlps"),
        ({"base": "corrupted"}, "base and ablation are both 'corrupted'"),
        ({"base": "mean"}, "no such base: 'mean'"),
        ({"ablation": "median"}, "no such ablation: 'median'"),
        ({"only": [(0, 4)]}, r"no such patch: \(0, 4\) \(want layer 0 to 1, head 0 to 3\)"),
        ({"only": [(2, 0)]}, r"no such patch: \(2, 0\)"),
        ({"only": [(0, 1, 2)]}, r"no such patch: \(0, 1, 2\)"),
        ({"only": [(-1, 0)]}, r"no such patch: \(-1, 0\)"),
    ],
)
def test_unknown_things_are_named(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        patched(tiny_bridge("gpt2"), make_pairs(), **options)


def test_prompts_of_different_length_within_a_pair_are_refused():
    pairs = make_pairs()
    ones = torch.ones_like(pairs.clean)
    shorter = ones.clone()
    shorter[1, 0] = 0
    for mask in (ones, None):  # none is all ones
        uneven = replace(pairs, attention_mask=mask, corrupted_mask=shorter)
        with pytest.raises(ValueError, match="clean and corrupted prompt of pair 1 differ in length"):
            patched(tiny_bridge("gpt2"), uneven)


def test_a_mean_of_many_prompts_is_added_up_in_float32():
    model, alike = tiny_bridge("gpt2").bfloat16(), make_pairs(1)[[0] * 100]
    with (
        open_request(model, alike, logit_difference) as request,
        patching(request, [find_site(model, "residual")], "clean", "mean") as setup,
    ):
        found = with_means(setup, torch.arange(100), 1).means
        wanted = record(replace(setup, ablation="corrupted"), request.batch(torch.arange(1))).replacement
    assert found is not None
    for name, values in wanted.items():
        assert found[name].dtype == torch.bfloat16 and torch.equal(found[name], values)


def test_the_mean_needs_one_length():
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :2] = 0
    with pytest.raises(ValueError, match="means at each position need one length for all"):
        patched(tiny_bridge("gpt2"), replace(make_pairs(), attention_mask=mask), ablation="mean")


def test_a_scalar_metric_is_refused():
    with pytest.raises(ValueError, match=r"shape \[\] for 2 prompts"):
        patch_heads(tiny_bridge("gpt2"), make_pairs(), lambda logits, pairs: logits.mean(), progress=False)


def test_activations_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match=r"blocks\.1\..* is not finite in prompt 0"):
        patched(nan_in(0, tiny_bridge("gpt2")), make_pairs())
    with pytest.raises(ValueError, match="the metric is not finite in prompt 0"):
        patched(nan_in(1, tiny_bridge("gpt2")), make_pairs())
