"""Dependency cones: proved by replacing everything outside, and by cutting what is inside."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sparselens as sl
from sparselens.analyses import cut_effects, dependency_cone, outside_effect
from sparselens.analyses.engine.partial_runs import peak_bytes
from sparselens.tasks import TASKS
from sparselens.tasks.addition import Addition, ids
from tests.analyses.hand_model import hand_model, hand_pairs
from tests.analyses.small_models import shipped
from tests.tiny_models import tiny_bridge, tiny_tokenizer, tiny_tokens

TASK = Addition()


def addition_tokens(n: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.tensor([ids(TASK.prompt(a, b)) for a, b in TASK.sample(n, seed)])


def story_tokens(n: int, length: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 512, (n, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("position", TASK.answer_positions)
def test_addition_depends_on_its_cone_alone(position: int):
    model = shipped("addition-sparse")
    tokens = addition_tokens()
    cone = dependency_cone(model, tokens, [position])
    assert (cone.size < cone.states[0].size).all()
    assert outside_effect(model, cone, addition_tokens(seed=1)).max() < 1e-5
    assert outside_effect(model, cone, torch.randint(13, tokens.shape)).max() < 1e-5


def test_an_edge_inside_the_cone_of_an_addition_matters():
    model = shipped("addition-sparse")
    cone = dependency_cone(model, addition_tokens(), list(TASK.answer_positions))
    cuts = cut_effects(model, cone, progress=False)
    assert len(cuts) == len(cone.edges) > 0
    for prompt in range(8):
        assert cuts[torch.from_numpy(cone.edges.prompt == prompt)].max() > 1e-2


def test_a_story_depends_on_its_cone_alone():
    model = shipped("stories260k-sparse")
    cone = dependency_cone(model, story_tokens(3))
    share = cone.size / cone.states[0].size
    assert (share < 0.9).all()
    assert outside_effect(model, cone, story_tokens(3, seed=1)).max() < 1e-5
    assert cut_effects(model, cone, progress=False).max() > 1e-3


def test_a_state_inside_matters():
    """Leaving one state out of the cone changes the logits: the proof can fail."""
    model = shipped("addition-sparse")
    cone = dependency_cone(model, addition_tokens(), list(TASK.answer_positions))
    edge = int(cut_effects(model, cone, progress=False).argmax())
    prompt, layer, key = (int(column[edge]) for column in (cone.edges.prompt, cone.edges.layer, cone.edges.key_pos))
    cone.states[prompt, layer, key] = False
    moved = outside_effect(model, cone, addition_tokens(seed=1))
    assert moved[prompt] > 1e-3
    assert moved[torch.arange(8) != prompt].max() < 1e-5


@pytest.mark.parametrize(
    ("name", "task"), [("addition-sparse", "addition"), ("stories260k-sparse", "gendered_pronoun")]
)
def test_a_cone_is_exact_with_the_patterns_held_and_not_in_a_fresh_run(name: str, task: str):
    model = shipped(name)
    pairs = TASKS[task].solved_by(model, n=40)
    _, pairs = max(pairs.batches(40), key=lambda batch: len(batch[1]))
    cone = dependency_cone(model, pairs)
    outside = cone.outside
    assert outside is not None and len(outside.survives) == len(pairs)
    assert torch.equal(outside.held, torch.zeros(len(pairs)))
    assert 1 < outside.free_running.mean() < 30
    assert not outside.survives.all()
    assert outside.surviving.mean == outside.survives.float().mean()
    assert "patterns held: logits move by at most 0; free-running: by " in repr(outside)


def test_what_a_fresh_run_does_by_the_model_itself():
    """The noise that is put on the states outside, repeated with plain hooks."""
    model = shipped("addition-sparse")
    pairs = TASKS["addition"].solved_by(model, n=6)
    cone = dependency_cone(model, pairs)
    assert cone.outside is not None
    names = [*(f"blocks.{layer}.hook_resid_pre" for layer in range(3)), "blocks.2.hook_resid_post"]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        before, cache = model.run_with_cache(pairs.clean)

        def noisy(name: str, states: torch.Tensor, hook: Any) -> torch.Tensor:
            clean = cache[name]
            noise = 30 * clean.std() * torch.randn(clean.shape, generator=generator)
            inside = torch.from_numpy(cone.states[:, names.index(name)])
            return torch.where(inside[..., None], states, clean + noise)

        after = model.run_with_hooks(pairs.clean, fwd_hooks=[(name, partial(noisy, name)) for name in names])
    rows = torch.arange(len(pairs))
    moved = (after - before)[rows, pairs.end].abs().amax(-1)
    torch.testing.assert_close(cone.outside.free_running, moved, rtol=1e-4, atol=1e-4)
    signs = [sl.metrics.logit_difference(logits, pairs) > 0 for logits in (before, after)]
    assert torch.equal(cone.outside.survives, signs[0] == signs[1])


def test_patterns_that_cannot_be_held_leave_the_fresh_run():
    outside = dependency_cone(tiny_bridge("gptj"), tiny_tokens()).outside
    assert outside is not None and outside.held.isnan().all() and outside.free_running.isfinite().all()


def test_without_answers_the_likeliest_token_survives_or_does_not():
    model = sl.sparsify(tiny_bridge("gpt2"), 0.0)
    outside = dependency_cone(model, tiny_tokens(6)).outside
    assert outside is not None and outside.survives.shape == (6,) and (outside.free_running > 0).any()
    assert outside.survives[outside.free_running == 0].all()


def test_by_hand():
    model = sl.sparsify(tiny_bridge("gpt2"), 0.0)
    _, cache = model.run_with_cache(tiny_tokens(1, 4))
    gates = [cache[f"blocks.{layer}.attn.hook_gate"][0].any(0) for layer in (0, 1)]
    cone = dependency_cone(model, tiny_tokens(1, 4))
    read_by_last = {3} | {k for k in range(4) if gates[1][3, k]}
    at_start = read_by_last | {k for q in read_by_last for k in range(4) if gates[0][q, k]}
    assert set(cone.states[0, 2].nonzero()[0]) == {3}
    assert set(cone.states[0, 1].nonzero()[0]) == read_by_last
    assert set(cone.states[0, 0].nonzero()[0]) == at_start
    wanted = [(1, 3), *((0, q) for q in read_by_last)]
    assert {(layer, q) for layer, q in zip(cone.edges.layer, cone.edges.query_pos, strict=True)} <= set(wanted)


def test_without_open_gates_an_answer_depends_on_its_own_position():
    model = sl.sparsify(tiny_bridge("llama"), -1e4)
    cone = dependency_cone(model, tiny_tokens(2, 5))
    assert cone.size.tolist() == [3, 3] and len(cone.edges) == 0 and len(cut_effects(model, cone, progress=False)) == 0
    assert outside_effect(model, cone, tiny_tokens(2, 5, seed=1)).max() < 1e-6


def test_a_dense_cone_is_all_that_is_visible():
    cone = dependency_cone(hand_model(), hand_pairs())
    assert cone.states.tolist() == [[[True, True], [True, True], [False, True]]]
    # layer 1 at the second position: two heads, two keys; layer 0: two heads, three pairs
    assert len(cone.edges) == 4 + 6
    earlier = dependency_cone(hand_model(), hand_pairs(), [0])
    assert earlier.states[0, :, 1].sum() == 0


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "neox", "neo", "opt", "bloom", "bert", "gpt-oss"])
def test_in_many_families(family: str):
    model = sl.sparsify(tiny_bridge(family), 0.0)
    tokens, other = tiny_tokens(3), tiny_tokens(3, seed=1)
    cone = dependency_cone(model, tokens)
    assert outside_effect(model, cone, other).max() < 1e-5
    if len(cone.edges):
        assert cut_effects(model, cone, progress=False).max() > 1e-5


def test_cuts_stay_within_the_budget():
    model = sl.sparsify(tiny_bridge("gpt2"), 0.0)
    cone = dependency_cone(model, tiny_tokens(2))
    with pytest.raises(ValueError, match="too small: one prompt takes") as refusal:
        cut_effects(model, cone, memory=1, progress=False)
    budget = 5 * int(str(refusal.value).split()[-1])
    few, peak = peak_bytes(lambda: cut_effects(model, cone, memory=budget, progress=False))
    assert budget / 2 < peak <= budget + 4 * len(cone.edges)  # what is returned comes on top
    torch.testing.assert_close(few, cut_effects(model, cone, progress=False), atol=1e-6, rtol=1e-5)


def test_patterns_that_cannot_be_held_are_refused():
    model: Any = tiny_bridge("gptj")
    cone = dependency_cone(model, tiny_tokens())
    with pytest.raises(ValueError, match="shows only a copy of its patterns"):
        outside_effect(model, cone, tiny_tokens())
    with pytest.raises(ValueError, match="shows only a copy"):
        cut_effects(model, cone, progress=False)


def test_bad_input():
    model = sl.sparsify(tiny_bridge("gpt2"), 0.0)
    tokens = tiny_tokens()
    with pytest.raises(ValueError, match=r"positions = \[9\]: want some from 0 to 8"):
        dependency_cone(model, tokens, [9])
    mask = torch.ones_like(tokens)
    mask[0, :2] = 0
    padded = sl.TokenizedPairs(tokens, tokens, torch.tensor([1, 2]), torch.tensor([3, 4]), attention_mask=mask)
    with pytest.raises(ValueError, match="prompts have several lengths"):
        dependency_cone(model, padded)
    with pytest.raises(ValueError, match=r"other is \[2, 4\], the cone's tokens \[2, 9\]"):
        outside_effect(model, dependency_cone(model, tokens), tiny_tokens(2, 4))


def test_pairs_are_read_at_their_answer():
    model = sl.sparsify(tiny_bridge("gpt2"), 0.0)
    tokens, ones = tiny_tokens(), torch.tensor([1, 2])
    pairs = sl.TokenizedPairs(tokens, tokens, ones, ones + 2, positions={"END": torch.tensor([4, 8])})
    cone = dependency_cone(model, pairs)
    assert np.argwhere(cone.positions).tolist() == [[0, 4], [1, 8]]


def test_padding_is_cut_off_where_a_mask_marks_it_and_refused_where_none_does(tmp_path: Path):
    model = sl.sparsify(tiny_bridge("gpt2"), 0.0)
    model.tokenizer = tiny_tokenizer(tmp_path)  # pads with 0
    tokens, answers = tiny_tokens(), (torch.tensor([1, 2]), torch.tensor([3, 4]))
    padded, mask = torch.nn.functional.pad(tokens, (2, 0)), torch.nn.functional.pad(torch.ones_like(tokens), (2, 0))
    found = dependency_cone(model, sl.TokenizedPairs(padded, padded, *answers, attention_mask=mask))
    wanted = dependency_cone(model, tokens)
    assert np.array_equal(found.states, wanted.states) and np.array_equal(found.edges.weight, wanted.edges.weight)
    with pytest.raises(ValueError, match=r"prompt 0 holds the padding token 0 \(2 of 2 prompts do\)"):
        dependency_cone(model, padded)
