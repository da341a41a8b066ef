"""Edge scores: hand-computed, against one run per edge, and against TransformerLens; every family, dense and sparse."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import sparselens as sl
from sparselens import analyses
from sparselens.analyses.attribution import integration
from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.attribution.edges import attribute_edges
from sparselens.analyses.attribution.exact import patch_edges
from sparselens.analyses.circuits.search import faithful_circuit
from sparselens.analyses.circuits.stability import edges_needed, share_curves
from sparselens.analyses.figures.viewer import circuit_viewer
from sparselens.analyses.patching.activation_patching import patch_heads
from sparselens.prompts.metrics import logit_difference
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.tasks import TASKS
from tests.analyses.small_models import near_pairs, shipped, tiny_pairs, two_layer_pairs, two_layers
from tests.tiny_models import FAMILIES, bridge_of, tiny_bridge, tiny_model

METHODS = ("eap", "eap-ig", "eap-ig-activations", "clean-corrupted", "exact")
READABLE = sorted(set(FAMILIES) - {"bert"})


def scores_of(model: Any, pairs: TokenizedPairs, method: str = "eap", **options: Any) -> EdgeScores:
    """With two steps, enough to be several."""
    metric, options = options.pop("metric", logit_difference), {"steps": 2, "progress": False} | options
    return attribute_edges(model, pairs, metric, method, **options)  # pyright: ignore


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def per_prompt(model: Any, pairs: TokenizedPairs, method: str = "eap", **options: Any) -> Tensor:
    scores = scores_of(model, pairs, method, **options).per_prompt
    assert scores is not None
    return scores


# -- by hand


@pytest.mark.parametrize("method", METHODS)
def test_scores_of_a_linear_model_worked_out_by_hand(method: str):
    """What is written at the two positions, clean and corrupted.

    input      (1, 0) (0, 1)        (2, 1) (0, 1)
    a0.h0      (2, 0) (1, 1)        (4, 2) (2, 2)
    a1.h0             (4, 6)               (8, 18)
    logits            (5, 8) = -3          (10, 21) = -11
    The gradient is (1, -1) at the logits and (1, -3) at both positions of what a1.h0 reads as values; at what a0.h0
    reads at position 0, 2 (1, -3) + ((1, -1) + (1, -3)) = (4, -10).
    """
    scores = scores_of(two_layers(), two_layer_pairs(), method)
    worked_out = (
        {  # three thirds: no gradient passes through the input, through a0.h0, through a1.h0
            "input->a0.h0<v>": (6.0 + 0 + 0) / 3,  # last by the logits alone: (-1, -1) . (1, -1)
            "input->a1.h0<v>": (2.0 + 2 + 0) / 3,
            "a0.h0->a1.h0<v>": (6.0 + 6 + 0) / 3,
            "a1.h0->logits": 8.0,
        }
        if method == "eap-ig-activations"
        else {
            "input->a0.h0<v>": 6.0,  # (-1, -1) . (4, -10)
            "input->a1.h0<v>": 2.0,  # (-1, -1) . (1, -3)
            "a0.h0->a1.h0<v>": 6.0,  # (-2, -2) . (1, -3) + (-1, -1) . (1, -3)
            "a1.h0->logits": 8.0,  # (-4, -12) . (1, -1)
        }
    )
    for name in scores.graph.edge_names(scores.exists):
        assert float(scores.mean[scores.graph.edge(name)]) == pytest.approx(worked_out.get(name, 0), abs=1e-5), name
    assert (scores.clean.item(), scores.corrupted.item()) == (-3, -11)


def test_auto_is_exact_for_small_graphs_and_the_default_is_eap_ig(monkeypatch: pytest.MonkeyPatch):
    model, pairs = two_layers(), two_layer_pairs()
    auto, exact = (scores_of(model, pairs, method) for method in ("auto", "exact"))
    assert auto.method == "exact" and torch.equal(auto.mean, exact.mean)
    monkeypatch.setattr(integration, "FEW_EDGES", auto.graph.n_edges - 1)
    assert scores_of(model, pairs, "auto").method == "eap-ig"
    assert attribute_edges(model, pairs, progress=False).method == "eap-ig"


def test_the_circuits_of_these_scores():
    scores = scores_of(two_layers(), two_layer_pairs())
    assert scores.node().tolist() == pytest.approx([8, 6, 8])  # clean - corrupted: everything comes from the input
    # 8 + 6 + 6 of 22 is more than 0.9 of it
    assert scores.smallest(0.9).edges == ["input->a0.h0<v>", "a0.h0->a1.h0<v>", "a1.h0->logits"]
    assert scores.top(1).edges == scores.greedy(1).edges == ["a1.h0->logits"]


# -- against one run an edge


@pytest.mark.parametrize("family", READABLE)
def test_scores_are_exact_for_a_small_difference(family: str):
    """The odd part of the effects of two opposite small changes: the even part is of second order."""
    in_double = family != "gpt-oss"  # its experts have no double precision
    model = tiny_model(family, seed=1)
    model = bridge_of(model.double() if in_double else model)
    ends = together(*near_pairs(model, 1e-3))
    eap, exact = (odd_part(per_prompt(model, ends, method)) for method in ("eap", "exact"))
    assert relative(eap, exact) < (3e-3 if in_double else 1e-2)


def together(*some: TokenizedPairs) -> TokenizedPairs:
    parts = ([getattr(pairs, part) for pairs in some] for part in ("clean", "corrupted", "answer", "wrong_answer"))
    return TokenizedPairs(*(torch.cat(part) for part in parts))


def odd_part(scores: Tensor) -> Tensor:
    """The odd part of scores under a change (first half) and under the opposite change."""
    return torch.sub(*scores.chunk(2)) / 2


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "gptj"])
def test_scores_of_a_sparse_model_are_exact_for_a_small_difference(family: str):
    """So small that no gate opens or closes; closed gates pass no gradient."""
    model = sl.sparsify(bridge_of(tiny_model(family, seed=1).double()), gate_bias=-0.1)
    with sl.record_gates(model) as gates:
        model(tiny_pairs().clean)
    assert 0.05 < float(gates.open_fraction.mean()) < 0.95
    ends = together(*near_pairs(model, 1e-5))
    eap, exact = (odd_part(per_prompt(model, ends, method)) for method in ("eap", "exact"))
    assert relative(eap, exact) < 0.02  # transformers computes the softmax in single precision


def test_open_gates_score_as_the_dense_model():
    pairs = tiny_pairs()
    dense = per_prompt(tiny_bridge("llama"), pairs)
    assert relative(per_prompt(sl.sparsify(tiny_bridge("llama"), gate_bias=1e4), pairs), dense) < 1e-4


# -- against TransformerLens


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
def test_eap_agrees_with_transformer_lens(family: str):
    """Its gradient is that of the corrupted run: with the prompts exchanged, its scores are ours with opposite sign."""
    from transformer_lens.tools.analysis import EdgeAttributionConfig, attribution_patch

    options = {"num_key_value_heads": 4} if family == "llama" else {}  # theirs refuses shared keys and values
    model, pairs = tiny_bridge(family, **options), tiny_pairs()
    ours = scores_of(model, pairs)
    for prompt in range(len(pairs)):
        one = pairs[[prompt]]
        theirs = torch.zeros_like(ours.mean)
        result = attribution_patch(
            model,
            one.corrupted,
            one.clean,
            lambda logits, one=one: logit_difference(logits, one).sum(),
            EdgeAttributionConfig(granularity="edge"),
        )
        for (writer, reader), score in result.edge_scores.items():
            theirs[ours.graph.edge(f"{_name(writer)}->{_name(reader)}")] -= score  # one for every position
        assert relative(ours.of_prompt(prompt).mean, theirs) < 1e-4


def _name(node: Any) -> str:
    kinds = {"embed": "input", "attn_head_out": f"a{node.layer}.h{node.head}", "logits": "logits"}
    kinds |= {f"{r}_input": f"a{node.layer}.h{node.head}<{r}>" for r in "qkv"}
    return kinds.get(node.kind, f"m{node.layer}")


@pytest.mark.parametrize("family", ["gpt2", "neox"])
def test_exact_patching_agrees_with_transformer_lens_path_patching(family: str):
    """Its direct paths, from every head to every later query, key and value, one prompt at a time."""
    from transformer_lens.patching import get_act_patch_direct_path

    model, pairs = tiny_bridge(family), tiny_pairs(1)
    exact = scores_of(model, pairs, "exact")
    (_, clean), (_, corrupted) = (model.run_with_cache(tokens) for tokens in (pairs.clean, pairs.corrupted))
    compared = 0
    for receiver in "qkv":
        for head in range(4):
            patched = get_act_patch_direct_path(
                model,
                pairs.clean,  # what they call corrupted is what is patched
                corrupted,
                clean,
                lambda logits: logit_difference(logits, pairs).sum(),
                0,
                head,
                receiver,  # pyright: ignore
                verbose=False,
            )
            for reader in range(4):
                ours = float(exact.mean[exact.graph.edge(f"a0.h{head}->a1.h{reader}<{receiver}>")])
                assert ours == pytest.approx(float(exact.clean - patched[1, reader]), abs=2e-6)
                compared += 1
    assert compared == 48


# -- identities


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "gemma2", "olmo2"])
def test_scores_out_of_a_source_add_up_to_its_own(family: str):
    """The gradient of the metric at what a source writes, times the difference that it makes there."""
    model, pairs = tiny_bridge(family), tiny_pairs()
    point, write = {"m0": ("mlp", "hook_mlp_out"), "input": ("input", "hook_resid_pre")}, dict[str, float]()
    for name, (_, hook) in point.items():
        ends: list[Tensor] = []
        model.run_with_hooks(pairs.corrupted, fwd_hooks=[(f"blocks.0.{hook}", lambda x, hook: ends.append(x.detach()))])  # noqa: B023
        gradient: list[Tensor] = []

        def watch(x: Tensor, hook: Any) -> Tensor:
            x = x.detach().requires_grad_()
            gradient.append(x)  # noqa: B023
            return x

        with model.hooks(fwd_hooks=[(f"blocks.0.{hook}", watch)]):
            logit_difference(model(pairs.clean), pairs).sum().backward()
        assert gradient[0].grad is not None
        write[name] = float(((gradient[0].detach() - ends[0]) * gradient[0].grad).sum()) / len(pairs)
    scores = scores_of(model, pairs)
    node = dict(zip(scores.sources, scores.node().tolist(), strict=True))
    assert {name: node[name] for name in write} == pytest.approx(write, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_scores_do_not_depend_on_the_batch(method: str, monkeypatch: pytest.MonkeyPatch):
    model, pairs = tiny_bridge("gpt2", n_head=2), tiny_pairs(3)
    at_once = scores_of(model, pairs, method, memory=2**30)
    assert at_once.per_prompt is not None
    torch.testing.assert_close(at_once.mean, at_once.per_prompt.mean(0))
    one_by_one = scores_of(model, pairs, method, memory=smallest_budget(model, pairs, method))
    torch.testing.assert_close(one_by_one.per_prompt, at_once.per_prompt, rtol=1e-4, atol=5e-6)
    alone = scores_of(model, pairs[[2]], method)
    torch.testing.assert_close(alone.mean, at_once.per_prompt[2], rtol=1e-4, atol=5e-6)


def smallest_budget(model: Any, pairs: TokenizedPairs, method: str) -> int:
    with pytest.raises(ValueError, match=r"memory = 1 bytes is too small: one prompt takes \d+") as refused:
        scores_of(model, pairs, method, memory=1)
    return int(str(refused.value).rsplit(" ", 1)[1])


def test_prompts_of_several_lengths_are_scored_each_at_its_own():
    model = tiny_bridge("gpt2")
    long, short = tiny_pairs(2, 9), tiny_pairs(2, 6)
    mixed = TokenizedPairs(
        torch.cat([torch.nn.functional.pad(short.clean, (0, 3)), long.clean]),
        torch.cat([torch.nn.functional.pad(short.corrupted, (0, 3)), long.corrupted]),
        torch.cat([short.answer, long.answer]),
        torch.cat([short.wrong_answer, long.wrong_answer]),
        attention_mask=(torch.arange(9) < torch.tensor([6, 6, 9, 9])[:, None]).long(),
    )
    expected = torch.cat([per_prompt(model, short), per_prompt(model, long)])
    torch.testing.assert_close(per_prompt(model, mixed), expected, rtol=1e-4, atol=1e-6)


def test_nothing_scores_where_the_prompts_are_alike():
    model, pairs = tiny_bridge("gpt2", n_head=2), tiny_pairs(1, changed=())
    for method in METHODS:
        assert not scores_of(model, pairs, method).mean.any()


@pytest.mark.parametrize("family", ["llama", "phi3", "olmo2", "gemma3"])
def test_query_heads_of_a_group_add_up_to_the_shared_head(family: str):
    """The gradient that reaches a shared key or value, at the model's own hook point, is that of all its heads."""
    model, pairs = tiny_bridge(family), tiny_pairs()
    scores = scores_of(model, pairs)
    for layer, name in ((0, "k"), (1, "v")):
        watched: list[Tensor] = []

        def watch(x: Tensor, hook: Any) -> Tensor:
            watched.append(x.view_as(x))  # noqa: B023
            watched[0].retain_grad()  # noqa: B023
            return watched[0]  # noqa: B023

        differences = [
            model.run_with_cache(tokens)[1]["blocks.0.hook_resid_pre"] for tokens in (pairs.clean, pairs.corrupted)
        ]
        block = model.blocks[layer]
        stream = model.run_with_cache(pairs.clean)[1][f"blocks.{layer}.hook_resid_pre"].detach().requires_grad_()
        with model.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_{name}", watch)]):
            logit_difference(model(pairs.clean), pairs).sum().backward()
        normed = block.ln1(stream) if "ln1" in block._modules else stream
        weight = getattr(block.attn, f"W_{name.upper()}").detach()
        read = torch.einsum("btm,hme->bthe", normed, weight)
        for head in range(2):
            (reads,) = torch.autograd.grad(read[:, :, head], stream, watched[0].grad[:, :, head], retain_graph=True)
            wanted = float(((differences[0] - differences[1]) * reads).sum()) / len(pairs)
            found = sum(scores[f"input->a{layer}.h{of_group}<{name}>"] for of_group in (2 * head, 2 * head + 1))
            assert found == pytest.approx(wanted, rel=1e-3, abs=1e-5)


