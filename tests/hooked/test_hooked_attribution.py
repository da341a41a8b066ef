"""Attribution, exact edge patching and circuits of a HookedTransformer, against its own inputs by head."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

import sparselens as sl
from sparselens.analyses import (
    attribute_attention_edges,
    attribute_edges,
    attribute_nodes,
    completeness,
    faithfulness,
    patch_edges,
    pruned_circuit,
)
from sparselens.analyses.circuits.ablated_run import ablated_by, edge_gradient
from sparselens.analyses.engine.request import open_request
from sparselens.circuits.circuit import Circuit
from sparselens.circuits.graph import Graph
from sparselens.prompts.metrics import logit_difference

QUIET: dict[str, Any] = {"progress": False}
ROTARY = {"positional_embedding_type": "rotary", "rotary_dim": 4}
KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "folded": {"normalization_type": "LNPre"},
    "no norm": {"normalization_type": None},
    "llama": {"n_key_value_heads": 1, "normalization_type": "RMS", "gated_mlp": True, **ROTARY},
    "neox": {"parallel_attn_mlp": True, **ROTARY},
    "attention only": {"attn_only": True},
    "alibi": {"positional_embedding_type": "alibi"},
    "gemma2": {"use_normalization_before_and_after": True, "normalization_type": "RMS", "attn_scores_soft_cap": 2.0},
    "scaled": {"scale_attn_by_inverse_layer_idx": True},
}


def make_model(kind: str, gate_bias: float | None = None, dtype: torch.dtype = torch.float64) -> HookedTransformer:
    sizes: dict[str, Any] = {"n_layers": 2, "d_model": 8, "n_ctx": 6, "d_head": 4, "n_heads": 2, "d_vocab": 11}
    if kind != "attention only":
        sizes["act_fn"] = "gelu"
    config = HookedTransformerConfig(**sizes, **KINDS[kind], seed=0, device="cpu", dtype=torch.float32)
    model = HookedTransformer(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.3)
        for block in model.blocks if kind == "gemma2" else ():
            block.attn.b_O.zero_()  # behind a norm it would be in nobody's share
    model = model.to(dtype)
    return (model if gate_bias is None else sl.sparsify(model, gate_bias)).eval()


def make_pairs() -> sl.TokenizedPairs:
    clean, corrupted = torch.randint(11, (2, 3, 6), generator=torch.Generator().manual_seed(0))
    return sl.TokenizedPairs(clean, corrupted, torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6]))


def near_pairs(model: HookedTransformer, size: float) -> sl.TokenizedPairs:
    """Prompts that differ in one token, 9 for 10, whose embedding is moved so far from that of 10."""
    pairs = make_pairs()
    clean = torch.where(pairs.clean == 9, 8, pairs.clean)
    clean[:, 2] = 10
    corrupted = clean.clone()
    corrupted[:, 2] = 9
    direction = torch.randn(8, generator=torch.Generator().manual_seed(1)).to(model.embed.W_E)
    with torch.no_grad():
        model.embed.W_E[9] = model.embed.W_E[10] + size * direction
    return sl.TokenizedPairs(clean, corrupted, pairs.answer, pairs.wrong_answer)


def metric_of(model: Any, tokens: Tensor, pairs: sl.TokenizedPairs) -> Tensor:
    with torch.no_grad():
        return logit_difference(model(tokens), pairs).float()


def circuit_of(graph: Graph, kept: Tensor) -> Circuit:
    return Circuit(graph, kept, torch.zeros(graph.exists.shape))


# -- one edge, by the hook points that HookedTransformer has for what each head and MLP reads


def reader_point(name: str) -> tuple[str, int | None]:
    """Where a destination reads, and which head of what is shown there."""
    if name == "logits":
        return "blocks.1.hook_resid_post", None
    if name.startswith("m"):
        return f"blocks.{name[1:]}.hook_mlp_in", None
    layer, head, receiver = name[1], name[4], name[6]
    return f"blocks.{layer}.hook_{receiver}_input", int(head)


def written(run: Any, source: str) -> Tensor:
    if source == "input":
        return run["blocks.0.hook_resid_pre"]
    if source.startswith("m"):
        return run[f"blocks.{source[1:]}.hook_mlp_out"]
    return run[f"blocks.{source[1]}.attn.hook_result"][:, :, int(source[4])]


@pytest.mark.parametrize("gate_bias", [None, 0.0])
@pytest.mark.parametrize("kind", ["gpt2", "folded", "no norm", "neox", "attention only", "alibi", "scaled"])
def test_every_edge_as_by_its_own_hook_points(kind: str, gate_bias: float | None):
    model, pairs = make_model(kind, gate_bias), make_pairs()
    scores = patch_edges(model, pairs, logit_difference, **QUIET)
    assert scores.per_prompt is not None
    model.set_use_split_qkv_input(True)
    model.set_use_attn_result(True)
    if kind != "attention only":
        model.set_use_hook_mlp_in(True)
    with torch.no_grad():
        runs = [model.run_with_cache(tokens)[1] for tokens in (pairs.clean, pairs.corrupted)]
    moved = 0
    for edge in scores.graph.edge_names(scores.exists):
        source, destination = edge.split("->")
        point, head = reader_point(destination)
        change = torch.sub(*(written(run, source) for run in runs))

        def corrupt(read: Tensor, hook: Any) -> Tensor:
            (read if head is None else read[:, :, head]).sub_(change)  # noqa: B023
            return read

        with torch.no_grad():
            logits = model.run_with_hooks(pairs.clean, fwd_hooks=[(point, lambda x, hook: corrupt(x.clone(), hook))])
        wanted = scores.clean - logit_difference(logits, pairs).float()
        found = scores.per_prompt[(slice(None), *scores.graph.edge(edge))]
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)
        moved += bool(wanted.abs().max() > 1e-4)
    assert moved > 0.5 * scores.graph.n_edges * (1 if gate_bias is None else 0.5)


# -- what must hold of all


@pytest.mark.parametrize("kind", KINDS)
def test_attribution_is_exact_for_a_small_difference(kind: str):
    """Two opposite small changes of one token's embedding: their even part is of second order."""
    model, ends = make_model(kind), list[Tensor]()
    for size in (1e-3, -1e-3):
        near = near_pairs(model, size)
        for method in ("eap", "exact"):
            scores = attribute_edges(model, near, logit_difference, method, **QUIET).per_prompt
            assert scores is not None
            ends.append(scores.double())
    eap, exact = ends[0] - ends[2], ends[1] - ends[3]
    assert float((eap - exact).abs().max() / exact.abs().max()) < 3e-3


