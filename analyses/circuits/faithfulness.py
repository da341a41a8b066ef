"""What a circuit does on its own: faithfulness, completeness, minimality, and MIB's curves and areas.

1. Run the model with every edge outside the circuit C ablated (`ablated_run`).
2. faithfulness(C) = (metric of C - metric of nothing) / (metric of the clean run - metric of nothing). "Nothing" is the
   run with every edge ablated: the corrupted run, or means or zeros in place of all writes (Hanna et al. 2024).
3. Ratios are of means over prompts, with bootstrap confidence intervals over prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.circuits.ablated_run import Ablated, ablated_by, run_circuits, writes_of
from sparselens.analyses.engine.batching import in_batches, longest
from sparselens.analyses.engine.budget import MEMORY
from sparselens.analyses.engine.edge_products import Writes
from sparselens.analyses.engine.gradients import written
from sparselens.analyses.engine.processes import mine, summed
from sparselens.analyses.engine.renamed import pairs_first
from sparselens.analyses.engine.request import PerPrompt, Request, open_request, refuse_several_lengths
from sparselens.bars import progress_bar
from sparselens.circuits.circuit import Circuit
from sparselens.circuits.graph import Graph
from sparselens.models.hooked_model import HookedModel
from sparselens.names import unknown
from sparselens.prompts.intervals import Clusters, Interval, ratio_interval
from sparselens.prompts.metrics import Metric, logit_difference
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.results import Result

Ablation = Literal["corrupted", "mean", "zero"]
DELAY = 5.0  # seconds after which a bar shows
SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # MIB's percentages, as shares of all edges


@dataclass(frozen=True, eq=False, repr=False)
class Faithfulness(Result):
    """The metric of a circuit, of the whole model, and of nothing, for every prompt."""

    circuit: Float[Tensor, " batch"]
    clean: Float[Tensor, " batch"]
    ablated: Float[Tensor, " batch"]

    def _line(self) -> str:
        whole, nothing, n = float(self.clean.mean()), float(self.ablated.mean()), len(self.clean)
        sure = f"{self.interval()}" if whole != nothing else "not known"
        return f"{sure}, {n} prompts: metric {float(self.circuit.mean()):.3g}, {whole:.3g} whole, {nothing:.3g} ablated"

    def _columns(self) -> dict[str, list[Any]]:
        names = ("circuit", "clean", "ablated", "per_prompt")
        return {name.replace("per_prompt", "faithfulness"): getattr(self, name).tolist() for name in names}

    def plot(self) -> Any:
        """Faithfulness over prompts, as a plotly histogram."""
        return self._figure("histogram", self.to_frame(), x="faithfulness")

    @property
    def per_prompt(self) -> Float[Tensor, " batch"]:
        """Faithfulness on each prompt; not finite where the whole model scores as nothing does."""
        return (self.circuit - self.ablated) / (self.clean - self.ablated)

    @property
    def mean(self) -> float:
        """Ratio of the means over prompts."""
        return float((self.circuit - self.ablated).mean() / (self.clean - self.ablated).mean())

    def interval(self, level: float = 0.95, clusters: Clusters = None) -> Interval:
        """Ratio of the means, with its bootstrap confidence interval over prompts.

        Raises:
            ValueError: on average the whole model scores as nothing does.
        """
        return ratio_interval(self.circuit - self.ablated, self.clean - self.ablated, level, clusters=clusters)


def faithfulness(
    model: HookedModel,
    circuit: Circuit,
    pairs: TokenizedPairs,
    metric: Metric | str = logit_difference,
    ablation: Ablation | str = "corrupted",
    *,
    memory: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Faithfulness:
    """Run the model with every edge outside the circuit ablated.

    >>> found = faithfulness(model, scores.top(50), pairs)
    >>> found.interval(), found.per_prompt.shape  # the ratio of the means, [batch]

    Sign convention: 1 where the circuit scores as the whole model, 0 where it scores as the ablated one; it may be
    above 1 or negative.

    Scope: what the circuit does under this ablation. Another ablation asks another question and gives another number.

    Args:
        ablation: what edges outside the circuit carry: the corrupted run's writes, their mean over corrupted prompts at
            each position, or zero. Input edges carry token and position embeddings, so both are ablated.
        memory, batch_size: as in `attribute_edges`

    Raises:
        ValueError: the circuit is another model's, the ablation is unknown or a mean of prompts of several lengths, or
            as `attribute_edges`.
    """
    given: Any = circuit
    if not isinstance(given, Circuit):
        raise ValueError(f"want a Circuit, such as scores.top(20), not {given!r:.80}")
    with open_request(model, pairs, metric, memory=memory, batch_size=batch_size, progress=progress) as request:
        return CircuitRunner(request, circuit.graph, ablation).run([circuit])[0]


def completeness(
    model: HookedModel,
    circuit: Circuit,
    pairs: TokenizedPairs,
    metric: Metric | str = logit_difference,
    ablation: Ablation | str = "corrupted",
    **options: Any,
) -> Faithfulness:
    """Faithfulness of the circuit's complement: near 0 where the circuit is complete. Options are `faithfulness`'s."""
    return faithfulness(model, circuit.complement(), pairs, metric, ablation, **options)


def minimality(
    model: HookedModel,
    circuit: Circuit,
    pairs: TokenizedPairs,
    metric: Metric | str = logit_difference,
    ablation: Ablation | str = "corrupted",
    *,
    memory: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> dict[str, Interval]:
    """The drop in faithfulness when an edge is removed from the circuit, for each edge; near 0 for a redundant one.

    Raises:
        ValueError: the circuit has no edge, or as `faithfulness`.
    """
    if not len(circuit):
        raise ValueError("the circuit has no edge that could be redundant")
    places = circuit.kept.nonzero()
    without = [circuit.kept.clone().index_put_(tuple(place[:, None]), torch.tensor(False)) for place in places]
    with open_request(model, pairs, metric, memory=memory, batch_size=batch_size, progress=progress) as request:
        runner = CircuitRunner(request, circuit.graph, ablation)
        whole, *others = runner.run([circuit, *(replace(circuit, kept=kept) for kept in without)])
    gap = whole.clean - whole.ablated
    return {
        name: ratio_interval(whole.circuit - left.circuit, gap)
        for name, left in zip(circuit.edges, others, strict=True)
    }


@dataclass(frozen=True, eq=False, repr=False)
class FaithfulnessCurve(Result):
    """Faithfulness of circuits of growing size.

    The areas are those of MIB (Mueller et al. 2025, arXiv 2504.13151) as its code has them: by trapezoids over the
    nominal shares on a linear axis, from the first to the last; a circuit of share s has `int(s * total)` edges.
    """

    n_edges: tuple[int, ...]
    total: int  # edges of the whole graph
    points: tuple[Faithfulness, ...]
    shares: tuple[float, ...] | None = None  # nominal, of all edges; None: those of `n_edges`

    def _line(self) -> str:
        sizes = f"{len(self.n_edges)} circuits of up to {max(self.n_edges, default=0):,} of {self.total:,} edges"
        return f"{sizes}: CPR {self.cpr:.3g}, CMD {self.cmd:.3g}"

    def _columns(self) -> dict[str, list[Any]]:
        shares = [n / self.total for n in self.n_edges]
        return {"edges": [*self.n_edges], "share": shares, "faithfulness": [point.mean for point in self.points]}

    def __getitem__(self, n_edges: int) -> Faithfulness:
        if n_edges not in self.n_edges:
            raise unknown("circuit", n_edges, map(str, self.n_edges))
        return self.points[self.n_edges.index(n_edges)]

    def plot(self) -> Any:
        """Faithfulness over the number of edges, in plotly; the empty circuit has no place on its log axis."""
        from sparselens.analyses.figures.plot import curve

        values, labels = [point.mean for point in self.points], ("edges", "faithfulness")
        return curve("Faithfulness", self.n_edges, values, labels, log_x=True, guides=(1.0,)).plotly()

    @property
    def cpr(self) -> float:
        """MIB's circuit performance ratio: area under faithfulness over the share of edges. Higher is better."""
        return self._area([point.mean for point in self.points])

    @property
    def cmd(self) -> float:
        """MIB's circuit-model distance: area under |1 - faithfulness|. Lower is better."""
        return self._area([abs(1 - point.mean) for point in self.points])

    def first_to_reach(self, goal: float) -> int | None:
        """Edges of the smallest of these circuits that reaches this faithfulness; None if none does."""
        return next((n for n, point in zip(self.n_edges, self.points, strict=True) if point.mean >= goal), None)

    def _area(self, heights: Sequence[float]) -> float:
        nominal = [n / self.total for n in self.n_edges] if self.shares is None else self.shares
        shares = torch.tensor(nominal, dtype=torch.float64)
        return float(torch.trapezoid(torch.tensor(heights, dtype=torch.float64), shares))


