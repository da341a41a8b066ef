"""A circuit: some edges of a graph, and the scores that they were chosen by.

smallest    the fewest edges whose |score| adds up to a share of all (the paper's rule, on the scores given)
top         the n edges of largest |score|
greedy      from the logits upward: always the best edge into what is already there (EAP-IG)
Scores are signed; |.| is taken here, so on means over prompts if means are given. Files are in the format of EAP-IG and
MIB.
"""

import heapq
import json
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparselens.circuits.graph import INPUT, LOGITS, Graph
from sparselens.files.whole import write_file

Scores = Float[Tensor, "source destination"]


@dataclass(frozen=True, eq=False)
class Circuit:
    """Edges of a graph with the scores of all its edges."""

    graph: Graph
    kept: Bool[Tensor, "source destination"]
    scores: Scores

    def __post_init__(self) -> None:
        for name, values in (("kept", self.kept), ("scores", self.scores)):
            if values.shape != self.graph.exists.shape:
                raise ValueError(
                    f"{name} is {list(values.shape)}, the graph has {list(self.graph.exists.shape)} (sources, "
                    "destinations): the circuit is another model's"
                )
        if bool((self.kept.cpu() & ~self.graph.exists).any()):
            impossible = self.graph.edge_names(self.kept.cpu() & ~self.graph.exists)
            raise ValueError(f"no such edge: {impossible[0]!r} (the source writes after the destination reads)")

    def __len__(self) -> int:
        return int(self.kept.sum())

    @property
    def edges(self) -> list[str]:
        """Names of the edges, source by source."""
        return self.graph.edge_names(self.kept)

    @property
    def share(self) -> float:
        """Edges kept, as a share of all that exist."""
        return len(self) / self.graph.n_edges

    @property
    def score_share(self) -> float:
        """Sum of |score| of the edges kept, as a share of that of all."""
        sizes = _sizes(self.graph, self.scores)
        return float(sizes[self.kept].sum() / sizes.sum())

    def complement(self) -> "Circuit":
        """All edges that are not in this circuit."""
        return replace(self, kept=self.graph.exists.to(self.kept.device) & ~self.kept)

    def pruned(self, from_input: bool = True) -> "Circuit":
        """Only the edges on a path from the input to the logits; no other acts where outside edges are corrupted.

        Args:
            from_input: False: all edges on a path to the logits. Where outside edges carry means or zeros, a node that
                reads no edge of the circuit writes something else than those.
        """
        kept = self.kept & _led_to(self.graph, self.kept, LOGITS)
        return replace(self, kept=kept & _led_to(self.graph, kept, INPUT) if from_input else kept)

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the circuit with all scores as EAP-IG does (`Graph.to_json`)."""
        text = json.dumps(_as_json(self), allow_nan=False)
        return write_file(Path(path), text.encode())


def load_circuit(path: str | PathLike[str]) -> Circuit:
    """Read a circuit that `Circuit.save`, EAP-IG or MIB wrote as json.

    Raises:
        ValueError: the file is not one of a circuit, or names an edge that its graph does not have.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        graph, edges = _graph_from(data["cfg"]), data["edges"]
        named = [(graph.edge(name), edge["in_graph"], edge.get("score") or 0.0) for name, edge in edges.items()]
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no circuit: want json with cfg and edges, as EAP-IG writes it") from error
    kept, scores = torch.zeros_like(graph.exists), torch.zeros(graph.exists.shape)
    for place, in_graph, score in named:
        kept[place], scores[place] = bool(in_graph), float(score)
    return Circuit(graph, kept, scores)


# -- selection


