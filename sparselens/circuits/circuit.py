"""A circuit: a subset of a graph's edges, with the scores by which it was chosen. Files as in EAP-IG and MIB."""

import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparselens.circuits.graph import INPUT, LOGITS, Graph
from sparselens.files.whole import write_file
from sparselens.results import Result

Scores = Float[Tensor, "source destination"]
Mask = Bool[Tensor, "source destination"]


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Circuit(Result):
    """A subset of a graph's edges, with the scores of all its edges.

    >>> circuit = Circuit(Graph.of_model(model), ["input->a0.h1<v>", "a0.h1->logits"])
    >>> circuit.kept.sum(), circuit.jaccard(scores.top(2))  # Bool["source destination"]
    >>> circuit["a0.h1->logits"], "a0.h1->logits" in circuit, circuit - "a0.h1->logits"  # score, True, one less

    Args:
        kept: names of the edges in the circuit, or a mask
        scores: of all edges of the graph; default: zeros
        total: sum of |score| over all edges; needed if only the largest scores are known and the others are NaN

    Raises:
        ValueError: an edge does not exist in the graph, or a shape differs from the graph's.
    """

    graph: Graph
    kept: Bool[Tensor, "source destination"]
    scores: Scores
    total: float | None = None

    def __init__(
        self,
        graph: Graph,
        kept: Sequence[str] | Bool[Tensor, "source destination"],
        scores: Scores | None = None,
        total: float | None = None,
    ) -> None:
        mask = kept if isinstance(kept, Tensor) else graph.matrix(kept)
        scores = torch.zeros(graph.exists.shape) if scores is None else scores
        for name, values in (("kept", mask), ("scores", scores)):
            if values.shape != graph.exists.shape:
                raise ValueError(
                    f"{name} has shape {list(values.shape)}, but the graph has {list(graph.exists.shape)} (sources, "
                    "destinations): the circuit belongs to another model"
                )
        impossible = mask.cpu() & ~graph.exists
        if bool(impossible.any()):
            first = graph.edge_names(impossible)[0]
            raise ValueError(f"no such edge: {first!r} (the source writes after the destination reads)")
        for name, value in (("graph", graph), ("kept", mask), ("scores", scores), ("total", total)):
            object.__setattr__(self, name, value)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "Circuit":
        """Read a circuit that `Circuit.save`, EAP-IG or MIB wrote as JSON.

        Raises:
            ValueError: the file does not hold a circuit, or names an edge that its graph does not have.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            graph, edges = Graph.from_config(data["cfg"]), data["edges"]
            named = [(graph.edge(name), edge["in_graph"], edge.get("score") or 0.0) for name, edge in edges.items()]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} holds no circuit: want JSON with cfg and edges, as written by EAP-IG") from error
        kept, scores = torch.zeros_like(graph.exists), torch.zeros(graph.exists.shape)
        for (place, in_graph, score), name in zip(named, edges, strict=True):
            if not isinstance(in_graph, (bool, int)) or not isinstance(score, (int, float)):
                raise ValueError(f"{path}: {name} has in_graph {in_graph!r:.40} and score {score!r:.40}")
            kept[place], scores[place] = bool(in_graph), float(score)
        return cls(graph, kept, scores)

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the circuit with the scores of all edges, in the format of EAP-IG's `Graph.to_json`.

        Raises:
            ValueError: the model's blocks differ, which the format cannot express, or a score is not finite.
        """
        graph, config = self.graph, self.graph.config()
        if config is None:
            raise ValueError("the blocks of this model differ, but the file format has one shape for all of them")
        sources = {name.partition("->")[0] for name in self.edges}
        nodes = {name: {"in_graph": name in sources} for name in graph.sources} | {LOGITS: {"in_graph": True}}
        kept, scores = self.kept[graph.exists].tolist(), self.scores.double()[graph.exists].tolist()
        edges = {
            name: {"score": score, "in_graph": in_graph}
            for name, score, in_graph in zip(graph.edge_names(graph.exists), scores, kept, strict=True)
        }
        text = json.dumps({"cfg": config, "nodes": nodes, "edges": edges}, allow_nan=False)
        return write_file(Path(path), text.encode())

    def __len__(self) -> int:
        return int(self.kept.sum())

    def __iter__(self) -> Iterator[str]:
        return iter(self.edges)

    def __contains__(self, edge: str | tuple[str, str]) -> bool:
        return bool(self.kept[self.graph.edge(edge)])

    def __getitem__(self, edge: str | tuple[str, str]) -> float:
        return float(self.scores[self.graph.edge(edge)])

    def __sub__(self, edges: str | Sequence[str]) -> "Circuit":
        names = [edges] if isinstance(edges, str) else edges
        return replace(self, kept=self.kept & ~self.graph.matrix(names).to(self.kept.device))

    _largest = "score"

    def _line(self) -> str:
        return f"{len(self)} of {self.graph.n_edges} edges, {self.graph}"

    def _columns(self) -> dict[str, list[Any]]:
        return self.graph.columns(self.kept.cpu(), self.scores.detach().cpu())

    def plot(self, most: int = 40) -> Any:
        """Bar chart of the edges with the largest |score|; `analyses.circuit_viewer` draws the graph."""
        frame = self.to_frame().sort_values("score", key=abs).tail(most)
        return self._figure("bar", frame.assign(edge=frame["edge"].map(html.escape)), x="score", y="edge")

    @property
    def edges(self) -> list[str]:
        """Names of the edges in the circuit, ordered by source."""
        return self.graph.edge_names(self.kept)

    @property
    def share(self) -> float:
        """Edges in the circuit as a share of all edges."""
        return len(self) / self.graph.n_edges

    @property
    def score_share(self) -> float:
        """Sum of |score| over the edges in the circuit, as a share of the sum over all edges."""
        sizes = sizes_of(self.graph, self.scores, self.total)
        return float(sizes[self.kept].sum() / (sizes.sum() if self.total is None else self.total))

    def complement(self) -> "Circuit":
        """The circuit of all edges that are not in this one."""
        return replace(self, kept=self.graph.exists.to(self.kept.device) & ~self.kept)

    def pruned(self, from_input: bool = True) -> "Circuit":
        """The circuit with only those edges that lie on a path from the input to the logits.

        Under corrupted ablation the other edges have no effect, except in models with post-norms (Gemma 2, OLMo 2).
        There all heads of a layer share one normalisation, so an edge into a head without a path to the logits still
        changes what the other heads write, and the pruned circuit behaves differently.

        Args:
            from_input: if False, keep edges on a path from any node to the logits. Use this under mean or zero
                ablation, where a node without edges into it still differs from its ablated output, so its edges matter.
        """
        kept = self.kept & _led_to(self.graph, self.kept, LOGITS)
        return replace(self, kept=kept & _led_to(self.graph, kept, INPUT) if from_input else kept)

    def jaccard(self, other: "Circuit") -> float:
        """Jaccard similarity: edges in both circuits as a share of those in either; 1 if both are empty."""
        _refuse_unlike(self, other)
        either = int((self.kept | other.kept).sum())
        return int((self.kept & other.kept).sum()) / either if either else 1.0

    def rank_correlation(self, other: "Circuit", among: Mask | None = None) -> float:
        """Spearman's correlation of |score| over all edges, or those in `among`; ties get their mean rank."""
        from scipy.stats import rankdata

        _refuse_unlike(self, other)
        among = self.graph.exists if among is None else among
        ranks = rankdata([sizes_of(c.graph, c.scores)[among].numpy() for c in (self, other)], axis=1)
        return float(torch.from_numpy(ranks).corrcoef()[0, 1])


