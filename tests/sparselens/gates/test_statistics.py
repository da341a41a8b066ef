"""Edge counts, compared with counts by hand."""

from typing import Any

import pytest
import torch
from torch.nn.functional import pad

import sparselens as sl
from sparselens.gates.gate import GateSettings
from sparselens.gates.statistics import GateStatistics
from sparselens.training.evaluation import evaluate
from tests.tiny_models import tiny_bridge, tiny_model, tiny_tokens


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
    assert counts.all_pairs.tolist() == [[9.0] * 4, [6.5] * 4, [9.0] * 4]  # padding is not counted


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
    with pytest.raises(ValueError, match=r"layers \[0, 1\] recorded nothing"):
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


def counted(model: Any, batch: Any) -> list[float]:
    """All counts for one row, or for the same row with padding."""
    with torch.no_grad(), sl.record_gates(model) as gates:
        model(**batch) if isinstance(batch, dict) else model(batch)
    names = ("visible_pairs", "open", "queries", "all_pairs", "expected")
    return [float(getattr(gates, name).sum()) for name in names]


@pytest.mark.parametrize("sides", [(0, 4), (4, 0), (1, 3)], ids=["right", "left", "both"])
@pytest.mark.parametrize("kind", ["llama eager", "llama triton", "bert eager", "llama bridge", "mpt bridge"])
def test_padding_is_not_counted_on_either_side(kind: str, sides: tuple[int, int]) -> None:
    family, way = kind.split()
    model = tiny_bridge(family) if way == "bridge" else tiny_model(family)
    sl.sparsify(model, 0.0, **({} if way == "bridge" else {"implementation": way}))
    tokens = tiny_tokens(1, 6)
    name = "input" if way == "bridge" else "input_ids"
    padded = {name: pad(tokens, sides), "attention_mask": pad(torch.ones_like(tokens), sides)}
    if family == "bert":  # positions are numbers of columns there
        padded["position_ids"] = pad(torch.arange(6)[None], sides)
    assert counted(model, padded) == pytest.approx(counted(model, tokens), rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "neo", "opt", "bloom"])
@pytest.mark.parametrize("sides", [(0, 4), (4, 0)], ids=["right", "left"])
def test_a_row_has_its_loss_and_edges_however_it_is_padded(family: str, sides: tuple[int, int]) -> None:
    """Also where transformers counts positions from the first column (GPT-2, GPT-Neo), padding or not."""
    model = tiny_model(family)
    try:
        sl.sparsify(model, 0.0)
    except ValueError:  # custom attention code: can be gated only through TransformerLens
        model = sl.sparsify(tiny_bridge(family), 0.0)
    tokens = tiny_tokens(1, 6)
    alone = evaluate(model, [tokens])
    found = evaluate(model, [{"input_ids": pad(tokens, sides), "attention_mask": pad(torch.ones_like(tokens), sides)}])
    assert found.loss == pytest.approx(alone.loss, abs=1e-5)
    assert found.open_edges == alone.open_edges
    assert found.share_of_visible_pairs == pytest.approx(alone.share_of_visible_pairs, abs=1e-9)
    assert found.share_of_all_pairs == pytest.approx(alone.share_of_all_pairs, abs=1e-9)