@pairs_first
def faithfulness_curve(
    model: HookedModel,
    pairs: TokenizedPairs,
    scores: EdgeScores,
    metric: Metric | str = logit_difference,
    sizes: Sequence[float | int] = SIZES,
    choose: Literal["top", "greedy"] | str = "top",
    ablation: Ablation | str = "corrupted",
    *,
    memory: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> FaithfulnessCurve:
    """Faithfulness of circuits of the highest-scoring edges, over their number.

    >>> curve = faithfulness_curve(model, pairs, attribute_edges(model, pairs))
    >>> curve.n_edges, curve.cpr, curve.cmd

    Args:
        sizes: shares of all edges (floats, rounded down to whole edges as by MIB) or numbers of edges (ints), rising;
            areas run from the first to the last
        choose: "top": by |mean score|; "greedy": from the logits upward, as EAP-IG

    Raises:
        ValueError: sizes do not rise, the choice is unknown, or as `faithfulness`.
    """
    graph = scores.graph
    numbers = [size if isinstance(size, int) else int(size * graph.n_edges) for size in sizes]
    shares = tuple(size / graph.n_edges if isinstance(size, int) else size for size in sizes)
    if not numbers or numbers != sorted(numbers):
        raise ValueError(f"sizes must rise, not {list(sizes)}")
    ways = {"top": scores.top, "greedy": scores.greedy}
    if choose not in ways:
        raise unknown("choice", choose, ways)
    circuits = [ways[choose](number) for number in numbers]
    with open_request(model, pairs, metric, memory=memory, batch_size=batch_size, progress=progress) as request:
        points = CircuitRunner(request, graph, ablation).run(circuits)
    return FaithfulnessCurve(tuple(numbers), graph.n_edges, tuple(points), shares)


# -- running


@dataclass(frozen=True, eq=False)
class _Baselines:
    """What all circuits share on some prompts."""

    batch: Request
    clean: PerPrompt  # the metric
    start: Float[Tensor, "batch pos d_model"]  # what the input writes in the clean run
    ablated: Ablated


class CircuitRunner:
    """Runs circuits of one graph on an open request; the runs that all of them share are made once."""

    def __init__(self, request: Request, graph: Graph, ablation: str) -> None:
        if ablation not in get_args(Ablation):
            raise unknown("ablation", ablation, get_args(Ablation))
        reading = request.reading
        if reading.graph != graph:
            raise ValueError(f"the circuit is one of a model with {graph}, not of this one with {reading.graph}")
        self._request, self._ablation = request, ablation
        self._post_norm = any(layer.post_norm is not None for layer in reading.layers)
        self._means = _mean_writes(request) if ablation == "mean" else None
        self._rows, self._at_once, keep = self._plan()
        self._kept: list[_Baselines] = []
        self.clean, self.ablated = torch.zeros(2, len(request))
        with progress_bar(len(request), "baselines", "prompt", request.progress, DELAY) as bar:
            for rows in self._rows:
                found = self._baselines(rows)
                self.clean[rows], self.ablated[rows] = (x.float().cpu() for x in (found.clean, found.ablated.metric))
                self._kept += [found] * keep
                del found  # before the next are made
                bar.update(len(rows))
        self.clean, self.ablated = summed(self.clean), summed(self.ablated)

    def _plan(self) -> tuple[list[Int[Tensor, " row"]], int, bool]:
        """The prompts that run together, the rows that may, and whether to keep what is shared."""
        request, graph = self._request, self._request.reading.graph
        whole, first = Circuit(graph, graph.exists), longest(request.pairs)
        one = request.batch(first)
        (at_once,), measured = one.sizes(lambda _: [self._run(self._baselines(first), [whole])])
        memory = request.budget.memory or MEMORY
        shared = 1 + len(graph.sources) + sum(1 + block.mlp for block in graph.blocks) + 1  # start, writes and streams
        kept = 4 * shared * one.pairs.clean.shape[1] * request.model.cfg.d_model * len(request)  # bytes
        fewer = at_once * (memory - kept) // memory if measured else at_once
        keep = 2 * kept <= memory and fewer > 0
        at_once = fewer if keep else at_once
        return list(mine(request.pairs.rows(at_once))), at_once, keep

    def run(self, circuits: Sequence[Circuit], bar: Any = None) -> list[Faithfulness]:
        """The faithfulness of every circuit.

        Args:
            bar: one that is told how many prompts are done; default: one of its own
        """
        values = torch.zeros(len(circuits), len(self._request))
        with progress_bar(values.numel(), "circuits", "run", self._request.progress and bar is None, DELAY) as own:
            for number, rows in enumerate(self._rows):
                found = self._kept[number] if self._kept else self._baselines(rows)
                for some in torch.arange(len(circuits)).split(max(1, self._at_once // len(rows))):
                    values[some[:, None], rows] = (
                        self._run(found, [circuits[number] for number in some.tolist()]).float().cpu()
                    )
                    (own if bar is None else bar).update(len(some) * len(rows))
                del found  # before the next are made
        return [Faithfulness(row, self.clean, self.ablated) for row in summed(values)]

    def _baselines(self, rows: Int[Tensor, " row"]) -> _Baselines:
        batch = self._request.batch(rows)
        start = batch.reading.layers[0].at("hook_resid_pre")
        clean = batch.record([start])
        writes = self._means
        if self._ablation == "zero":
            n_pos, d_model = batch.pairs.clean.shape[1], batch.model.cfg.d_model
            writes = torch.zeros(len(batch.reading.graph.sources), 1, n_pos, d_model)
        return _Baselines(batch, clean.metric, clean.recorded[start], ablated_by(batch, writes))

    def acting(self, circuit: Circuit) -> Circuit:
        """The circuit without its dead ends: the edges that no run of it would miss."""
        return circuit if self._post_norm else circuit.pruned(from_input=self._ablation == "corrupted")

    def _run(self, shared: _Baselines, circuits: Sequence[Circuit]) -> Float[Tensor, "circuit batch"]:
        kept = torch.stack([self.acting(circuit).kept for circuit in circuits])
        values, some = shared.ablated.metric.repeat(len(kept), 1), kept.flatten(1).any(1)
        if some.any():
            values[some.to(values.device)] = run_circuits(shared.batch, kept[some], shared.ablated, shared.start)
        return values


def _mean_writes(request: Request) -> Writes:
    """Mean over the corrupted prompts of every source's write at each position."""
    refuse_several_lengths(request.pairs, "means at each position")

    def sums(batch: Request) -> tuple[Tensor]:
        return (writes_of(batch.reading, written(batch, corrupted=True).recorded).sum(1, keepdim=True),)

    return sum(total for _, (total,) in in_batches(request, sums, "means")) / len(request)  # pyright: ignore
