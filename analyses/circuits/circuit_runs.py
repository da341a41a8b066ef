"""Runs of circuits: the metric of every prompt with all edges outside a circuit ablated.

1. The runs that all circuits share are made once: the clean run, and the one with every edge ablated.
2. Several circuits run at once, as rows of a batch (`ablated_run`).
3. What an edge adds within a circuit is its integrated gradient (Sundararajan et al. 2017), as all edges of the circuit
   go from the ablated writes to this run's, by the midpoint rule.
4. Several processes can share the prompts (`engine.processes`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselens.analyses.circuits.ablated_run import Ablated, ablated_by, edge_gradient, run_circuits
from sparselens.analyses.engine.batching import in_batches, longest
from sparselens.analyses.engine.budget import MEMORY
from sparselens.analyses.engine.edge_products import Writes, writes_of
from sparselens.analyses.engine.gradients import written
from sparselens.analyses.engine.processes import mine, summed
from sparselens.analyses.engine.request import PerPrompt, Request, refuse_several_lengths
from sparselens.bars import progress_bar
from sparselens.circuits.circuit import Circuit
from sparselens.circuits.graph import Graph
from sparselens.names import unknown
from sparselens.prompts.intervals import Clusters, Interval, ratio_interval
from sparselens.results import Result

Ablation = Literal["corrupted", "mean", "zero"]
STEPS = 3  # of the midpoint rule; with one, SmolLM2's edges are ordered far worse
DELAY = 5.0  # seconds after which a progress bar shows
ROUNDING = 5e-6  # relative difference that float32 rounding may cause between equal metrics


@dataclass(frozen=True, eq=False, repr=False)
class Faithfulness(Result):
    """The metric of a circuit, of the whole model, and of the run with every edge ablated, for every prompt.

    >>> found = faithfulness(model, scores.top(50), pairs)
    >>> found.mean, found.interval(), found.per_prompt.shape  # the ratio of the means, with its interval; [batch]

    Sign convention: 1 if the circuit scores like the whole model, 0 if it scores like the ablated one.
    """

    circuit: Float[Tensor, " batch"]
    clean: Float[Tensor, " batch"]
    ablated: Float[Tensor, " batch"]
    clean_prompt: Int[Tensor, " batch"] | None = None  # its index; pairs with the same one count as one observation

    def _line(self) -> str:
        whole, nothing, n = float(self.clean.mean()), float(self.ablated.mean()), len(self.clean)
        ratio = f"{self.interval()}" if self._differs else "undefined"
        metrics = f"metric {float(self.circuit.mean()):.3g}, {whole:.3g} whole, {nothing:.3g} ablated"
        return f"{ratio}, {n} prompts: {metrics}"

    def _columns(self) -> dict[str, list[Any]]:
        names = ("circuit", "clean", "ablated", "per_prompt")
        return {name.replace("per_prompt", "faithfulness"): getattr(self, name).tolist() for name in names}

    def plot(self) -> Any:
        """Faithfulness over prompts, as a plotly histogram."""
        return self._figure("histogram", self.to_frame(), x="faithfulness")

    @property
    def per_prompt(self) -> Float[Tensor, " batch"]:
        """Faithfulness on each prompt; not finite where clean and ablated run score the same."""
        return (self.circuit - self.ablated) / (self.clean - self.ablated)

    @property
    def mean(self) -> float:
        """Ratio of the means over prompts; NaN where clean and ablated runs score the same on average."""
        if not self._differs:
            return math.nan
        return float((self.circuit - self.ablated).mean() / (self.clean - self.ablated).mean())

    @property
    def _differs(self) -> bool:
        """Whether clean and ablated runs differ by more than float32 rounding."""
        gap, size = (self.clean - self.ablated).mean().abs(), torch.stack([self.clean, self.ablated]).abs().mean()
        return bool(gap > ROUNDING * size)

    def interval(self, level: float = 0.95, clusters: Clusters = None) -> Interval:
        """Ratio of the means, with its bootstrap confidence interval over clean prompts.

        Args:
            clusters: prompts that are one observation; default: those with the same clean prompt

        Raises:
            ValueError: on average, clean and ablated runs score the same.
        """
        if not self._differs:
            raise ValueError("clean and ablated runs score the same, so faithfulness is undefined")
        alike = self.clean_prompt if clusters is None else clusters
        return ratio_interval(self.circuit - self.ablated, self.clean - self.ablated, level, clusters=alike)


@dataclass(frozen=True, eq=False)
class _Baselines:
    """The runs that all circuits share, on some prompts."""

    batch: Request
    clean: PerPrompt  # the metric
    start: Float[Tensor, "batch pos d_model"]  # what the input writes in the clean run
    ablated: Ablated


class CircuitRunner:
    """Runs circuits of one graph on an open request; the runs that all of them share are made once.

    Args:
        gradients: leave enough memory for `contributions`
    """

    def __init__(self, request: Request, graph: Graph, ablation: str, *, gradients: bool = False) -> None:
        if ablation not in get_args(Ablation):
            raise unknown("ablation", ablation, get_args(Ablation))
        reading = request.reading
        if reading.graph != graph:
            raise ValueError(f"the circuit belongs to a model with {graph}, not to this one with {reading.graph}")
        self._request = request = request.sharing() if ablation == "corrupted" else request
        self._ablation = ablation
        self._post_norm = any(layer.post_norm is not None for layer in reading.layers)
        self._means = _mean_writes(request) if ablation == "mean" else None
        self._rows, self._at_once, keep = self._plan(gradients)
        self._kept: list[_Baselines] = []
        self.clean, self.ablated = torch.zeros(2, len(request))
        with progress_bar(len(request), "baselines", "prompt", request.progress, DELAY) as bar:
            for rows in self._rows:
                found = self._baselines(rows)
                self.clean[rows], self.ablated[rows] = (x.float().cpu() for x in (found.clean, found.ablated.metric))
                self._kept += [found] * keep
                del found  # free its memory before the next batch
                bar.update(len(rows))
        self.clean, self.ablated = summed(self.clean), summed(self.ablated)
        self._clean_prompt = request.pairs.clean_prompt

    def _plan(self, gradients: bool) -> tuple[list[Int[Tensor, " row"]], int, bool]:
        """The prompts that run together, how many rows may run at once, and whether to keep the shared runs."""
        request, graph = self._request, self._request.reading.graph
        whole, first = Circuit(graph, graph.exists), longest(request)
        one = request.batch(first)
        run = self._contributions if gradients else self._run
        (at_once,), measured = one.sizes(lambda _: [run(self._baselines(first), [whole])])
        memory = request.budget.memory or MEMORY
        config = request.model.cfg
        size = sum(block.n_heads * config.d_head + (1 + 2 * block.mlp) * config.d_model for block in graph.blocks)
        # bytes: heads' outputs, MLPs' writes, streams, and the input of both runs and the last stream
        kept = 4 * (size + 3 * config.d_model) * one.pairs.clean.shape[1] * len(request)
        fewer = at_once * (memory - kept) // memory if measured else at_once
        keep = 2 * kept <= memory and fewer > 0
        at_once = fewer if keep else at_once
        return list(mine(request.pairs.rows(at_once))), at_once, keep

    def run(self, circuits: Sequence[Circuit], bar: Any = None) -> list[Faithfulness]:
        """The faithfulness of every circuit.

        Args:
            bar: progress bar to advance by prompts; default: a new one
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
                del found  # free its memory before the next batch
        return [Faithfulness(row, self.clean, self.ablated, self._clean_prompt) for row in summed(values)]

    def contributions(self, circuit: Circuit) -> Float[Tensor, "source destination"]:
        """What every edge of the circuit adds to the metric within it, averaged over prompts; zero outside.

        The sum is about what the circuit adds to the run in which every edge is ablated. This does not hold under zero
        ablation in a model with RMS norms, which undo a scaling of all edges: there only their order is meaningful.

        Raises:
            ValueError: the metric has no gradient.
        """
        total = torch.zeros(circuit.kept.shape)
        for number, rows in enumerate(self._rows):
            found = self._kept[number] if self._kept else self._baselines(rows)
            total += self._contributions(found, [circuit], STEPS).float().cpu()
            del found  # free its memory before the next batch
        return summed(total) / len(self._request)

    def _contributions(
        self, shared: _Baselines, circuits: Sequence[Circuit], steps: int = 1
    ) -> Float[Tensor, "source destination"]:
        """The contributions in one circuit, summed over these prompts."""
        (circuit,) = circuits
        kept = self.acting(circuit).kept.to(shared.start)
        shares = [(number + 0.5) / steps for number in range(steps)]
        gradients = [edge_gradient(shared.batch, share * kept, shared.ablated, shared.start) for share in shares]
        return torch.stack(gradients).mean(0) * kept

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
        """The circuit without its dead ends, which have no effect on its runs."""
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
