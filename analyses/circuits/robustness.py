"""Does a circuit survive other prompts of the same task: another template, another draw, another model?

1. On every group of prompts, find a circuit in the same way: score all edges, and take the smallest prefix of the
   ranking that reaches the goal (`search`). This is one attribution and one search per group.
2. Run every circuit on every group. A cell is the faithfulness of the row's circuit on the column's prompts.
3. On its own prompts a circuit reaches the goal because it was chosen to; the test is off the diagonal. Groups that
   differ only in the random draw show how much of the drop is chance.
`stability` compares single prompts, by their scores only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparselens.analyses.attribution.edges import attribute_edges
from sparselens.analyses.attribution.integration import DEFAULT, Method
from sparselens.analyses.circuits.between_groups import mean_over_cells
from sparselens.analyses.circuits.circuit_runs import Ablation, CircuitRunner, Faithfulness
from sparselens.analyses.circuits.search import refuse_goal, search
from sparselens.analyses.engine.gate_gradient import GateGradient
from sparselens.analyses.engine.request import OpenModel, open_request
from sparselens.bars import progress_bar
from sparselens.circuits.circuit import Circuit
from sparselens.models.hooked_model import HookedModel
from sparselens.prompts.checks import refuse_other_pairs
from sparselens.prompts.intervals import Clusters, Interval
from sparselens.prompts.metrics import Metric, logit_difference
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.results import Result

LEAST = 2  # different clean prompts in a group; with one there is no interval
_SHOWN = 40  # characters of a group's name in a picture


@dataclass(frozen=True, eq=False, repr=False)
class Robustness(Result):
    """Faithfulness of circuits found on some groups of prompts, on all groups, and how much the circuits overlap.

    >>> found.faithfulness, found.interval("seed 0", "seed 1")  # a matrix; found on the first, run on the second
    >>> found.own(), found.across(), found.overlap()  # mean on own prompts, on others' prompts, mean Jaccard index
    """

    circuits: Mapping[str, Circuit]  # by the group that each was found on
    runs: Mapping[tuple[str, str], Faithfulness]  # (found on, run on)
    clusters: Mapping[str, Clusters]  # for every group that circuits were run on: the clean prompt of every pair
    goal: float

    def _line(self) -> str:
        sizes = sorted(len(circuit) for circuit in self.circuits.values())
        edges = f"{sizes[0]} to {sizes[-1]}" if sizes[0] < sizes[-1] else f"{sizes[0]}"
        parts = [f"{len(sizes)} circuits of {edges} edges on {len(self.run_on)} groups: faithfulness"]
        parts += [f"{self.own().mean:.2f} on their own,"] if self._cells(own=True).any() else []
        parts += [f"{self.across()} on others,"] if self._cells(own=False).any() else []
        parts += [f"Jaccard {self.overlap()}"] if len(sizes) > 1 else []
        return " ".join(parts).rstrip(",")

    def _columns(self) -> dict[str, list[Any]]:
        cells = list(self.runs)
        intervals = [self.interval(*cell) for cell in cells]
        circuits = [(self.circuits[one], self.circuits.get(other)) for one, other in cells]
        return {
            "found_on": [one for one, _ in cells],
            "run_on": [other for _, other in cells],
            "faithfulness": [interval.mean for interval in intervals],
            "low": [interval.low for interval in intervals],
            "high": [interval.high for interval in intervals],
            "edges": [len(one) for one, _ in circuits],
            "jaccard": [float("nan") if other is None else one.jaccard(other) for one, other in circuits],
        }

    def plot(self) -> Any:
        """Faithfulness as a plotly heat map: a row for each circuit, a column for each group it was run on."""
        from sparselens.analyses.figures.heat_maps import heat_map, written_on

        rows, columns = _short(self.found_on), _short(self.run_on)
        how: dict[str, Any] = {"rows": rows, "columns": columns, "value_label": "faithfulness", "limit": 1.0}
        texts = [[f"{value:.2f}" for value in row] for row in self.faithfulness.tolist()]
        return written_on(heat_map(self.faithfulness, "Found on a row's prompts, run on a column's", **how), texts)

    @property
    def found_on(self) -> tuple[str, ...]:
        """Names of the groups on which circuits were found: the rows."""
        return tuple(self.circuits)

    @property
    def run_on(self) -> tuple[str, ...]:
        """Names of the groups on which circuits were run: the columns."""
        return tuple(self.clusters)

    @cached_property
    def faithfulness(self) -> Float[Tensor, "found_on run_on"]:
        """Ratio of the means over a group's prompts, for every circuit on every group."""
        return torch.tensor([[self.runs[row, column].mean for column in self.run_on] for row in self.found_on])

    @cached_property
    def jaccard(self) -> Float[Tensor, "found_on found_on"]:
        """Number of edges in both of two circuits, divided by the number in either."""
        every = list(self.circuits.values())
        return torch.tensor([[one.jaccard(other) for other in every] for one in every])

    def interval(self, found_on: str, run_on: str, level: float = 0.95) -> Interval:
        """The faithfulness of one circuit on one group, with its bootstrap interval over clean prompts.

        Raises:
            ValueError: there is no such cell.
        """
        if (found_on, run_on) not in self.runs:
            names = f"found on {', '.join(self.found_on)}; run on {', '.join(self.run_on)}"
            raise ValueError(f"no such cell: {(found_on, run_on)!r} (circuits were {names})")
        return self.runs[found_on, run_on].interval(level, self.clusters[run_on])

    def own(self, level: float = 0.95) -> Interval:
        """Mean faithfulness where circuit and prompts are of the same group, with its interval over groups.

        Raises:
            ValueError: there is no such cell.
        """
        return self._mean(True, level)

    def across(self, level: float = 0.95) -> Interval:
        """Mean faithfulness where circuit and prompts are of different groups, with its interval over groups.

        Raises:
            ValueError: there is no such cell.
        """
        return self._mean(False, level)

    def overlap(self, level: float = 0.95) -> Interval:
        """Mean Jaccard index of two different circuits, with its interval over groups.

        Raises:
            ValueError: there is only one circuit.
        """
        different = ~np.eye(len(self.circuits), dtype=bool)
        values, names = self.jaccard.double().numpy(), self.found_on
        return _within(mean_over_cells(values, different, names, names, level))

    def overlap_with(self, other: "Robustness", level: float = 0.95) -> Interval:
        """Mean Jaccard index with another model's circuits, each compared with the one of the same group.

        Raises:
            ValueError: no group is in both.
        """
        names = [name for name in self.circuits if name in other.circuits]
        values = np.diag([self.circuits[name].jaccard(other.circuits[name]) for name in names])
        return _within(mean_over_cells(values, np.eye(len(names), dtype=bool), names, names, level))

    def _mean(self, own: bool, level: float) -> Interval:
        values = self.faithfulness.double().numpy()
        return mean_over_cells(values, self._cells(own), self.found_on, self.run_on, level)

    def _cells(self, own: bool) -> Bool[np.ndarray, "found_on run_on"]:
        """Where the names of row and column are the same, or where they differ."""
        agree = np.array(self.found_on)[:, None] == np.array(self.run_on)
        return agree if own else ~agree


