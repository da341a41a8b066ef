"""Loss against open edges of a HookedTransformer."""

from importlib.util import find_spec

import pytest
import torch

import sparselens as sl
from sparselens.analyses import loss_points

if find_spec("transformer_lens.HookedTransformer") is None:
    pytest.skip("this TransformerLens has no HookedTransformer (it went with 4.0)", allow_module_level=True)

from transformer_lens import HookedTransformer, HookedTransformerConfig

pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")


def make_model() -> HookedTransformer:
    config = HookedTransformerConfig(
        n_layers=2, d_model=8, n_ctx=4, d_head=4, n_heads=2, d_vocab=6, act_fn="gelu", seed=0, device="cpu"
    )
    return HookedTransformer(config).eval()


def test_points_from_top_1_to_all():
    tokens = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]])
    dense, sparse = make_model(), sl.sparsify(make_model(), 0.0)
    points = {point.name: point for point in loss_points(dense, sparse, tokens, progress=False)}
    assert list(points) == ["dense", "top-1", "top-2", "top-4", "sparse"]
    assert torch.equal(points["top-4"].losses, points["dense"].losses)
    assert [points[f"top-{k}"].edges_per_query_per_head for k in (1, 2, 4)] == pytest.approx([1, 7 / 4, 10 / 4])
    assert points["dense"].loss == pytest.approx(dense(tokens, return_type="loss").item(), rel=1e-5)
    assert not sl.is_sparse(dense)