def load_circuit(path: str | PathLike[str]) -> Circuit:
    """Read a circuit that `Circuit.save`, EAP-IG or MIB wrote as JSON (also `Circuit.load`).

    >>> load_circuit("circuit.json").edges
    """
    return Circuit.load(path)


def sizes_of(graph: Graph, scores: Scores, total: float | None = None) -> Scores:
    """|score| of every edge; if a `total` is given, unknown scores count as zero."""
    if scores.shape != graph.exists.shape:
        raise ValueError(f"scores have shape {list(scores.shape)}, but the graph has {list(graph.exists.shape)}")
    if total is not None:
        scores = scores.nan_to_num(0.0, torch.inf, -torch.inf)
    if not scores.isfinite().all():
        raise ValueError("scores are not finite (in a slim comparison, only the largest are known)")
    return scores.detach().cpu().double().abs().masked_fill(~graph.exists, 0.0)


def _refuse_unlike(first: Circuit, second: Circuit) -> None:
    if first.graph != second.graph:
        raise ValueError(f"these circuits belong to different models: {first.graph} and {second.graph}")


def _led_to(graph: Graph, kept: Bool[Tensor, "source destination"], goal: str) -> Bool[Tensor, "source destination"]:
    """Edges connected to the goal by kept edges: from their destination to LOGITS, or from INPUT to their source."""
    receivers, edges, from_input = graph.receivers.to(kept.device).float(), kept.float(), goal == INPUT
    to_next, to_nodes = (receivers, edges.T) if from_input else (receivers.T, edges)
    found = torch.zeros(len(to_next), device=kept.device)
    found[0 if from_input else -1] = 1.0
    for _ in graph.blocks * 2:  # a path has at most two nodes per block
        found = ((to_next @ (to_nodes @ found > 0).float() > 0) | (found > 0)).float()
    return (found[:, None] if from_input else found[None]).bool().expand_as(kept)