@pytest.mark.parametrize("kind", KINDS)
def test_integrated_gradients_at_the_input_add_up_to_the_whole_difference(kind: str):
    model = make_model(kind)
    pairs = near_pairs(model, 0.1)
    rough, fine = (
        attribute_edges(model, pairs, logit_difference, "eap-ig", steps, **QUIET).mean[0].sum() for steps in (4, 8)
    )
    gap = (metric_of(model, pairs.clean, pairs) - metric_of(model, pairs.corrupted, pairs)).mean()
    torch.testing.assert_close(2 * fine - rough, gap, atol=1e-4, rtol=2e-2)  # the error of the sum falls as 1 / steps


@pytest.mark.parametrize("gate_bias", [None, 0.0])
@pytest.mark.parametrize("kind", KINDS)
def test_all_edges_are_the_clean_run_and_none_the_corrupted_one(kind: str, gate_bias: float | None):
    model, pairs = make_model(kind, gate_bias), make_pairs()
    graph = attribute_edges(model, pairs, logit_difference, **QUIET).graph
    clean, corrupted = (metric_of(model, tokens, pairs) for tokens in (pairs.clean, pairs.corrupted))
    all_edges, none = (circuit_of(graph, kept) for kept in (graph.exists, torch.zeros_like(graph.exists)))
    for ablation in ("corrupted", "mean", "zero"):
        whole = faithfulness(model, all_edges, pairs, logit_difference, ablation, **QUIET)
        torch.testing.assert_close(whole.circuit, clean, atol=1e-5, rtol=1e-4)
    nothing = faithfulness(model, none, pairs, logit_difference, **QUIET)
    torch.testing.assert_close(nothing.circuit, corrupted, atol=1e-5, rtol=1e-4)
    rest = completeness(model, all_edges, pairs, logit_difference, **QUIET)
    torch.testing.assert_close(rest.circuit, corrupted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("gate_bias", [None, 0.0])
@pytest.mark.parametrize("kind", KINDS)
def test_edges_nodes_and_attention_edges_agree(kind: str, gate_bias: float | None):
    model, pairs = make_model(kind, gate_bias), make_pairs()
    edges = attribute_edges(model, pairs, logit_difference, **QUIET)
    nodes = attribute_nodes(model, pairs, logit_difference, **QUIET)
    torch.testing.assert_close(nodes.mean, edges.node(), atol=1e-5, rtol=1e-3)
    if kind != "gemma2":  # a norm comes after the heads: what a head writes is no linear function of its output
        attention = attribute_attention_edges(model, pairs, logit_difference, **QUIET)
        heads = [index for index, name in enumerate(edges.sources) if name.startswith("a")]
        torch.testing.assert_close(attention.mean.sum((-1, -2)).flatten(), nodes.mean[heads], atol=1e-5, rtol=1e-3)


def test_half_precision():
    pairs = make_pairs()
    exact = attribute_edges(make_model("gpt2"), pairs, logit_difference, "eap", **QUIET).mean
    for method in ("eap", "exact"):
        found = attribute_edges(make_model("gpt2", dtype=torch.bfloat16), pairs, logit_difference, method, **QUIET)
        assert found.mean.isfinite().all() and found.mean.dtype == torch.float32
        if method == "eap":
            assert float((found.mean - exact).abs().max() / exact.abs().max()) < 0.1


def test_a_stream_that_is_read_without_its_positions_is_refused():
    KINDS["shortformer"] = {"positional_embedding_type": "shortformer"}
    try:
        with pytest.raises(ValueError, match="cannot read layer 0 of this HookedTransformer: queries are not"):
            attribute_edges(make_model("shortformer"), make_pairs(), logit_difference, **QUIET)
    finally:
        del KINDS["shortformer"]


@pytest.mark.parametrize("gate_bias", [None, 0.0])
@pytest.mark.parametrize("kind", sorted({*KINDS} - {"gemma2"}))  # whose post-norms EAP holds fixed
def test_with_all_edges_what_each_adds_is_eap(kind: str, gate_bias: float | None):
    model, pairs = make_model(kind, gate_bias), make_pairs()
    eap = attribute_edges(model, pairs, logit_difference, "eap", **QUIET).mean
    with torch.no_grad(), open_request(model, pairs, logit_difference, **QUIET) as request:
        graph, batch = request.reading.graph, request.batch(torch.arange(len(pairs)))
        start = batch.record([name := request.reading.layers[0].at("hook_resid_pre")]).recorded[name]
        found = edge_gradient(batch, graph.exists.to(start), ablated_by(batch), start) * graph.exists
    torch.testing.assert_close((found / len(pairs)).to(eap), eap, rtol=1e-3, atol=1e-5)
    assert pruned_circuit(model, pairs, attribute_edges(model, pairs, logit_difference, **QUIET), **QUIET)
