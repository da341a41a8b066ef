"""Loss against open edges of a HookedTransformer."""

import pytest
import torch

import sparselens as sl
from sparselens.analyses import loss_points
from tests.hooked.test_hooked_attention_edges import TOKENS, make_model


def test_points_from_top_1_to_all():
    dense, sparse = make_model(), sl.sparsify(make_model(), 0.0)
    points = {point.name: point for point in loss_points(dense, sparse, TOKENS, progress=False)}
    assert list(points) == ["dense", "top-1", "top-2", "top-4", "sparse"]
    assert torch.equal(points["top-4"].losses, points["dense"].losses)
    assert [points[f"top-{k}"].edges_per_query_per_head for k in (1, 2, 4)] == pytest.approx([1, 7 / 4, 10 / 4])
    assert points["dense"].loss == pytest.approx(dense(TOKENS, return_type="loss").item(), rel=1e-5)
    assert not sl.is_sparse(dense)
