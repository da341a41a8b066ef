"""Circuits of single prompts compared with that of all prompts, and the baselines that circuits must beat."""

from collections import Counter
from itertools import combinations

import pytest
import torch

from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.circuits.baselines import random_circuit, random_connected_circuits, score_by_magnitude
from sparselens.analyses.circuits.stability import edges_needed, share_curves, stability
from sparselens.circuits.circuit import Circuit
from sparselens.circuits.graph import Graph
from sparselens.circuits.selection import top
from sparselens.prompts.metrics import logit_difference
from tests.analyses.small_models import two_layer_pairs, two_layers

ONE = Graph.of_shape(1, 1)


def scores_of(*prompts: dict[str, float]) -> EdgeScores:
    per_prompt = torch.zeros(len(prompts), *ONE.exists.shape)
    for own, scores in zip(per_prompt, prompts, strict=True):
        for name, score in scores.items():
            own[ONE.edge(name)] = score
    zeros = torch.zeros(len(prompts))
    return EdgeScores(ONE, "eap", per_prompt.mean(0), per_prompt, zeros, zeros)


TWO = scores_of(
    {"input->m0": 9, "m0->logits": 1},
    {"input->m0": 3, "input->a0.h0<v>": -6, "a0.h0->logits": 1},
)


def test_circuits_of_two_prompts_by_hand():
    """Prompt 0 needs input->m0 (9 of 10), prompt 1 needs two edges (9 of 10).

    The mean scores are 6, -3, 0.5, 0.5: 9 of 10 again takes the first two.
    """
    found = stability(TWO, 0.9)
    assert found.sizes.tolist() == edges_needed(TWO, 0.9).tolist() == [1, 2]
    assert found.size_of_mean == 2
    assert found.overlap.tolist() == [[1, 0.5], [0.5, 1]]
    assert found.overlap_with_mean.tolist() == [0.5, 1]
    assert found.mean_overlap == 0.5
    assert found.size_interval().mean == 1.5
    assert found.rank_correlation[1] > found.rank_correlation[0]


def test_share_curves_by_hand():
    curves = share_curves(TWO)
    torch.testing.assert_close(curves.per_prompt[:, :3], torch.tensor([[0.9, 1, 1], [0.6, 0.9, 1]]))
    torch.testing.assert_close(curves.mean[:3], torch.tensor([0.75, 0.95, 1]))
    torch.testing.assert_close(curves.of_mean[:4], torch.tensor([0.6, 0.9, 0.95, 1]))
    assert curves.mean.shape == (ONE.n_edges,)


def test_prompts_alike_are_stable():
    alike = scores_of({"input->m0": 1, "m0->logits": 2}, {"input->m0": 1, "m0->logits": 2})
    found = stability(alike)
    assert found.mean_overlap == 1
    torch.testing.assert_close(found.rank_correlation, torch.ones(2))
    torch.testing.assert_close(share_curves(alike).mean, share_curves(alike).of_mean)


def test_the_mean_alone_says_nothing_of_stability():
    lean = EdgeScores(ONE, "eap", TWO.mean, None, TWO.clean, TWO.corrupted)
    for ask in (stability, share_curves, edges_needed):
        with pytest.raises(ValueError, match="only the mean was kept"):
            ask(lean)


def test_random_circuits():
    graph = Graph.of_shape(3, 4)
    first, again, other = (random_circuit(graph, 50, seed) for seed in (0, 0, 1))
    assert len(first) == 50
    assert first.jaccard(again) == 1
    assert first.jaccard(other) < 0.5
    with pytest.raises(ValueError, match="n = 9: the graph has 8 edges"):
        random_circuit(ONE, 9)


def layers(circuit: Circuit) -> tuple[Counter[str], Counter[str]]:
    """How many edges leave and enter every layer."""
    ends = [edge.split("->") for edge in circuit.edges]
    out, into = ([name.partition(".")[0].lstrip("am") for name in side] for side in zip(*ends, strict=True))
    return Counter(out), Counter(into)


def test_random_connected_circuits_lead_from_input_to_logits_and_have_the_degrees_of_every_layer():
    graph = Graph.of_shape(3, 4)
    circuit = top(graph, torch.randn(graph.exists.shape, generator=torch.Generator().manual_seed(0)), 60)
    connected = circuit.pruned()
    assert 20 < len(connected) < 60
    drawn = random_connected_circuits(circuit, seed=0)
    assert len(drawn) == 10
    for one in drawn:
        assert len(one) == len(one.pruned()) == len(connected)
        assert layers(one) == layers(connected)
        assert one.jaccard(connected) < 0.6
    assert max(one.jaccard(other) for one, other in combinations(drawn, 2)) < 0.6
    again = random_connected_circuits(circuit, seed=0)
    assert [one.edges for one in drawn] == [one.edges for one in again]
    # edges drawn uniformly do not
    assert len(random_circuit(graph, 10, seed=0).pruned()) == 0


def test_random_circuits_of_a_chain_are_chains():
    graph = Graph.of_shape(2, 4, mlp=False)
    chain = Circuit(graph, ["input->a0.h0<v>", "a0.h0->a1.h0<v>", "a1.h0->logits"])
    drawn = random_connected_circuits(chain, draws=40, seed=1)
    assert all(len(one) == len(one.pruned()) == 3 for one in drawn)
    heads = {edge.partition("->")[0] for one in drawn for edge in one.edges}
    assert heads == {"input", *(f"a{layer}.h{head}" for layer in (0, 1) for head in range(4))}
    assert {one.edges[0][-2] for one in drawn} == set("qkv")
    with pytest.raises(ValueError, match="draws = 0: want 1 or more"):
        random_connected_circuits(chain, draws=0)


def test_magnitudes_by_hand():
    scores = score_by_magnitude(two_layers(), two_layer_pairs(), logit_difference, progress=False)
    # input (-1, -1), a0.h0 (-2, -2) and (-1, -1), a1.h0 (-3, 0) * 2 at position 0 and (-4, -12): whoever reads them
    for name, size in (("input->logits", 2**0.5), ("input->a0.h0<q>", 2**0.5), ("a0.h0->a1.h0<k>", 10**0.5)):
        assert float(scores.mean[scores.graph.edge(name)]) == pytest.approx(size)
    assert not scores.mean[~scores.exists].any()
