"""Counting edges, by hand."""

import pytest
import torch

import sparselens as sl
from sparselens.gates.gate import GateSettings
from sparselens.gates.statistics import GateStatistics
from tests.tiny_models import tiny_model, tiny_tokens


def two_layers() -> GateStatistics:
    """One example of three tokens, causal, one head: six visible pairs of nine, in two layers."""
    counts = GateStatistics(GateSettings(0.0, n_layers=2))
    visible = torch.ones(3, 3).tril().bool()[None, None]
    counts.add(0, torch.tensor([[2.5]], requires_grad=True), torch.tensor([[2.0]]), visible)
    counts.add(1, torch.tensor([[1.0]], requires_grad=True), torch.tensor([[1.0]]), visible)
    return counts


def test_both_normalisations_by_hand() -> None:
    counts = two_layers()
    assert counts.open.tolist() == [[2.0], [1.0]]
    assert counts.visible_pairs.tolist() == [[6.0], [6.0]]
    assert counts.all_pairs.tolist() == [[9.0], [9.0]]
    assert counts.open_fraction.flatten().tolist() == pytest.approx([2 / 6, 1 / 6])
    assert counts.share_of_visible_pairs == pytest.approx(3 / 12)
    assert counts.share_of_all_pairs == pytest.approx(3 / 18)
    assert counts.edges_per_query_per_head == pytest.approx(3 / 6)


def test_masks_are_counted_in_every_form() -> None:
    """A mask for both rows and all heads; one per row and head, additive; two masks in turn."""
    shared = torch.ones(3, 3).tril().bool()[None, None]
    own = torch.zeros(2, 4, 3, 3).masked_fill(~shared, torch.finfo(torch.float16).min)
    own[1, :, :, 0] = -torch.inf  # a padded row: its first query sees nothing
    counts = GateStatistics(GateSettings(0.0, n_layers=3))
    for layer, mask in enumerate((shared, own, shared)):
        counts.add(layer, torch.zeros(2, 4), torch.zeros(2, 4), mask)
    assert counts.visible_pairs.tolist() == [[6.0] * 4, [4.5] * 4, [6.0] * 4]
    assert counts.queries.tolist() == [[3.0] * 4, [2.5] * 4, [3.0] * 4]
    assert counts.all_pairs.tolist() == [[9.0] * 4] * 3


def test_later_layers_may_count_for_more() -> None:
    counts = two_layers()
    assert counts.expected_share().item() == pytest.approx((2.5 + 1.0) / 12)
    assert counts.expected_share(layer_cost=1.5).item() == pytest.approx((2.5 + 1.5 * 1.0) / 12)


def test_means_are_per_example_however_they_came() -> None:
    model = sl.sparsify(tiny_model("gpt2"))
    tokens = tiny_tokens()
    with torch.no_grad(), sl.record_gates(model) as whole:
        model(tokens)
    with torch.no_grad(), sl.record_gates(model) as rows:
        for row in tokens:
            model(row[None])
    assert torch.equal(whole.open, rows.open)
    assert torch.allclose(whole.expected, rows.expected)


def test_what_has_not_run_is_named() -> None:
    with sl.record_gates(sl.sparsify(tiny_model("gpt2"))) as gates:
        pass
    with pytest.raises(ValueError, match=r"layers \[0, 1\] have recorded nothing"):
        _ = gates.open


def test_padding_without_a_mask_is_refused() -> None:
    model = sl.load("stories260k-sparse")
    tokens = model.to_tokens("Lily saw a big dog.")
    padded = torch.cat([torch.full((1, 3), model.tokenizer.pad_token_id), tokens], dim=1)
    seen = torch.arange(padded.shape[1])[None] >= 3
    with torch.no_grad(), sl.record_gates(model) as plain:
        model(tokens)
    with torch.no_grad(), sl.record_gates(model) as masked:
        model(padded, attention_mask=seen.long())
    assert torch.equal(masked.visible_pairs, plain.visible_pairs) and torch.equal(masked.open, plain.open)
    for run in (model, model.run_with_cache, model.run_with_hooks):
        with torch.no_grad(), sl.record_gates(model), pytest.raises(ValueError, match="holds the padding token"):
            run(padded)
    model(padded)  # not outside the block