def test_integrated_gradients_are_the_mean_of_the_gradients_on_the_way():
    """By hand: with one step the gradient of the corrupted run, which is that of EAP with the prompts exchanged."""
    model, pairs = tiny_bridge("gpt2"), tiny_pairs()
    exchanged = TokenizedPairs(pairs.corrupted, pairs.clean, pairs.answer, pairs.wrong_answer)
    at_corrupted = -per_prompt(model, exchanged)
    torch.testing.assert_close(per_prompt(model, pairs, "eap-ig", steps=1), at_corrupted, rtol=1e-4, atol=1e-6)
    both = (per_prompt(model, pairs) + at_corrupted) / 2
    torch.testing.assert_close(per_prompt(model, pairs, "clean-corrupted"), both, rtol=1e-4, atol=1e-6)


# -- what else can be asked


def test_only_the_mean_can_be_kept():
    model, pairs = tiny_bridge("gpt2"), tiny_pairs()
    lean = scores_of(model, pairs, per_prompt=False)
    assert lean.per_prompt is None
    torch.testing.assert_close(lean.mean, scores_of(model, pairs).mean)
    with pytest.raises(ValueError, match="only the mean was kept"):
        lean.of_prompt(0)


def test_a_metric_of_ones_own_sees_all_logits():
    model, pairs = tiny_bridge("gpt2"), tiny_pairs()
    everywhere = per_prompt(model, pairs, metric=lambda logits, pairs: logits[:, 3, 5])
    ending_there = TokenizedPairs(pairs.clean[:, :4], pairs.corrupted[:, :4], pairs.answer, pairs.wrong_answer)
    expected = per_prompt(model, ending_there, metric=lambda logits, pairs: logits[:, -1, 5])
    torch.testing.assert_close(everywhere, expected, rtol=1e-4, atol=1e-6)


