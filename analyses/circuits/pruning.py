"""The pruned circuit: as few edges as possible that reach the goal, chosen and evaluated on different prompts.

1. Split the clean prompts into two halves: the circuit is chosen on one and evaluated on the other.
2. Start from all edges, ordered by their scores: those that lower the metric first.
3. Run the circuit without the first nine tenths of them, without three quarters, half, ..., and take the largest cut
   that leaves most of its faithfulness above the goal. Order the rest again, by what each edge adds within this circuit
   (`CircuitRunner.contributions`), and repeat.
4. If no such cut is possible, run the circuit without each of 16 groups of edges. Remove as many groups as leave it
   faithful, the most harmless first, verified by a run. Repeat; if no group can be removed, halve the groups.
5. Stop when no single edge can be removed, or after the given number of runs.
ACDC (Conmy et al. 2023) also removes edges as long as a circuit does its task, one at a time starting from the logits,
each by its own effect; Edge Pruning (Bhaskar et al. 2024) trains the share of each edge, with the gradient used here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.circuits.circuit_runs import DELAY, STEPS, Ablation, CircuitRunner, Faithfulness
from sparselens.analyses.circuits.edges_for_goal import edges_for_goal
from sparselens.analyses.circuits.faithfulness import FaithfulnessCurve
from sparselens.analyses.circuits.search import refuse_goal
from sparselens.analyses.engine.request import OpenModel, open_request
from sparselens.bars import is_watched, progress_bar
from sparselens.circuits.circuit import Circuit
from sparselens.models.hooked_model import HookedModel
from sparselens.prompts.checks import refuse_other_pairs
from sparselens.prompts.intervals import Clusters, Interval
from sparselens.prompts.metrics import Metric, logit_difference
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.results import Result

CUTS = ((0.9, 0.75, 0.5, 0.3), (0.15, 0.07, 0.03))  # shares of the edges; the second row if none of the first works
LEFT = 0.6  # share of the faithfulness above the goal that a cut has to leave
GROUPS = 16  # number of groups at first
SMALL, RUNS, FEWER_RUNS = 10_000, 400, 120  # default: RUNS circuits for graphs of up to SMALL edges, else FEWER_RUNS


@dataclass(frozen=True, eq=False, repr=False)
class PrunedCircuit(Result):
    """A pruned circuit, and its faithfulness on prompts that it was not chosen on.

    >>> found = pruned_circuit(model, pairs, attribute_edges(model, pairs))
    >>> found.circuit.edges, found.held_out.interval(), found.size_interval(0.8)
    """

    circuit: Circuit
    held_out: Faithfulness  # on the other half
    start: int  # number of edges before pruning
    untested: int  # edges that might be removable, because the runs ran out before each was tried alone; 0: none is
    chosen_on: Int[Tensor, " chosen"]  # indices of the prompts on which it was chosen
    tried: FaithfulnessCurve  # on these prompts: the best circuit of every size that was run

    def _line(self) -> str:
        left = f", {self.untested} of which were not tried" if self.untested else ""
        return f"{len(self.circuit)} of {self.start} edges{left}; on held-out prompts {self.held_out.mean:.3g} faithful"

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        return self.circuit._columns()

    def size_interval(self, goal: float, level: float = 0.95, clusters: Clusters = None) -> Interval | None:
        """Number of edges of the smallest tried circuit that reaches the goal, with its bootstrap interval.

        None if no circuit reaches it on the prompts themselves.

        Args:
            clusters: one label for each of `chosen_on`
        """
        return edges_for_goal(self.tried, goal, level, clusters=clusters)


def pruned_circuit(
    model: HookedModel,
    pairs: TokenizedPairs,
    scores: EdgeScores,
    metric: Metric | str = logit_difference,
    goal: float = 0.8,
    ablation: Ablation | str = "corrupted",
    *,
    runs: int | None = None,
    seed: int = 0,
    memory: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> PrunedCircuit | None:
    """Remove edges as long as the remaining circuit reaches the goal on half of the prompts.

    None if even the circuit of all edges does not reach it.

    >>> found = pruned_circuit(model, pairs, attribute_edges(model, pairs), goal=0.8)
    >>> len(found.circuit), found.held_out.interval(), found.untested  # edges; on the other half; 0: no edge can go

    Scope: a circuit that does the task, not everything that the model does. Edges that lower the metric are removed
    first, so a circuit may score higher than the model; with `metric="kl_divergence"` it has to predict what the model
    predicts. On the prompts that it was chosen on, no single edge can be removed; a smaller circuit of other edges may
    exist. On the other prompts it may be less faithful than the goal.

    Args:
        scores: of these pairs, for the initial order of edges (the only one if the metric has no gradient); if they
            were kept per prompt, only those of the choosing half are used
        runs: maximum number of circuits to run on the choosing half; a forward and backward pass counts as one.
            Default: 400, or 120 for a graph of more than 10,000 edges, whose runs take long
        seed: for the random split into two halves

    Raises:
        ValueError: all pairs have the same clean prompt, `runs` is below 1, or as `faithfulness`.
    """
    refuse_goal(goal)
    refuse_other_pairs(pairs)
    if runs is None:
        runs = RUNS if scores.graph.n_edges <= SMALL else FEWER_RUNS
    if runs < 1:
        raise ValueError(f"runs = {runs}: want at least 1")
    opened = model if isinstance(model, OpenModel) else OpenModel(model)
    options: dict[str, Any] = {"memory": memory, "batch_size": batch_size, "progress": progress}
    rows, others = halves(pairs, seed)
    if scores.per_prompt is not None and len(scores.clean) == len(pairs):
        scores = scores.of_prompts(rows)
    with open_request(opened, pairs[rows], metric, **options) as request:
        gradients = opened.has_gradient(request.metric, request.pairs)
        runner = CircuitRunner(request, scores.graph, ablation, gradients=gradients)
        with progress_bar(runs * len(rows), "pruning", "run", progress, DELAY) as bar:
            pruning = _Pruning(runner, scores, goal, runs, bar, gradients)
            pruning.run()
    if not pruning.found.mean >= goal:
        return None
    with open_request(opened, pairs[others], metric, **options) as request:
        (held_out,) = CircuitRunner(request, scores.graph, ablation).run([pruning.circuit])
    return PrunedCircuit(pruning.circuit, held_out, pruning.start, pruning.untested, rows, pruning.curve())


def halves(pairs: TokenizedPairs, seed: int) -> tuple[Int[Tensor, " chosen"], Int[Tensor, " other"]]:
    """The indices of the pairs in two random halves that share no clean prompt.

    Raises:
        ValueError: there is only one clean prompt.
    """
    labels = pairs.clusters()
    names = list(dict.fromkeys(labels))
    if len(names) < 2:
        raise ValueError("all pairs have the same clean prompt: pruning needs others to evaluate the circuit on")
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = {names[number] for number in order[: (len(names) + 1) // 2]}
    inside = torch.tensor([label in chosen for label in labels])
    return inside.nonzero()[:, 0], (~inside).nonzero()[:, 0]


class _Pruning:
    """A circuit from which edges are removed step by step."""

    def __init__(
        self, runner: CircuitRunner, scores: EdgeScores, goal: float, runs: int, bar: Any, gradients: bool
    ) -> None:
        self._runner, self._goal, self._left, self._bar, self._gradients = runner, goal, runs, bar, gradients
        self._tried = dict[int, tuple[Circuit, Faithfulness]]()  # the best circuit of every size
        whole = scores.top(int(scores.measured.sum()))
        self._helps = 1 if runner.clean.mean() > runner.ablated.mean() else -1  # the sign of an edge that helps
        self._values = self._helps * scores.mean
        self.start, self.circuit = len(whole), runner.acting(whole)
        self.untested = len(self.circuit)
        (self.found,) = self._run([self.circuit])

    def run(self) -> None:
        """Remove edges until none can go, or the runs are used up."""
        if self.found.mean >= self._goal:
            while self._cut():
                self._reorder()
            self._remove_groups()
            while self._go_back_to_smallest():
                self._remove_groups()

    def curve(self) -> FaithfulnessCurve:
        """The best circuit of every size that was run."""
        sizes = tuple(sorted(self._tried))
        return FaithfulnessCurve(sizes, self.circuit.graph.n_edges, tuple(self._tried[size][1] for size in sizes))

    def _cut(self) -> bool:
        """Remove the largest part of the edges that can go, if any."""
        order, least = self._least_first(), self._goal + LEFT * (self.found.mean - self._goal)
        for cuts in CUTS:
            numbers = [number for cut in cuts if (number := int(cut * len(order)))]
            circuits = [self._without([order[:number]]) for number in numbers]
            for circuit, found in zip(circuits, self._run(circuits), strict=False):
                if found.mean >= least:
                    self._take(circuit, found)
                    return True
        return False

    def _reorder(self) -> None:
        """Order the edges by what they add within the circuit, if the metric has a gradient and runs are left."""
        if self._gradients and self._left > STEPS:
            self._left -= STEPS
            self._values = self._helps * self._runner.contributions(self.circuit)
            self._bar.update(STEPS * len(self.found.clean))

    def _go_back_to_smallest(self) -> bool:
        """Continue from the smallest circuit so far that reaches the goal, if it is smaller than this one."""
        smallest = min(size for size, (_, found) in self._tried.items() if found.mean >= self._goal)
        if smallest < len(self.circuit):
            self._take(*self._tried[smallest])
            return True
        return False

    def _remove_groups(self) -> None:
        """Remove harmless groups of edges, smaller and smaller ones, until no single edge can be removed."""
        size = math.ceil(len(self.circuit) / GROUPS)
        while self._left:
            groups = list(self._least_first().split(size))
            circuits = [self._without([group]) for group in groups]
            found = self._run(circuits)
            harmless = sorted((-alone.mean, number) for number, alone in enumerate(found) if alone.mean >= self._goal)
            if harmless:
                self._remove([groups[number] for _, number in harmless])
            elif size > 1:
                size = math.ceil(size / 2)
            else:
                self.untested = len(groups) - len(found)
                return

    def _remove(self, order: Sequence[Tensor]) -> None:
        """Remove as many of the first groups as leave the circuit faithful; it is without the first one."""
        before, enough, too_many = self.circuit, 0, len(order) + 1
        while enough + 1 < too_many and self._left:
            doubles = too_many > len(order)
            number = min(max(1, 2 * enough), len(order)) if doubles else (enough + too_many) // 2
            circuit = self._without(order[:number], before)
            (found,) = self._run([circuit])
            if found.mean >= self._goal:
                enough = number
                self._take(circuit, found)
            else:
                too_many = number

    def _least_first(self) -> Int[Tensor, " edge"]:
        kept = self.circuit.kept.flatten().nonzero()[:, 0]
        return kept[self._values.flatten()[kept].argsort(stable=True)]

    def _take(self, circuit: Circuit, found: Faithfulness) -> None:
        self.circuit, self.found, self.untested = circuit, found, len(circuit)
        self._bar.set_postfix_str(f"{len(circuit)} of {self.start} edges", refresh=is_watched())

    def _without(self, groups: Sequence[Tensor], circuit: Circuit | None = None) -> Circuit:
        circuit = self.circuit if circuit is None else circuit
        kept = circuit.kept.flatten().index_fill(0, torch.cat(list(groups)), False)
        return self._runner.acting(replace(circuit, kept=kept.view_as(circuit.kept)))

    def _run(self, circuits: Sequence[Circuit]) -> list[Faithfulness]:
        """Run as many of these circuits as there are runs left."""
        some = circuits[: self._left]
        self._left -= len(some)
        ran = self._runner.run(some, self._bar) if some else []
        for circuit, found in zip(some, ran, strict=True):
            before = self._tried.get(len(circuit))
            if before is None or found.mean > before[1].mean:
                self._tried[len(circuit)] = circuit, found
        return ran
