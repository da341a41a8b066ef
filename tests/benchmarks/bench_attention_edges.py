"""How many attention edges a prompt needs, task by task: edges between positions, in a dense and a sparse model.

    python tests/benchmarks/bench_attention_edges.py --dense FOLDER --sparse FOLDER --out edges --tasks ioi -n 24

Prints a markdown table with a row for every task; OUT keeps finished tasks, so that the same command goes on. All is on
the pairs that both models solve, of the length that most of them have. Every prompt keeps its own edges, the best by
EAP-IG's |score|, of every power of sqrt 2; all others carry what they carry in the corrupted run. Intervals: 95 %.
"""

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from sparselens.analyses import FaithfulnessCurve, attention_edge_curve, attribute_attention_edges, measure_loss
from sparselens.analyses.circuits.edges_for_goal import edges_for_goal, edges_reached
from sparselens.analyses.figures.palette import MODELS, RULE
from sparselens.prompts.intervals import bootstrap_interval
from sparselens.tasks import TASKS
from tests.benchmarks.bench_study import SIDES, Found, both_solve, ends, study_tasks, told

GOALS = (0.8, 0.95)
COLUMNS = ["task", "pairs, tokens", "open"]
for goal in GOALS:
    COLUMNS += [*(f"edges for {goal}, {side}" for side in SIDES), "ratio"]


def main() -> None:
    study_tasks(str(__doc__), COLUMNS, found_in, row, draw)


def found_in(models: Mapping[str, Any], name: str, n: int) -> Found:
    """Everything about one task."""
    pairs = both_solve(models, name, n)[1].of_one_length()
    curves = {side: curve_of(model, pairs, TASKS[name].metric) for side, model in models.items()}
    return {
        "pairs": len(pairs),
        "tokens": int(pairs.clean.shape[1]),
        "open": measure_loss(models["sparse"], pairs).share_of_visible_pairs,
        "edges": [curve.total for curve in curves.values()],
        "curves": [[curve.n_edges, [point.mean for point in curve.points]] for curve in curves.values()],
        "goals": [goal_of(curves, goal, len(pairs)) for goal in GOALS],
    }


def curve_of(model: Any, pairs: Any, metric: str) -> FaithfulnessCurve:
    scores = attribute_attention_edges(model, pairs, metric, progress=False)
    assert scores.per_prompt is not None
    total = int((scores.per_prompt != 0).flatten(1).sum(1).max())
    sizes = sorted({round(2 ** (power / 2)) for power in range(60)})
    return attention_edge_curve(
        model, pairs, scores, metric, [0, *(size for size in sizes if size < total), total], progress=False
    )


def goal_of(curves: Mapping[str, FaithfulnessCurve], goal: float, n: int) -> dict[str, Any]:
    """Edges for a faithfulness in both models, and their ratio by the same resamples of prompts."""
    needed = [edges_for_goal(curve, goal) for curve in curves.values()]
    ratio = None if None in needed else ends(bootstrap_interval(partial(ratio_of, curves, goal), n))
    return {"needed": [None if some is None else ends(some) for some in needed], "ratio": ratio}


def ratio_of(curves: Mapping[str, FaithfulnessCurve], goal: float, weights: np.ndarray) -> np.ndarray:
    dense, sparse = (edges_reached(curves[side], goal, weights) for side in SIDES)
    return dense / sparse


def row(name: str, found: Found) -> str:
    """The task's line of the table."""
    cells = [name, f"{found['pairs']}, {found['tokens']}", f"{found['open']:.1%}".replace("%", " %")]
    for goal in found["goals"]:
        cells += [*(told(some, "{:,.0f}") for some in goal["needed"]), told(goal["ratio"], "{:.3g}x")]
    return f"| {' | '.join(cells)} |"


def draw(study: Mapping[str, Found], path: Path) -> None:
    """Faithfulness over the number of attention edges, dense and sparse, a panel for each task."""
    import matplotlib.pyplot as plt

    columns = min(4, len(study))
    rows = -(-len(study) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.3 * columns, 1.8 * rows), sharex=True, sharey=True, layout="constrained"
    )
    for axis, (name, found) in zip(np.ravel(axes), study.items(), strict=False):
        for side, (sizes, values) in zip(SIDES, found["curves"], strict=True):
            ink = MODELS[side]
            axis.plot(sizes[1:], values[1:], color=ink.light, marker=ink.marker, ms=2.5, lw=1, label=side)
        axis.axhline(1, color=RULE, lw=0.6)
        axis.set(xscale="log", ylim=(-0.2, 1.3))
        axis.set_title(name, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=7)
    for spare in np.ravel(axes)[len(study) :]:
        spare.set_visible(False)
    np.ravel(axes)[0].legend(frameon=False, fontsize=7)
    figure.supxlabel("attention edges of a prompt", fontsize=8)
    figure.supylabel("faithfulness", fontsize=8)
    figure.savefig(path, dpi=160)


if __name__ == "__main__":
    main()
