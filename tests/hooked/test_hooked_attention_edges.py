"""Attention edges of a HookedTransformer."""

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

import sparselens as sl
from sparselens.analyses import attention_edges

TOKENS = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]])


def make_model() -> HookedTransformer:
    config = HookedTransformerConfig(
        n_layers=2, d_model=8, n_ctx=4, d_head=4, n_heads=2, d_vocab=6, act_fn="gelu", seed=0, device="cpu"
    )
    return HookedTransformer(config).eval()


def test_dense_edges_are_the_visible_pairs():
    assert attention_edges(make_model(), TOKENS).per_layer().tolist() == [[20, 20], [20, 20]]


def test_sparse_edges_are_the_open_gates():
    model = sl.sparsify(make_model(), gate_bias=0.0)
    edges = attention_edges(model, TOKENS)
    with sl.record_gates(model) as gates:
        model(TOKENS)
    assert edges.per_layer().mean(0).tolist() == gates.open.sum(1).tolist()
    assert 0 < len(edges) < 80
