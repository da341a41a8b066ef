"""The smallest circuits found that do a task, dense and sparse, judged by prompts that did not choose them.

    python tests/benchmarks/bench_pruning.py --dense FOLDER --sparse FOLDER --out pruning --tasks ioi docstring -n 32

Prints a markdown table with a row for every task; OUT keeps finished tasks, so that the same command goes on. All is on
the pairs that both models solve. One half of them chooses: the smallest prefix of the ranking (EAP-IG, by |score|) that
reaches the goal, and the pruned circuits, that of 0.8 from that of 0.95. The other half judges. Intervals: 95 %, over
prompts; of sizes and ratios over those that chose.
"""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from sparselens.analyses import attribute_edges, faithful_circuit, faithfulness, pruned_circuit
from sparselens.analyses.circuits.edges_for_goal import edges_reached
from sparselens.analyses.circuits.faithfulness import FaithfulnessCurve
from sparselens.analyses.circuits.pruning import PrunedCircuit, halves
from sparselens.prompts.intervals import bootstrap_interval
from sparselens.tasks import TASKS
from tests.benchmarks.bench_study import GOAL, SIDES, Found, both_solve, ends, study_tasks, told

GOALS = (0.95, GOAL)
COLUMNS = ["task", "pairs", *(f"prefix for {GOAL}, {side} (held out)" for side in SIDES)]
for told_so in GOALS:
    COLUMNS += [*(f"pruned to {told_so}, {side} (held out)" for side in SIDES), "ratio"]
COLUMNS += [f"minutes, {side}" for side in SIDES]


def main() -> None:
    study_tasks(str(__doc__), COLUMNS, found_in, row, None)


def found_in(models: Mapping[str, Any], name: str, n: int) -> Found:
    """Everything about one task."""
    (_, pairs), metric = both_solve(models, name, n), TASKS[name].metric
    rows, others = halves(pairs, 0)
    found: Found = {"pairs": len(pairs), **{side: {} for side in SIDES}}
    curves = {goal: dict[str, FaithfulnessCurve]() for goal in GOALS}
    for side, model in models.items():
        clock, seconds = timed()
        scores = attribute_edges(model, pairs, metric, progress=False).of_prompts(rows)
        clock("scores")
        prefix, reached = faithful_circuit(model, pairs[rows], scores, metric, GOAL, progress=False)
        clock("prefix")
        judged = faithfulness(model, prefix, pairs[others], metric, progress=False)
        found[side]["prefix"] = told_of(len(prefix), reached.mean, ends(judged.interval()))
        for goal in GOALS:
            clock(None)
            pruned = pruned_circuit(model, pairs, scores, metric, goal, progress=False)
            clock(f"pruned to {goal}")
            if pruned is None:
                break
            found[side][str(goal)] = {
                **told_of(
                    len(pruned.circuit), pruned.tried[len(pruned.circuit)].mean, ends(pruned.held_out.interval())
                ),
                "interval": interval_of(pruned, goal),
                "untested": pruned.untested,
                "edges": list(pruned.circuit.edges),
            }
            curves[goal][side] = pruned.tried
            scores = scores.within(pruned.circuit)
        found[side] |= {"seconds": seconds, "whole": scores.graph.n_edges}
    for goal, both in curves.items():
        found[f"ratio, {goal}"] = ratio(both, goal) if len(both) == len(SIDES) else None
    return found


def timed() -> tuple[Callable[[str | None], None], dict[str, float]]:
    """A clock, to be told what has just been done, and the seconds that each took."""
    seconds, last = dict[str, float](), time.perf_counter()

    def clock(name: str | None) -> None:
        nonlocal last
        now = time.perf_counter()
        if name is not None:
            seconds[name] = now - last
        last = now

    return clock, seconds


def told_of(edges: int, chosen: float, held_out: list[float | None]) -> Found:
    return {"size": edges, "chosen": chosen, "held out": held_out}


def interval_of(pruned: PrunedCircuit, goal: float) -> list[float | None] | None:
    try:
        found = pruned.size_interval(goal)
    except ValueError:  # a resample in which nothing is as good as the whole
        return None
    return None if found is None else ends(found)


def ratio(curves: Mapping[str, FaithfulnessCurve], goal: float) -> list[float | None] | None:
    """Edges for the goal, dense / sparse, by the same resamples of the prompts that chose."""

    def fewer(weights: np.ndarray) -> np.ndarray:
        dense, sparse = (edges_reached(curves[side], goal, weights) for side in SIDES)
        return dense / sparse

    try:
        return ends(bootstrap_interval(fewer, len(curves["dense"].points[0].clean)))
    except ValueError:
        return None


def row(name: str, found: Found) -> str:
    """The task's line of the table."""
    cells = [name, str(found["pairs"]), *(cell(found[side]["prefix"]) for side in SIDES)]
    for goal in GOALS:
        cells += [cell(found[side].get(str(goal))) for side in SIDES]
        cells.append(told(found[f"ratio, {goal}"], "{:.2g}x"))
    cells += [f"{sum(found[side]['seconds'].values()) / 60:.1f}" for side in SIDES]
    return f"| {' | '.join(cells)} |"


def cell(found: Found | None) -> str:
    if found is None:
        return "none"
    more = f", {found['untested']} not tried alone" if found.get("untested") else ""
    return f"{found['size']:,} ({told(found['held out'], '{:.2f}')}{more})"


if __name__ == "__main__":
    main()