def test_half_precision_is_near():
    pairs = tiny_pairs()
    half = per_prompt(bridge_of(tiny_model("llama").to(torch.bfloat16)), pairs)
    assert half.dtype == torch.float32
    assert relative(half, per_prompt(tiny_bridge("llama"), pairs)) < 0.2


def test_the_model_is_left_as_it_was():
    model, pairs = tiny_bridge("llama", num_attention_heads=2, num_key_value_heads=1).train(), tiny_pairs(1)
    before = [(name, parameter.requires_grad) for name, parameter in model.named_parameters()]
    for method in METHODS:
        scores_of(model, pairs, method)
    assert model.training
    assert [(name, parameter.requires_grad) for name, parameter in model.named_parameters()] == before
    assert not any(parameter.grad is not None for parameter in model.parameters())
    assert not any(point.fwd_hooks or point.bwd_hooks for point in model.hook_dict.values())


def test_the_mean_score_of_an_edge_has_an_interval():
    scores = scores_of(tiny_bridge("gpt2"), tiny_pairs(6))
    interval = scores.interval("input->logits")
    assert interval.n == 6
    assert interval.low <= interval.mean <= interval.high


# -- what is refused


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("eapig", {}, "no such method: 'eapig'"),
        ("eap-ig", {"steps": 0}, "steps = 0"),
        ("eap", {"metric": sl.metrics.accuracy}, "has no gradient"),
        ("eap", {"memory": 1000}, "memory = 1000 bytes is too small"),
        ("exact", {"memory": 1000}, "memory = 1000 bytes is too small"),
        ("eap-ig", {"candidates": 4}, "candidates = 4 with method 'eap-ig': want at least 1"),
        ("exact", {"candidates": 0}, "candidates = 0 with method 'exact': want at least 1"),
    ],
)
def test_mistakes_name_the_value(method: str, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        scores_of(tiny_bridge("gpt2"), tiny_pairs(), method, **options)


@pytest.mark.parametrize("method", METHODS)
def test_a_metric_that_returns_a_scalar(method: str):
    with pytest.raises(ValueError, match=r"shape \[\] for 3 prompts"):
        scores_of(tiny_bridge("gpt2"), tiny_pairs(), method, metric=lambda logits, pairs: logits.mean())


@pytest.mark.parametrize("method", ["eap", "exact"])
def test_activations_that_are_not_finite(method: str):
    model = tiny_bridge("gpt2")
    pairs = tiny_pairs()
    model.original_model.get_input_embeddings().weight.data[pairs.clean[1, 0]] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        scores_of(model, pairs, method)


@pytest.mark.parametrize("method", ["eap", "exact"])
def test_prompts_of_unequal_length(method: str):
    pairs = tiny_pairs()
    mask = torch.ones_like(pairs.clean)
    shorter = mask.clone()
    shorter[1, -1] = 0
    for clean_mask in (mask, None):  # none is all ones
        unequal = replace(pairs, attention_mask=clean_mask, corrupted_mask=shorter)
        with pytest.raises(ValueError, match="pair 1 differ in length"):
            scores_of(tiny_bridge("gpt2"), unequal, method)


def test_a_model_whose_residual_stream_is_no_sum():
    with pytest.raises(ValueError, match="cannot read layer 0 of this BertForMaskedLM"):
        scores_of(tiny_bridge("bert"), tiny_pairs())


def test_another_kind_of_model():
    with pytest.raises(ValueError, match="not a GPT2LMHeadModel"):
        scores_of(tiny_model("gpt2"), tiny_pairs())


def test_exact_scores_of_chosen_edges():
    model, pairs = tiny_bridge("gpt2"), tiny_pairs()
    names = ["input->a0.h1<k>", "a0.h2->m0", "m0->a1.h3<v>", "a1.h0->logits", "m1->logits"]
    some, whole = patch_edges(model, pairs, logit_difference, names, progress=False), scores_of(model, pairs, "exact")
    chosen = some.graph.matrix(names)
    torch.testing.assert_close(some.mean[chosen], whole.mean[chosen], rtol=1e-4, atol=1e-6)
    assert some.mean[some.exists & ~chosen].isnan().all()
    with pytest.raises(ValueError, match="no such source: 'a9h6'"):
        patch_edges(model, pairs, logit_difference, ["a9h6->logits"], progress=False)
    with pytest.raises(ValueError, match="another model's"):
        patch_edges(model, pairs, logit_difference, torch.ones(2, 2, dtype=torch.bool), progress=False)


def test_circuits_are_chosen_among_the_edges_that_were_measured():
    model, pairs = tiny_bridge("gpt2"), tiny_pairs()
    names = ["input->a0.h1<k>", "a0.h2->m0", "m0->a1.h3<v>", "a1.h0->logits", "m1->logits"]
    some = patch_edges(model, pairs, logit_difference, names, progress=False)
    assert repr(some).startswith("EdgeScores(exact scores of 5 measured edges") and len(some.to_frame()) == 5
    sizes = {name: abs(some[name]) for name in names}
    best = sorted(names, key=lambda name: -sizes[name])
    assert set(some.top(2).edges) == set(best[:2]) and set(some.top(5).edges) == set(names)
    assert set(some.smallest(1.0).edges) == {name for name in names if sizes[name]}
    assert some.top(2).scores.isfinite().all() and some.greedy(1).edges == [
        max(("a1.h0->logits", "m1->logits"), key=lambda name: sizes[name])
    ]
    with pytest.raises(ValueError, match=r"n = 6: the graph has .* edges, of which 5 have a score"):
        some.top(6)
    found = some.stability(0.5)
    assert int(found.sizes.max()) <= 5 and found.rank_correlation.isfinite().all()
    assert edges_needed(some, 1.0).tolist() == [int((row != 0).sum()) for row in some.per_prompt[:, some.measured]]
    assert share_curves(some).of_mean.shape == (5,)
    circuit, _ = faithful_circuit(model, pairs, some, logit_difference, 1.0, progress=False)
    assert set(circuit.edges) <= set(names)
    assert f"{some.graph.n_edges}" in circuit_viewer(some).html


def test_scores_within_a_circuit_are_those_of_its_edges():
    scores = attribute_edges(tiny_bridge("gpt2"), tiny_pairs(2), logit_difference, progress=False)
    circuit = scores.top(7)
    inside = scores.within(circuit)
    assert torch.equal(inside.measured, circuit.kept) and inside.top(7).edges == circuit.edges
    assert torch.equal(inside.mean[circuit.kept], scores.mean[circuit.kept])
    assert inside.smallest(1.0).edges == circuit.edges
    with pytest.raises(ValueError, match="3 of the circuit's 10 edges have no score here"):
        inside.within(scores.top(10))
    sums = TASKS["addition"].tokenize(shipped("addition").tokenizer, 2)
    with pytest.raises(ValueError, match="the circuit belongs to a model with 4 layers of 2 heads, the scores to one"):
        scores.within(attribute_edges(shipped("addition"), sums, logit_difference, "eap", progress=False).top(1))


def test_exact_scores_of_candidates_find_the_circuit_of_all_exact_scores():
    model = sl.load("addition-sparse")
    pairs = TASKS["addition"].tokenize(model.tokenizer, 20)
    some, whole = (scores_of(model, pairs, "exact", candidates=n) for n in (32, None))
    tried = scores_of(model, pairs, "eap-ig").top(32).kept
    torch.testing.assert_close(some.mean[tried], whole.mean[tried], rtol=1e-4, atol=1e-5)
    assert not some.mean[~tried].any() and some.per_prompt is not None and some.per_prompt.isfinite().all()
    circuits = [
        analyses.faithful_circuit(model, pairs, scores, goal=0.8, progress=False)[0] for scores in (some, whole)
    ]
    assert circuits[0].edges == circuits[1].edges
    assert repr(some).startswith("EdgeScores(exact (32 candidates) scores of 175 edges")


def test_padding_that_cannot_be_cut_off_is_refused():
    model, pairs = tiny_bridge("gpt2"), tiny_pairs(2)
    left, right = torch.ones(2, *pairs.clean.shape[1:], dtype=torch.long)
    left[0], right[-1] = 0, 0
    sides, inside = torch.stack([left, right]), torch.ones_like(pairs.clean)
    inside[1, 4] = 0
    for mask, broken in ((sides, 0), (inside, 1)):
        padded = replace(pairs, attention_mask=mask, positions={"END": torch.tensor([5, 5])})
        for ask in (attribute_edges, patch_heads):  # two engines, one refusal
            with pytest.raises(ValueError, match=f"prompt {broken} has padding inside, or on another side"):
                ask(model, padded, logit_difference, progress=False)
