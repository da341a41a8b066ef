"""Loss against open edges: numbers computed by hand, and agreement with what training reports."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import sparselens as sl
from sparselens.analyses import loss_points, measure_loss, top_k_attention
from sparselens.analyses.sparsity.row_losses import answer_losses, row_batches, text_losses
from sparselens.tasks import TASKS
from sparselens.training.evaluation import evaluate
from sparselens.training.losses import IGNORED, same_position_loss
from sparselens.training.text import Source, rows, unseen_tokens
from tests.analyses.small_models import tiny_pairs, two_layers
from tests.tiny_models import tiny_bridge, tiny_tokens


@pytest.fixture(scope="module")
def dense() -> Any:
    return tiny_bridge("gpt2")


@pytest.fixture(scope="module")
def sparse() -> Any:
    return sl.sparsify(tiny_bridge("gpt2"), 0.0)


def odds(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities).log()


# the loss of a row


def test_text_losses_by_hand():
    logits = torch.stack([odds(0.5, 0.25, 0.25), odds(0.8, 0.1, 0.1), odds(1.0, 1.0, 1.0)])[None]
    nats, tokens = text_losses(logits, torch.tensor([[2, 1, 0]]))
    assert tokens.tolist() == [2.0]
    assert nats.tolist() == pytest.approx([(math.log(4) - math.log(0.8)) / 2])


def test_padding_does_not_count_and_an_empty_row_weighs_nothing():
    logits = torch.zeros(2, 3, 5)
    batch = {"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}
    nats, tokens = text_losses(logits, batch)
    assert tokens.tolist() == [1.0, 0.0]
    assert nats.tolist() == pytest.approx([math.log(5), 0.0])


def test_labels_at_their_own_place():
    logits = torch.stack([odds(0.5, 0.5), odds(0.9, 0.1)])[None]
    batch = {"input_ids": torch.tensor([[0, 1]]), "labels": torch.tensor([[IGNORED, 1]])}
    nats, tokens = text_losses(logits, batch, same_position_loss)
    assert (nats.item(), tokens.item()) == pytest.approx((-math.log(0.1), 1.0))


def test_answer_losses_add_probabilities_at_the_end():
    pairs = sl.TokenizedPairs(
        torch.zeros(2, 2, dtype=torch.long),
        torch.ones(2, 2, dtype=torch.long),
        torch.tensor([[0, 1], [2, -1]]),
        torch.tensor([3, 3]),
        positions={"END": torch.tensor([0, 1])},
    )
    logits = torch.stack([odds(0.2, 0.3, 0.1, 0.4), odds(0.1, 0.1, 0.6, 0.2)]).repeat(2, 1, 1)
    assert answer_losses(logits, pairs).nats.tolist() == pytest.approx([-math.log(0.5), -math.log(0.6)])


def test_rows_keep_their_places_in_batches_of_any_size():
    tokens = tiny_tokens(batch=5)
    found = list(row_batches([tokens[:3], tokens[3:]], 2, torch.device("cpu")))
    assert [batch.rows.tolist() for batch in found] == [[0, 1], [2], [3, 4]]
    assert torch.equal(torch.cat([batch.inputs for batch in found]), tokens)


# a point


def test_a_point_by_hand():
    # logits at position 0 are (9, 0, 0), so the loss of token 1 is log(1 + 1 + e^9)
    point = measure_loss(two_layers(), torch.tensor([[0, 1]]), name="dense")
    assert point.loss == pytest.approx(math.log(2 + math.exp(9)), rel=1e-6)
    assert point.share_of_visible_pairs == 1.0
    assert point.share_of_all_pairs == 0.75
    assert point.edges_per_query_per_head == 1.5


def test_it_is_what_training_reports(sparse: Any):
    tokens = [tiny_tokens(batch=3), tiny_tokens(batch=2, seed=1)]
    point, reported = measure_loss(sparse, tokens), evaluate(sparse, tokens)
    assert point.loss == pytest.approx(reported.loss, rel=1e-6)
    assert 0 < point.share_of_visible_pairs < 1
    for name in ("share_of_visible_pairs", "share_of_all_pairs", "edges_per_query_per_head"):
        assert getattr(point, name) == pytest.approx(getattr(reported, name))


def test_the_batch_size_and_training_mode_change_nothing(sparse: Any):
    tokens = tiny_tokens(batch=5)
    one, three = (measure_loss(sparse.train(), tokens, batch_size=size) for size in (1, 3))
    assert sparse.training
    sparse.eval()
    torch.testing.assert_close(one.losses, three.losses)
    assert one.share_of_visible_pairs == three.share_of_visible_pairs
    assert one.interval().mean == pytest.approx(one.loss)
    assert one.interval().low < one.loss < one.interval().high


def test_pairs_of_several_lengths_keep_their_order(dense: Any):
    clean, corrupted = tiny_tokens(batch=3, length=4), tiny_tokens(batch=3, length=4, seed=1)
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]])
    pairs = sl.TokenizedPairs(clean, corrupted, torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6]), mask)
    losses = measure_loss(dense, pairs).losses
    assert losses.tolist() == pytest.approx([measure_loss(dense, pairs[[row]]).loss for row in range(3)], rel=1e-5)


# the figure


def test_points_in_order_each_what_it_says(dense: Any, sparse: Any):
    tokens = tiny_tokens(batch=4)
    points = loss_points(dense, sparse, tokens, control=tiny_bridge("gpt2", seed=1), progress=False)
    assert [point.name for point in points] == ["dense", "top-1", "top-2", "top-4", "top-8", "control", "sparse"]
    assert [p.edges_per_query_per_head for p in points[:5]] == pytest.approx([5, 1, 17 / 9, 30 / 9, 44 / 9])
    assert points[2].share_of_visible_pairs == pytest.approx(17 / 45)
    assert points[2].share_of_all_pairs == pytest.approx(17 / 81)
    with top_k_attention(dense, 2):
        assert torch.equal(measure_loss(dense, tokens).losses, points[2].losses)
    assert not sl.is_sparse(dense)


def test_as_many_keys_as_tokens_is_the_dense_model(dense: Any, sparse: Any):
    points = loss_points(dense, sparse, tiny_pairs(), counts=[9], progress=False)
    assert torch.equal(points[0].losses, points[1].losses)
    assert points[1].share_of_visible_pairs == 1.0


def test_answers_of_a_bidirectional_model():
    dense, sparse = sl.load("addition"), sl.load("addition-sparse")
    pairs = TASKS["addition"].tokenize(sparse.tokenizer, 20)
    points = loss_points(dense, sparse, pairs, progress=False)
    assert [point.name for point in points] == ["dense", "top-1", "top-2", "top-4", "top-8", "sparse"]
    assert points[0].loss < 0.05
    assert points[-1].loss < 0.05 < points[1].loss
    assert points[0].edges_per_query_per_head == 11.0
    assert points[-1].edges_per_query_per_head < 0.1


def test_labels_of_a_mapping(dense: Any):
    tokens = tiny_tokens()
    batch = {"input_ids": tokens, "labels": tokens}
    assert measure_loss(dense, batch, partial(text_losses, loss=same_position_loss)).weights.tolist() == [9.0, 9.0]
    assert torch.equal(measure_loss(dense, batch).losses, measure_loss(dense, tokens).losses)


def test_refusals(dense: Any, sparse: Any):
    tokens = tiny_tokens()
    with pytest.raises(ValueError, match="without gates"):
        loss_points(sparse, sparse, tokens)
    with pytest.raises(ValueError, match="with gates"):
        loss_points(dense, dense, tokens)
    with pytest.raises(ValueError, match="no row"):
        measure_loss(dense, [])
    with pytest.raises(ValueError, match="at least 1"):
        measure_loss(dense, tokens, batch_size=0)
    with pytest.raises(ValueError, match="loss of row 1 is not finite"):
        measure_loss(dense, tokens, lambda logits, batch: text_losses(logits, batch)._replace(nats=NOT_FINITE))


NOT_FINITE = torch.tensor([0.0, math.nan])


def test_stories(shared_data: Path):
    dense, sparse = sl.load("stories260k"), sl.load("stories260k-sparse")
    stories = Source(str(shared_data / "text/tinystories_sample_2M.txt"))
    tokens, _ = unseen_tokens(stories, dense.tokenizer, {"sparse": None}, 80 * 64)
    batches = rows(tokens, 64, 32)
    points = {p.name: p for p in loss_points(dense, sparse, batches, counts=[1, 4, 64], progress=False)}
    assert torch.equal(points["top-64"].losses, points["dense"].losses)
    assert points["sparse"].loss == pytest.approx(points["dense"].loss, abs=0.05)
    assert points["sparse"].edges_per_query_per_head < 1.0 < points["top-4"].edges_per_query_per_head
    assert points["top-4"].loss > points["sparse"].loss < points["top-1"].loss


def test_the_example_runs():
    lines = [line.partition(">>> ")[2] for line in str(loss_points.__doc__).splitlines() if ">>> " in line]
    dense = tiny_bridge("gpt2")
    names = {"dense": dense, "sparse": sl.sparsify(tiny_bridge("gpt2"), 0.0), "tokens": tiny_tokens(2, 64).flatten()}
    *before, last = (line.replace("seq_len=64", "seq_len=16") for line in lines)
    exec("\n".join(before), names | {"loss_points": loss_points}, found := {})
    shown = eval(last, names | found | {"loss_points": loss_points})
    assert [name for name, _, _ in shown] == ["dense", "top-1", "top-2", "top-4", "top-8", "top-16", "sparse"]
