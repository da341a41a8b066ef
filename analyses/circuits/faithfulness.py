"""What a circuit does alone: faithfulness, completeness, minimality, and MIB's curves and areas.

    faithfulness(C) = (metric of C - metric of nothing) / (metric of the clean run - metric of nothing)
where "nothing" is the run with every edge ablated: the corrupted run, or the means or zeros in place of all writes.
Ratios are of means over prompts, with a bootstrap over prompts; per-prompt values are there, too.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.circuits.ablated_run import Ablated, ablated_by, run_circuit, writes_of
from sparselens.analyses.engine.batching import MEMORY, fit, in_batches, longest, refuse_several_lengths, refuse_unequal
from sparselens.analyses.engine.edge_products import Writes
from sparselens.analyses.engine.gradients import PerPrompt, Question, ask, written
from sparselens.analyses.engine.residual_stream import Reading, keep, read_model
from sparselens.circuits import circuit as selection
from sparselens.circuits.circuit import Circuit
from sparselens.circuits.graph import Graph
from sparselens.prompts.checks import refuse_misfits
from sparselens.prompts.intervals import Clusters, Interval, ratio_interval
from sparselens.prompts.metrics import Metric
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.training.evaluation import evaluating

Ablation = Literal["corrupted", "mean", "zero"]
DELAY = 5  # seconds after which a bar shows
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

    def interval(self, level: float = 0.95, clusters: Clusters = None) -> Interval:
        """Ratio of the means, and how sure it is.

        Raises:
            ValueError: on average, nothing is as good as the whole model.
        """
        return ratio_interval(self.circuit - self.ablated, self.clean - self.ablated, level, clusters=clusters)


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
    with running_circuits(model, circuit.graph, pairs, metric, ablation, memory) as runs:
        return runs.alone([circuit], progress)[0]


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
    with running_circuits(model, circuit.graph, pairs, metric, ablation, memory) as runs:
        whole, *others = runs.alone([circuit, *(replace(circuit, kept=kept) for kept in without)], progress)
    gap = whole.clean - whole.ablated
    return {
        name: ratio_interval(whole.circuit - left.circuit, gap)
        for name, left in zip(circuit.edges, others, strict=True)
    }


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
    circuits = [ways[choose](graph, scores.mean, number) for number in numbers]
    with running_circuits(model, graph, pairs, metric, ablation, memory) as runs:
        return Curve(tuple(numbers), graph.n_edges, tuple(runs.alone(circuits, progress)))


# -- running


@dataclass(frozen=True, eq=False)
class _Baselines:
    """What all circuits share on some prompts."""

    question: Question
    clean: PerPrompt  # the metric
    start: Float[Tensor, "batch pos d_model"]  # what the input writes in the clean run
    ablated: Ablated

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(x.nbytes for x in (self.start, self.ablated.writes, *self.ablated.streams.values()))


class Runs:
    """Circuits of one model on the same prompts: see `running_circuits`."""

    def __init__(
        self,
        reading: Reading,
        pairs: TokenizedPairs,
        metric: Metric,
        ablation: str,
        memory: int,
    ) -> None:
        self._reading, self._pairs, self._metric, self._ablation = reading, pairs, metric, ablation
        self._device = next(reading.model.parameters()).device
        # where heads share a norm behind them, one that reads nothing of the circuit still writes something else
        self._only_paths_act = ablation == "corrupted" and all(layer.post_norm is None for layer in reading.layers)
        self._means = _mean_writes(reading, pairs, metric, memory) if ablation == "mean" else None
        self._rows, keep = self._plan(memory)
        self._kept: list[_Baselines] = []
        self.clean, self.ablated = torch.zeros(2, len(pairs))
        for rows in self._rows:
            found = self._baselines(rows)
            self.clean[rows], self.ablated[rows] = (x.float().cpu() for x in (found.clean, found.ablated.metric))
            self._kept += [found] * keep
            del found  # before the next are made

    def _plan(self, memory: int) -> tuple[list[Int[Tensor, " row"]], bool]:
        """The numbers of the prompts that run together, and whether what circuits share is kept for all prompts."""
        whole = Circuit(self._reading.graph, self._reading.graph.exists, torch.zeros(self._reading.graph.exists.shape))
        first = longest(self._pairs)

        def one(_: Any) -> int:
            found = self._baselines(first)
            self._run(found, whole)
            return found.size

        (at_once,), size = fit(memory, one)
        kept = size * len(self._pairs)
        fewer = (at_once * (memory - kept)) // memory
        keep = 2 * kept <= memory and fewer > 0
        return list(self._pairs.rows(fewer if keep else at_once)), keep

    def alone(self, circuits: Sequence[Circuit], progress: bool = False, bar: Any = None) -> list[Faithfulness]:
        """What every circuit does when it acts alone.

        Args:
            progress: show a bar; or `bar`: one that is told how many prompts are done
        """
        values = torch.zeros(len(circuits), len(self._pairs))
        total = len(circuits) * len(self._pairs)
        own = tqdm(total=total, desc="circuits", unit="run", disable=not progress, delay=DELAY, dynamic_ncols=True)
        with own:
            for number, rows in enumerate(self._rows):
                found = self._kept[number] if self._kept else self._baselines(rows)
                for place, circuit in enumerate(circuits):
                    values[place, rows] = self._run(found, circuit).float().cpu()
                    (own if bar is None else bar).update(len(rows))
                del found  # before the next are made
        return [Faithfulness(row, self.clean, self.ablated) for row in values]

    def _baselines(self, rows: Int[Tensor, " row"]) -> _Baselines:
        batch = self._pairs[rows]._without_padding().to(self._device)
        question, recorded = Question(self._reading, self._metric, rows, batch), dict[str, Tensor]()
        start = self._reading.layers[0].at("hook_resid_pre")
        clean = ask(question, keep(recorded, [start]))
        return _Baselines(question, clean, recorded[start], _ablate(question, self._ablation, self._means))

    def _run(self, shared: _Baselines, circuit: Circuit) -> PerPrompt:
        acting = circuit.pruned(from_input=self._only_paths_act).kept
        if not acting.any():
            return shared.ablated.metric
        return run_circuit(shared.question, acting, shared.ablated, shared.start)


@contextmanager
def running_circuits(
    model: Any, graph: Graph, pairs: TokenizedPairs, metric: Metric, ablation: str, memory: int
) -> Iterator[Runs]:
    """Inside, circuits of this graph can be run: the model is read once, and the runs that all share are made once.

    Raises:
        ValueError: as `faithfulness`.
    """
    if ablation not in get_args(Ablation):
        raise ValueError(f"no such ablation: {ablation!r} (want {', '.join(get_args(Ablation))})")
    refuse_unequal(pairs)
    refuse_misfits(model, pairs)
    with evaluating(model), torch.no_grad():
        reading = read_model(model)
        if reading.graph != graph:
            raise ValueError(f"the circuit is one of a model with {graph}, not of this one with {reading.graph}")
        yield Runs(reading, pairs, metric, ablation, memory)


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
