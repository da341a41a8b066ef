"""What a circuit does alone: faithfulness, completeness, minimality, and MIB's curves and areas.

    faithfulness(C) = (metric of C - metric of nothing) / (metric of the clean run - metric of nothing)
where "nothing" is the run with every edge ablated: the corrupted run, or the means or zeros in place of all writes.
Ratios are of means over prompts, with a bootstrap over prompts; per-prompt values are there, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparselens import circuit as selection
from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.circuits.ablated_run import Ablated, ablated_by, run_circuit, writes_of
from sparselens.analyses.engine.batching import MEMORY, in_batches, refuse_several_lengths, refuse_unequal
from sparselens.analyses.engine.edge_products import Writes
from sparselens.analyses.engine.gradients import Question, ask, written
from sparselens.analyses.engine.residual_stream import Reading, read_model
from sparselens.circuit import Circuit
from sparselens.evaluation import evaluating
from sparselens.graph import Graph
from sparselens.intervals import Interval, ratio_interval
from sparselens.metrics import Metric
from sparselens.prompt_checks import refuse_misfits
from sparselens.tokenized import TokenizedPairs

Ablation = Literal["corrupted", "mean", "zero"]
SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # MIB's, shares of all edges


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """The metric of a circuit beside that of the whole model and that of nothing, for every prompt."""

    circuit: Float[Tensor, " batch"]
    clean: Float[Tensor, " batch"]
    ablated: Float[Tensor, " batch"]

    @property
    def per_prompt(self) -> Float[Tensor, " batch"]:
        """Faithfulness on each prompt; not finite where nothing is as good as the whole model."""
        return (self.circuit - self.ablated) / (self.clean - self.ablated)

    @property
    def mean(self) -> float:
        """Ratio of the means over prompts."""
        return float((self.circuit - self.ablated).mean() / (self.clean - self.ablated).mean())

    def interval(self, level: float = 0.95) -> Interval:
        """Ratio of the means, and how sure it is.

        Raises:
            ValueError: on average, nothing is as good as the whole model.
        """
        return ratio_interval(self.circuit - self.ablated, self.clean - self.ablated, level)


def faithfulness(
    model: Any,
    circuit: Circuit,
    pairs: TokenizedPairs,
    metric: Metric,
    ablation: Ablation | str = "corrupted",
    *,
    memory: int = MEMORY,
    progress: bool = True,
) -> Faithfulness:
    """Run the model with every edge outside of the circuit ablated.

    Args:
        ablation: what comes over those edges: the corrupted run's writes, their mean at each position, or nothing.
            Input edges carry token and position embeddings, so both are ablated.
        memory: bytes that may be allocated at once beside the model

    Raises:
        ValueError: the circuit is another model's, the ablation is unknown or a mean of prompts of several lengths, or
            as `attribute_edges`.
    """
    found = _run_all(model, circuit.graph, [circuit.kept], pairs, metric, ablation, memory, progress)
    return Faithfulness(found[0], found[1], found[2])


def completeness(
    model: Any,
    circuit: Circuit,
    pairs: TokenizedPairs,
    metric: Metric,
    ablation: Ablation | str = "corrupted",
    *,
    memory: int = MEMORY,
    progress: bool = True,
) -> Faithfulness:
    """Faithfulness of all that the circuit leaves out: near 0 where the circuit is complete."""
    return faithfulness(model, circuit.complement(), pairs, metric, ablation, memory=memory, progress=progress)


def minimality(
    model: Any,
    circuit: Circuit,
    pairs: TokenizedPairs,
    metric: Metric,
    ablation: Ablation | str = "corrupted",
    *,
    memory: int = MEMORY,
    progress: bool = True,
) -> dict[str, Interval]:
    """By how much faithfulness falls when each edge of the circuit is taken out of it; near 0: the edge is needless.

    Raises:
        ValueError: the circuit has no edge, or as `faithfulness`.
    """
    if not len(circuit):
        raise ValueError("the circuit has no edge that could be needless")
    places = circuit.kept.nonzero()
    without = [circuit.kept.clone().index_put_(tuple(place[:, None]), torch.tensor(False)) for place in places]
    found = _run_all(model, circuit.graph, [circuit.kept, *without], pairs, metric, ablation, memory, progress)
    whole, gap = found[0], found[-2] - found[-1]
    return {name: ratio_interval(whole - left, gap) for name, left in zip(circuit.edges, found[1:-2], strict=True)}


@dataclass(frozen=True, eq=False)
class Curve:
    """Faithfulness of circuits of growing size."""

    n_edges: tuple[int, ...]
    total: int  # edges of the whole graph
    points: tuple[Faithfulness, ...]

    @property
    def cpr(self) -> float:
        """MIB's circuit performance ratio: the area under faithfulness over the share of edges. More is better."""
        return self._area([point.mean for point in self.points])

    @property
    def cmd(self) -> float:
        """MIB's circuit-model distance: the area under |1 - faithfulness|. Less is better."""
        return self._area([abs(1 - point.mean) for point in self.points])

    def first_to_reach(self, goal: float) -> int | None:
        """The smallest of these circuits that is at least so faithful; None if none is."""
        return next((n for n, point in zip(self.n_edges, self.points, strict=True) if point.mean >= goal), None)

    def _area(self, heights: Sequence[float]) -> float:
        shares = torch.tensor(self.n_edges, dtype=torch.float64) / self.total
        return float(torch.trapezoid(torch.tensor(heights, dtype=torch.float64), shares))


