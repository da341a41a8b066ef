"""The pruned circuit: a faithful circuit without dispensable edges, chosen and evaluated on different prompts.

1. Split the clean prompts into two halves: the circuit is chosen on one and evaluated on the other.
2. Start from the smallest prefix of the ranking that reaches the goal (`search`), without its dead ends.
3. Run it without each of 16 groups of edges. Remove as many groups as still leave it faithful, the most harmless first,
   verified by a run, and the dead ends that this makes. Repeat; where no group can go, halve the groups.
4. End when no single edge can be removed, or after the given number of runs.
ACDC (Conmy et al. 2023) also removes edges while a circuit does its task, one at a time from the logits down, each by
its own effect; here the goal is set to the faithfulness of the whole circuit.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.circuits.circuit_runs import DELAY, Ablation, CircuitRunner, Faithfulness
from sparselens.analyses.circuits.edges_for_goal import edges_for_goal
from sparselens.analyses.circuits.faithfulness import FaithfulnessCurve
from sparselens.analyses.circuits.search import refuse_goal, search
from sparselens.analyses.engine.request import OpenModel, open_request
from sparselens.bars import is_watched, progress_bar
from sparselens.circuits.circuit import Circuit
from sparselens.models.hooked_model import HookedModel
from sparselens.prompts.checks import refuse_other_pairs
from sparselens.prompts.intervals import Clusters, Interval
from sparselens.prompts.metrics import Metric, logit_difference
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.results import Result

GROUPS = 16  # into which the edges are divided at first
SMALL, RUNS, FEWER_RUNS = 10_000, 400, 40  # circuits to run by default: up to so many edges, and beyond


@dataclass(frozen=True, eq=False, repr=False)
class PrunedCircuit(Result):
    """A pruned circuit, and its faithfulness on prompts that it was not chosen on.

    >>> found = pruned_circuit(model, pairs, attribute_edges(model, pairs))
    >>> found.circuit.edges, found.held_out.interval(), found.size_interval(0.8)
    """

    circuit: Circuit
    held_out: Faithfulness  # on the other half
    start: int  # edges of the prefix of the ranking that was pruned
    untested: int  # edges that may be removable: the runs were used up before each was tried alone. 0: none is
    chosen_on: Int[Tensor, " chosen"]  # the numbers of the prompts that chose it
    tried: FaithfulnessCurve  # on those: the prefixes, the circuits on the way, and a few smaller ones

    def _line(self) -> str:
        left = f", {self.untested} of which were not tried" if self.untested else ""
        return f"{len(self.circuit)} of {self.start} edges{left}; on held-out prompts {self.held_out.mean:.3g} faithful"

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        return self.circuit._columns()

    def size_interval(self, goal: float, level: float = 0.95, clusters: Clusters = None) -> Interval | None:
        """Edges of the smallest circuit on the way that reaches the goal, with its bootstrap interval over prompts.

        None if none does with the prompts as they are.

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
    """Remove edges from the smallest faithful prefix of the ranking for as long as half of the prompts stay faithful.

    None if not even all edges reach the goal.

    >>> found = pruned_circuit(model, pairs, attribute_edges(model, pairs), goal=0.8)
    >>> len(found.circuit), found.held_out.interval(), found.untested  # edges, on the other half, 0: no edge can go

    Scope: no single edge can be removed on the prompts that it was chosen on; a smaller circuit of other edges may
    exist. On the other prompts it may be less faithful than the goal.

    Args:
        scores: of these pairs; if they were kept per prompt, those of the choosing half are used
        runs: circuits to run at most on the choosing half, not counting those of the search for the prefix. Default:
            400, or 40 for a graph of more than 10,000 edges, whose runs take long
        seed: for the two halves

    Raises:
        ValueError: all pairs have the same clean prompt, `runs` is below 1, or as `faithful_circuit`.
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
        runner = CircuitRunner(request, scores.graph, ablation)
        sizes = dict[int, Faithfulness]()
        prefix, found = search(runner, scores, goal, progress, sizes)
        if not found.mean >= goal:
            return None
        pruning = _Pruning(runner, prefix, found, goal, runs)
        with progress_bar(runs * len(rows), "pruning", "run", progress, DELAY) as bar:
            pruning.run(bar)
    with open_request(opened, pairs[others], metric, **options) as request:
        (held_out,) = CircuitRunner(request, scores.graph, ablation).run([pruning.circuit])
    sizes = {size: point for size, point in sizes.items() if size > len(prefix)} | pruning.tried
    numbers = tuple(sorted(sizes))
    tried = FaithfulnessCurve(numbers, scores.graph.n_edges, tuple(sizes[number] for number in numbers))
    return PrunedCircuit(pruning.circuit, held_out, len(prefix), pruning.untested, rows, tried)


def halves(pairs: TokenizedPairs, seed: int) -> tuple[Int[Tensor, " chosen"], Int[Tensor, " other"]]:
    """The numbers of the pairs in two halves at random, which share no clean prompt.

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
    """A circuit that loses edges. `tried` keeps what was found for each size on the way."""

    def __init__(self, runner: CircuitRunner, circuit: Circuit, found: Faithfulness, goal: float, runs: int) -> None:
        self._runner, self._goal, self._left = runner, goal, runs
        self._start, self.circuit = len(circuit), runner.acting(circuit)
        self.tried = {len(self.circuit): found}
        self.untested = len(self.circuit)

    def run(self, bar: Any) -> None:
        """Remove edges until none can go, or the runs are used up."""
        self._bar, size = bar, math.ceil(len(self.circuit) / GROUPS)
        while self._left:
            self._bar.set_postfix_str(
                f"{len(self.circuit)} of {self._start} edges, {size} at a time", refresh=is_watched()
            )
            groups = self._groups(size)
            found = self._run([self._without([group]) for group in groups])
            harmless = sorted((-alone.mean, number) for number, alone in enumerate(found) if alone.mean >= self._goal)
            order = [groups[number] for _, number in harmless]
            if order:
                self.untested = self._remove(order, found[harmless[0][1]])
            elif size > 1:
                size = math.ceil(size / 2)
            else:
                self.untested = len(groups) - len(found)
                self._smaller([groups[number] for number in torch.tensor([-f.mean for f in found]).argsort().tolist()])
                return

    def _run(self, circuits: Sequence[Circuit]) -> list[Faithfulness]:
        """As many of these as there are runs left for."""
        some = circuits[: self._left]
        self._left -= len(some)
        return self._runner.run(some, self._bar)

    def _groups(self, size: int) -> list[Tensor]:
        """The edges, least score first, in groups of this size."""
        kept = self.circuit.kept.flatten().nonzero()[:, 0]
        return list(kept[self.circuit.scores.flatten()[kept].abs().argsort()].split(size))

    def _without(self, groups: Sequence[Tensor]) -> Circuit:
        kept = self.circuit.kept.flatten().index_fill(0, torch.cat(list(groups)), False)
        return self._runner.acting(replace(self.circuit, kept=kept.view_as(self.circuit.kept)))

    def _remove(self, order: Sequence[Tensor], without_first: Faithfulness) -> int:
        """Remove the first groups, as many as leave the circuit faithful. Returns how many edges it has then."""
        enough, too_many = 1, len(order) + 1
        best = self._without(order[:1]), without_first
        while enough + 1 < too_many and self._left:
            doubles = too_many > len(order)
            number = min(2 * enough, len(order)) if doubles else (enough + too_many) // 2
            circuit = self._without(order[:number])
            (found,) = self._run([circuit])
            if found.mean >= self._goal:
                enough, best = number, (circuit, found)
            else:
                too_many = number
        self.circuit, found = best
        self.tried[len(self.circuit)] = found
        return len(self.circuit)

    def _smaller(self, order: Sequence[Tensor]) -> None:
        """Circuits below the goal, which resampled prompts may find faithful: without 1, 2, 4, ... of the edges."""
        number = 1
        while number < len(order) and self._left:
            circuit = self._without(order[:number])
            (self.tried[len(circuit)],) = self._run([circuit])
            number *= 2