def _within(share: Interval) -> Interval:
    """The interval of a share, clipped to 0 and 1."""
    low, high = np.clip((share.low, share.high), 0, 1).tolist()
    return replace(share, low=low, high=high)


def robustness(
    model: HookedModel,
    groups: Mapping[str, TokenizedPairs],
    metric: Metric | str = logit_difference,
    method: Method | str = DEFAULT,
    steps: int = 5,
    *,
    goal: float = 0.8,
    ablation: Ablation | str = "corrupted",
    gate_gradient: GateGradient | str = "none",
    circuits: Mapping[str, Circuit] | None = None,
    memory: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Robustness:
    """Find a circuit on every group of prompts, and run each on all groups.

    >>> groups = TASKS["gendered_pronoun"].tokenize(model.tokenizer, 200).groups()  # by template
    >>> found = robustness(model, groups)
    >>> found.across(), found.overlap()  # mean faithfulness on other templates, mean Jaccard index, with intervals
    >>> robustness(sparse, groups, circuits=found.circuits).own()  # the same circuits inside another model

    Sign convention: 1 if a circuit scores like the whole model on those prompts, 0 if it scores like the ablated one.

    Scope: the circuit of a group is the smallest prefix of the ranking by mean scores that reaches the goal, not the
    only circuit that does. A low overlap of circuits that are faithful on each other's prompts means that there are
    several; low faithfulness across groups means that the circuit is specific to its prompts, not to the task.

    Args:
        groups: pairs by name: `TokenizedPairs.groups()` for templates, several seeds, or resampled rows
        method, steps, gate_gradient: for edge attribution, see `attribute_edges`
        goal: faithfulness that each circuit has to reach on its own group (`faithful_circuit`)
        ablation: what edges outside a circuit carry, see `faithfulness`
        circuits: run these instead of searching, such as another model's circuits or those of held-out templates
        memory, batch_size: as in `attribute_edges`

    Raises:
        ValueError: there are too few groups or circuits, a group is too small or its prompts do not change the metric,
            a circuit is of a model of another shape, or as `attribute_edges` and `faithful_circuit`.
    """
    refuse_goal(goal)
    _refuse_groups(groups, circuits)
    opened: Any = model if isinstance(model, OpenModel) else OpenModel(model)
    run: dict[str, Any] = {"memory": memory, "batch_size": batch_size, "progress": progress}
    how: dict[str, Any] = {"method": method, "steps": steps, "gate_gradient": gate_gradient, "per_prompt": False}
    runs = dict[tuple[str, str], Faithfulness]()
    with progress_bar(len(groups) * (1 + (circuits is None)), "robustness", "group", progress) as bar:
        if circuits is None:
            found = dict[str, Circuit]()
            for name, pairs in groups.items():
                bar.set_postfix_str(f"circuit of {name:.40}", refresh=False)
                scores = attribute_edges(opened, pairs, metric, **how, **run)
                with open_request(opened, pairs, metric, **run) as request:
                    runner = _runner(CircuitRunner(request, scores.graph, ablation), name)
                    found[name], _ = search(runner, scores, goal, progress)
                bar.update()
            circuits = found
        graph = next(iter(circuits.values())).graph
        for name, pairs in groups.items():
            bar.set_postfix_str(f"circuits on {name:.40}", refresh=False)
            with open_request(opened, pairs, metric, **run) as request:
                runner = _runner(CircuitRunner(request, graph, ablation), name)
                for origin, ran in zip(circuits, runner.run(list(circuits.values())), strict=True):
                    runs[origin, name] = ran
            bar.update()
    cells = {(origin, name): runs[origin, name] for origin in circuits for name in groups}
    return Robustness(circuits, cells, {name: pairs.clusters() for name, pairs in groups.items()}, goal)


def _runner(runner: CircuitRunner, group: str) -> CircuitRunner:
    """The runner, unless the metric is the same with all edges and with none: no circuit is faithful then."""
    if runner.clean.mean() == runner.ablated.mean():
        raise ValueError(f"on {group!r} the model scores the same with all edges and with none: leave this group out")
    return runner


def _refuse_groups(groups: Mapping[str, TokenizedPairs], circuits: Mapping[str, Circuit] | None) -> None:
    given: Any = groups
    if not isinstance(given, Mapping):
        raise ValueError(f"want groups of pairs by name, such as pairs.groups(), not {given!r:.80}")
    if circuits is None and len(groups) < 2:
        raise ValueError(
            f"circuits are compared between groups, and there is {len(groups) or 'none'}: want two or more, such as "
            "pairs.groups() of a task with several templates, or pairs of several seeds"
        )
    if not groups or (circuits is not None and not circuits):
        raise ValueError("want at least one group and one circuit")
    for name, pairs in groups.items():
        refuse_other_pairs(pairs)
        distinct = len(set(pairs.clusters()))
        if distinct < LEAST:
            raise ValueError(
                f"group {name!r} has {distinct} different clean prompt, want at least {LEAST}: draw more pairs, or "
                "leave it out, as pairs.groups(least=20) does"
            )
    graphs = {} if circuits is None else {name: circuit.graph for name, circuit in circuits.items()}
    first = next(iter(graphs.values()), None)
    for name, graph in graphs.items():
        if graph != first:
            raise ValueError(f"the circuits are of different graphs: {name!r} of {graph}, others of {first}")


def _short(names: Sequence[str]) -> list[str]:
    """Names short enough for the axes of a picture, and still different."""
    cut = [name if len(name) <= _SHOWN else f"{name[: _SHOWN - 3]}..." for name in names]
    return [name if cut.count(name) == 1 else f"{number} {name}" for number, name in enumerate(cut)]