def faithfulness_curve(
    model: Any,
    scores: EdgeScores,
    pairs: TokenizedPairs,
    metric: Metric,
    sizes: Sequence[float | int] = SIZES,
    choose: Literal["top", "greedy"] | str = "top",
    ablation: Ablation | str = "corrupted",
    *,
    memory: int = MEMORY,
    progress: bool = True,
) -> Curve:
    """Faithfulness of the best edges in growing number.

    Args:
        sizes: shares of all edges (floats) or numbers of edges (ints), rising; areas run from the first to the last

    Raises:
        ValueError: sizes do not rise, the choice is unknown, or as `faithfulness`.
    """
    graph = scores.graph
    numbers = [size if isinstance(size, int) else round(size * graph.n_edges) for size in sizes]
    if not numbers or numbers != sorted(numbers):
        raise ValueError(f"sizes must rise, not {list(sizes)}")
    ways = {"top": selection.top, "greedy": selection.greedy}
    if choose not in ways:
        raise ValueError(f"no such choice: {choose!r} (want {', '.join(ways)})")
    kept = [ways[choose](graph, scores.mean, number).kept for number in numbers]
    found = _run_all(model, graph, kept, pairs, metric, ablation, memory, progress)
    points = tuple(Faithfulness(values, found[-2], found[-1]) for values in found[:-2])
    return Curve(tuple(numbers), graph.n_edges, points)


# -- running


def _run_all(
    model: Any,
    graph: Graph,
    circuits: Sequence[Bool[Tensor, "source destination"]],
    pairs: TokenizedPairs,
    metric: Metric,
    ablation: str,
    memory: int,
    progress: bool,
) -> Float[Tensor, "circuit_and_two batch"]:
    """The metric of every circuit, then of the clean run, then of nothing."""
    if ablation not in get_args(Ablation):
        raise ValueError(f"no such ablation: {ablation!r} (want {', '.join(get_args(Ablation))})")
    refuse_unequal(pairs)
    refuse_misfits(model, pairs)
    values = torch.zeros(len(circuits) + 2, len(pairs))
    with evaluating(model), torch.no_grad():
        reading = read_model(model)
        if reading.graph != graph:
            raise ValueError(f"the circuit is one of a model with {graph}, not of this one with {reading.graph}")
        means = _mean_writes(reading, pairs, metric, memory) if ablation == "mean" else None
        device = next(model.parameters()).device

        def run(rows: Tensor, batch: TokenizedPairs) -> tuple[Tensor]:
            question = Question(reading, metric, rows, batch.to(device))
            ablated = _ablate(question, ablation, means)
            found = [run_circuit(question, kept, ablated) for kept in circuits]
            return (torch.stack([*found, ask(question), ablated.metric]).float().cpu(),)

        for rows, (found,) in in_batches(pairs, run, memory, progress, "circuits"):
            values[:, rows] = found
    return values


def _ablate(question: Question, ablation: str, means: Writes | None) -> Ablated:
    if ablation == "corrupted":
        return ablated_by(question)
    if means is not None:
        return ablated_by(question, means)
    shape = len(question.reading.graph.sources), 1, question.pairs.clean.shape[1], question.reading.model.cfg.d_model
    return ablated_by(question, torch.zeros(shape))


def _mean_writes(reading: Reading, pairs: TokenizedPairs, metric: Metric, memory: int) -> Writes:
    """Mean over the corrupted prompts of what every source writes at each position."""
    refuse_several_lengths(pairs, "means at each position")
    device = next(reading.model.parameters()).device

    def run(rows: Tensor, batch: TokenizedPairs) -> tuple[Tensor]:
        question = Question(reading, metric, rows, batch.to(device))
        return (writes_of(reading, written(question, corrupted=True).recorded).sum(1, keepdim=True),)

    return sum(total for _, (total,) in in_batches(pairs, run, memory, False, "means")) / len(pairs)  # pyright: ignore
