"""Baselines that a circuit must beat: edges drawn at random, and edges of the sources whose writes differ most.

Edges drawn uniformly seldom connect the input to the logits, and then do nothing. `random_connected_circuits` makes a
random walk among circuits whose edges do:

1. Start from the circuit without its dead ends, with the heads of every layer shuffled.
2. Exchange the destinations of two edges, or move one end of an edge to another node of the same layer in the circuit,
   if this makes no dead end. The number of edges out of and into every layer stays the same.
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.engine.batching import in_batches
from sparselens.analyses.engine.edge_products import differences
from sparselens.analyses.engine.gradients import written
from sparselens.analyses.engine.request import PerPrompt, Request, open_request
from sparselens.circuits.circuit import Circuit
from sparselens.circuits.graph import RECEIVERS, Graph
from sparselens.models.hooked_model import HookedModel
from sparselens.prompts.metrics import Metric, logit_difference
from sparselens.prompts.tokenized import TokenizedPairs

DRAWS = 10  # random circuits, by default
MOVES = 30  # tried moves per edge


def random_circuit(graph: Graph, n: int, seed: int = 0) -> Circuit:
    """`n` edges drawn uniformly at random; all scores are zero. Few of them lead from the input to the logits.

    >>> len(random_circuit(Graph.of_model(model), 50))
    50
    """
    if not 0 <= n <= graph.n_edges:
        raise ValueError(f"n = {n}: the graph has {graph.n_edges} edges")
    places = graph.exists.flatten().nonzero()[:, 0]
    drawn = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:n]]
    kept = torch.zeros(graph.exists.numel(), dtype=torch.bool).index_fill_(0, drawn, True)
    return Circuit(graph, kept.view(graph.exists.shape))


def random_connected_circuits(circuit: Circuit, draws: int = DRAWS, seed: int = 0) -> list[Circuit]:
    """Random circuits in which every edge is on a path from the input to the logits; all scores are zero.

    Each has as many edges as the circuit has without its dead ends, and as many out of and into every layer.

    >>> null = random_connected_circuits(scores.smallest(0.9), seed=0)  # ten of them

    Scope: the MLPs in the circuit and the number of heads in every layer stay the same; which heads these are, and
    which edges join them, is random.

    Raises:
        ValueError: draws is not positive.
    """
    if draws < 1:
        raise ValueError(f"draws = {draws}: want 1 or more")
    generator, connected = random.Random(seed), circuit.pruned()
    return [_Walk(connected, generator).run() for _ in range(draws)]


class _Walk:
    """A random walk among circuits of one graph that have no dead ends and the same numbers of edges at every layer."""

    def __init__(self, circuit: Circuit, generator: random.Random) -> None:
        self._graph, self._random = circuit.graph, generator
        graph = circuit.graph
        self._node = graph.receivers.int().argmax(0).tolist()  # the node of every destination
        self._node[-1] = len(graph.sources)
        self._sources, self._destinations = _layers_of(graph.sources), _layers_of(graph.destinations)
        rows, columns = _shuffled(graph, generator)
        self._edges = [(rows[s], columns[d]) for s, d in circuit.kept.nonzero().tolist()]
        self._there = set(self._edges)
        self._writes, self._reads = [0] * len(graph.sources), [0] * (len(graph.sources) + 1)  # last: the logits
        for source, destination in self._edges:
            self._writes[source] += 1
            self._reads[self._node[destination]] += 1

    def run(self) -> Circuit:
        """The circuit where the walk ends."""
        for _ in range(MOVES * len(self._edges)):
            (self._exchange, self._move_source, self._move_destination)[self._random.randrange(3)]()
        kept = torch.zeros_like(self._graph.exists)
        for edge in self._edges:
            kept[edge] = True
        return Circuit(self._graph, kept)

    def _exchange(self) -> None:
        """Exchange the destinations of two edges."""
        one, other = (self._random.randrange(len(self._edges)) for _ in range(2))
        (source, destination), (second, another) = self._edges[one], self._edges[other]
        if self._free(source, another) and self._free(second, destination):
            self._put(one, (source, another))
            self._put(other, (second, destination))

    def _move_source(self) -> None:
        """Move an edge to another source in the layer that reads something, if the old one still writes something."""
        number = self._random.randrange(len(self._edges))
        old, destination = self._edges[number]
        new = self._random.choice(self._sources[old])
        if self._writes[old] > 1 and self._reads[new] and self._free(new, destination):
            self._writes[old] -= 1
            self._writes[new] += 1
            self._put(number, (new, destination))

    def _move_destination(self) -> None:
        """Move an edge to another destination in the layer that writes something, if the old one still reads."""
        number = self._random.randrange(len(self._edges))
        source, old = self._edges[number]
        new = self._random.choice(self._destinations[old])
        before, after = self._node[old], self._node[new]
        if (before == after or (self._reads[before] > 1 and self._writes[after])) and self._free(source, new):
            self._reads[before] -= 1
            self._reads[after] += 1
            self._put(number, (source, new))

    def _free(self, source: int, destination: int) -> bool:
        return bool(self._graph.exists[source, destination]) and (source, destination) not in self._there

    def _put(self, number: int, edge: tuple[int, int]) -> None:
        self._there.discard(self._edges[number])
        self._there.add(edge)
        self._edges[number] = edge


def _layers_of(names: Sequence[str]) -> list[list[int]]:
    """For every node, the nodes of its layer: `a2.h1`, `a2.h3<q>` and `m2` are all of layer 2."""
    layers = [name.partition(".")[0].lstrip("am") for name in names]
    return [[place for place, other in enumerate(layers) if other == layer] for layer in layers]


def _shuffled(graph: Graph, generator: random.Random) -> tuple[list[int], list[int]]:
    """New rows of sources and columns of destinations after the heads of every layer are shuffled."""
    rows, columns = list(range(len(graph.sources))), list(range(len(graph.destinations)))
    for layer, block in enumerate(graph.blocks):
        order = list(range(block.n_heads))
        generator.shuffle(order)
        source, destination = graph.head_sources(layer).start, graph.head_destinations(layer).start
        for old, new in enumerate(order):
            rows[source + old] = source + new
            for receiver in range(len(RECEIVERS)):
                columns[destination + receiver * block.n_heads + old] = destination + receiver * block.n_heads + new
    return rows, columns


def score_by_magnitude(
    model: HookedModel,
    pairs: TokenizedPairs,
    metric: Metric | str = logit_difference,
    *,
    memory: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> EdgeScores:
    """Score every edge by how much its source's write differs between the two runs, regardless of what reads it.

    >>> score_by_magnitude(model, pairs).top(50)  # the circuit to beat

    Sign convention: scores are Euclidean norms over positions and d_model, and so never negative.

    Scope: attribution without gradients. The metric does not affect the scores; only its clean and corrupted values are
    recorded.
    """

    def norms(batch: Request) -> tuple[Tensor, PerPrompt, PerPrompt]:
        clean, corrupted = written(batch), written(batch, corrupted=True)
        writes = differences(batch.reading, clean.recorded, corrupted.recorded)
        return writes.square().sum((-1, -2)).sqrt().T, clean.metric, corrupted.metric

    with open_request(model, pairs, metric, memory=memory, batch_size=batch_size, progress=progress) as request:
        graph = request.reading.graph
        sizes, metrics = torch.zeros(len(pairs), len(graph.sources)), torch.zeros(2, len(pairs))
        for rows, (found, clean, corrupted) in in_batches(request, norms, "magnitude"):
            sizes[rows], metrics[:, rows] = found.float().cpu(), torch.stack([clean, corrupted]).float().cpu()
    scores = sizes[:, :, None] * graph.exists
    clean_prompt = pairs.clean_prompt
    return EdgeScores(graph, "magnitude", scores.mean(0), scores, metrics[0], metrics[1], clean_prompt=clean_prompt)
