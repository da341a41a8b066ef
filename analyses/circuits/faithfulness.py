"""What a circuit does by itself: faithfulness, completeness, minimality, and MIB's curves and areas.

1. Run the model with every edge outside the circuit C ablated (`ablated_run`).
2. faithfulness(C) = (metric of C - ablated) / (metric of the clean run - ablated), where "ablated" is the metric of the
   run with every edge ablated: the corrupted run, or means or zeros in place of all writes (Hanna et al. 2024).
3. Ratios are of means over prompts, with bootstrap confidence intervals over prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.circuits.circuit_runs import Ablation, CircuitRunner, Faithfulness
from sparselens.analyses.engine.renamed import pairs_first
from sparselens.analyses.engine.request import open_request
from sparselens.circuits.circuit import Circuit
from sparselens.models.hooked_model import HookedModel
from sparselens.names import unknown
from sparselens.prompts.intervals import Interval, ratio_interval
from sparselens.prompts.metrics import Metric, logit_difference
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.results import Result

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # MIB's percentages, as shares of all edges


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

    Sign convention: 1 if the circuit scores like the whole model, 0 if it scores like the ablated one; it may be above
    1 or negative.

    Scope: what the circuit does under this ablation. Another ablation is another question, with another answer.

    Args:
        ablation: what edges outside the circuit carry: the corrupted run's writes, their mean over corrupted prompts at
            each position, or zero. Edges from the input carry token and position embeddings, so both are ablated.
        memory, batch_size: as in `attribute_edges`

    Raises:
        ValueError: the circuit is another model's, the ablation is unknown or a mean over prompts of several lengths,
            or as `attribute_edges`.
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
    """Faithfulness of the circuit's complement: near 0 where the circuit is complete.

    Options, sign convention and scope are those of `faithfulness`.

    >>> completeness(model, scores.top(50), pairs).interval()
    """
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

    >>> minimality(model, scores.top(20), pairs)["a0.h1->m0"]  # with its confidence interval

    Sign convention: positive where the circuit is less faithful without the edge.

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
        name: ratio_interval(whole.circuit - left.circuit, gap, clusters=pairs.clean_prompt)
        for name, left in zip(circuit.edges, others, strict=True)
    }


@dataclass(frozen=True, eq=False, repr=False)
class FaithfulnessCurve(Result):
    """Faithfulness of circuits of growing size, and the two areas of MIB (Mueller et al. 2025, arXiv 2504.13151).

    With f_i the faithfulness of the circuit of nominal share s_i, and trapezoids in between:

        CPR = sum_i (s_{i+1} - s_i) (f_i + f_{i+1}) / 2,    CMD = the same for |1 - f|

    as in `evaluate_area_under_curve` of github.com/hannamw/MIB-circuit-track (b759df3): on a linear axis, from 0.001 to
    1; a circuit of share s has `int(s * total)` edges, and dead ends do not act. MIB's table uses two rankings: by
    |score| for CMD (here `choose="top"`) and, where it was run, by the signed score for CPR ("signed").
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
        """Faithfulness over the number of edges, in plotly; its log axis cannot show the empty circuit."""
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
    choose: Literal["top", "signed", "greedy"] | str = "top",
    ablation: Ablation | str = "corrupted",
    *,
    memory: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> FaithfulnessCurve:
    """Faithfulness of circuits of the highest-scoring edges, over their number.

    >>> curve = faithfulness_curve(model, pairs, attribute_edges(model, pairs))
    >>> curve.n_edges, curve.cpr, curve.cmd

    Sign convention and scope are those of `faithfulness`.

    Args:
        sizes: shares of all edges (floats, rounded down to whole edges as in MIB) or numbers of edges (ints), rising;
            areas are taken from the first to the last
        choose: "top": by |mean score|, as for MIB's CMD; "signed": by mean score, so that edges that lower the metric
            come last, as for MIB's CPR; "greedy": starting from the logits, as in EAP-IG

    Raises:
        ValueError: sizes do not rise, the choice is unknown, or as `faithfulness`.
    """
    graph = scores.graph
    numbers = [size if isinstance(size, int) else int(size * graph.n_edges) for size in sizes]
    shares = tuple(size / graph.n_edges if isinstance(size, int) else size for size in sizes)
    if not numbers or numbers != sorted(numbers):
        raise ValueError(f"sizes must rise, not {list(sizes)}")
    ways = {"top": scores.top, "signed": partial(scores.top, signed=True), "greedy": scores.greedy}
    if choose not in ways:
        raise unknown("choice", choose, ways)
    circuits = [ways[choose](number) for number in numbers]
    with open_request(model, pairs, metric, memory=memory, batch_size=batch_size, progress=progress) as request:
        points = CircuitRunner(request, graph, ablation).run(circuits)
    return FaithfulnessCurve(tuple(numbers), graph.n_edges, tuple(points), shares)