def smallest(graph: Graph, scores: Scores, share: float = 0.9) -> Circuit:
    """The fewest edges that reach a share of the sum of |score|: min n with sum of the n largest >= share * sum of all.

    Raises:
        ValueError: the share is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, not {share}")
    return _largest(graph, scores, edges_to_reach(_sizes(graph, scores)[graph.exists], share))


def edges_to_reach(scores: Float[Tensor, " edge"], share: float) -> int:
    """How many of the largest |score| it takes to reach a share of their sum; 0 where all are zero."""
    sizes = scores.detach().double().abs().sort(descending=True).values
    reached = sizes.cumsum(0)
    goal = share * reached[-1] * (1 - 1e-12)  # the sum of all must reach itself, in whatever order it was added
    return int((reached < goal).sum()) + 1 if reached[-1] > 0 else 0


def top(graph: Graph, scores: Scores, n: int) -> Circuit:
    """The `n` edges of largest |score|.

    Raises:
        ValueError: the graph does not have so many edges.
    """
    _want(graph, n)
    return _largest(graph, scores, n)


def greedy(graph: Graph, scores: Scores, n: int) -> Circuit:
    """From the logits upward, `n` times the edge of largest |score| into a node that is already there.

    Raises:
        ValueError: the graph does not have so many edges.
    """
    _want(graph, n)
    sizes, kept = _sizes(graph, scores), torch.zeros_like(graph.exists)
    frontier: list[tuple[float, int, int]] = []
    _reach(frontier, graph, sizes, [graph.destination(LOGITS)])
    seen: set[int] = set()
    for _ in range(n):
        _, source, destination = heapq.heappop(frontier)
        kept[source, destination] = True
        if source not in seen:
            seen.add(source)
            _reach(frontier, graph, sizes, graph.receivers[source].nonzero()[:, 0].tolist())
    return Circuit(graph, kept, scores.cpu())


def _reach(frontier: list[tuple[float, int, int]], graph: Graph, sizes: Tensor, destinations: list[int]) -> None:
    """Add all edges into these destinations."""
    for destination in destinations:
        for source in range(int(graph.reads[destination])):
            heapq.heappush(frontier, (-float(sizes[source, destination]), source, destination))


def _largest(graph: Graph, scores: Scores, n: int) -> Circuit:
    ranked = _sizes(graph, scores).masked_fill(~graph.exists, -1.0).flatten().argsort(descending=True, stable=True)
    kept = torch.zeros_like(graph.exists)
    kept.view(-1)[ranked[:n]] = True
    return Circuit(graph, kept, scores.cpu())


def _sizes(graph: Graph, scores: Scores) -> Scores:
    if scores.shape != graph.exists.shape:
        raise ValueError(f"scores are {list(scores.shape)}, the graph has {list(graph.exists.shape)}")
    if not scores.isfinite().all():
        raise ValueError("scores are not finite")
    return scores.detach().cpu().double().abs().masked_fill(~graph.exists, 0.0)


def _want(graph: Graph, n: int) -> None:
    if not 0 <= n <= graph.n_edges:
        raise ValueError(f"n = {n}: the graph has {graph.n_edges} edges")


# -- comparison


def jaccard(first: Circuit, second: Circuit) -> float:
    """Edges in both circuits, as a share of those in either; 1 if both are empty.

    Raises:
        ValueError: they are circuits of differently shaped models.
    """
    _want_alike(first, second)
    either = int((first.kept | second.kept).sum())
    return int((first.kept & second.kept).sum()) / either if either else 1.0


def rank_correlation(first: Circuit, second: Circuit) -> float:
    """Spearman's correlation of |score| over all edges; equal scores share their mean rank.

    Raises:
        ValueError: they are circuits of differently shaped models.
    """
    _want_alike(first, second)
    ranks = [_ranks(_sizes(c.graph, c.scores)[c.graph.exists]) for c in (first, second)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def _ranks(values: Float[Tensor, " edge"]) -> Float[Tensor, " edge"]:
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[place]


def _want_alike(first: Circuit, second: Circuit) -> None:
    if first.graph != second.graph:
        raise ValueError(f"these are circuits of different models: {first.graph} and {second.graph}")


# -- paths and files


def _led_to(graph: Graph, kept: Bool[Tensor, "source destination"], goal: str) -> Bool[Tensor, "source destination"]:
    """Edges that some kept path joins to the goal: from their destination to LOGITS, or from INPUT to their source."""
    receivers = graph.receivers.to(kept.device).float()
    edges = kept.float()
    if goal == INPUT:
        found = torch.zeros(len(receivers), device=kept.device)
        found[0] = 1.0
        for _ in graph.blocks * 2:  # a path passes at most two nodes of a block
            found = ((receivers @ (edges.T @ found > 0).float() > 0) | (found > 0)).float()
        return (found > 0)[:, None].expand_as(kept)
    found = torch.zeros(edges.shape[1], device=kept.device)
    found[-1] = 1.0
    for _ in graph.blocks * 2:
        found = ((receivers.T @ (edges @ found > 0).float() > 0) | (found > 0)).float()
    return (found > 0)[None].expand_as(kept)


def _as_json(circuit: Circuit) -> dict[str, Any]:
    graph, block = circuit.graph, circuit.graph.blocks[0]
    if any(other != block for other in graph.blocks):
        raise ValueError("blocks of this model differ, and the file format has one shape for all")
    cfg = {
        "n_layers": len(graph.blocks),
        "n_heads": block.n_heads,
        "n_key_value_heads": block.n_kv_heads or block.n_heads,
        "parallel_attn_mlp": block.parallel,
        "attn_only": not block.mlp,
    }
    sources = {name.partition("->")[0] for name in circuit.edges}
    nodes = {name: {"in_graph": name in sources} for name in graph.sources} | {LOGITS: {"in_graph": True}}
    kept, scores = circuit.kept[graph.exists].tolist(), circuit.scores.double()[graph.exists].tolist()
    edges = {
        name: {"score": score, "in_graph": in_graph}
        for name, score, in_graph in zip(graph.edge_names(graph.exists), scores, kept, strict=True)
    }
    return {"cfg": cfg, "nodes": nodes, "edges": edges}


def _graph_from(cfg: dict[str, Any]) -> Graph:
    return Graph.of_shape(
        cfg["n_layers"],
        cfg["n_heads"],
        cfg.get("n_key_value_heads") or 0,
        mlp=not cfg.get("attn_only", False),
        parallel=bool(cfg.get("parallel_attn_mlp", False)),
    )
