"""What becomes of circuits, task by task: edges, faithfulness and MIB's areas in a dense and a sparse model.

    python tests/benchmarks/bench_study.py --dense FOLDER --sparse FOLDER --out study --tasks ioi docstring -n 24

Prints a markdown table with a row for every task; OUT keeps finished tasks, so that the same command goes on. All is on
the pairs that both models solve. Circuits are the highest-scoring edges (EAP-IG), of the same sizes in both models:
MIB's shares of all edges, and every power of sqrt 2. Intervals: 95 %, over prompts.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch

import sparselens as sl
from sparselens.analyses import FaithfulnessCurve, attribute_edges, edges_needed, faithfulness_curve, measure_loss
from sparselens.analyses.circuits.edges_for_goal import edges_for_goal, edges_reached
from sparselens.analyses.circuits.faithfulness import SIZES
from sparselens.analyses.figures.palette import MODELS, RULE
from sparselens.files.whole import write_json
from sparselens.prompts.intervals import Interval, bootstrap_interval, ratio_interval
from sparselens.tasks import TASKS

SIDES = ("dense", "sparse")
GOAL, SHARE = 0.8, 0.9
# of one task: numbers, and intervals as [mean, low, high] with None for ends that are not known, for both models or as
# a ratio
Found = dict[str, Any]


def main() -> None:
    study_tasks(str(__doc__), COLUMNS, found_in, row, draw)


def study_tasks(
    about: str,
    columns: Sequence[str],
    found_in: Callable[[Mapping[str, Any], str, int], Found],
    row: Callable[[str, Found], str],
    draw: Callable[[Mapping[str, Found], Path], None] | None,
) -> None:
    """The command: what is found in both models, task by task, as a table, as files, and as a figure if asked for."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for side in SIDES:
        parser.add_argument(f"--{side}", required=True)
    parser.add_argument("--base", help="of a sparse model that is an adapter; default: what it names")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("-n", type=int, default=24, help="pairs to draw of each task")
    if draw:
        parser.add_argument("--figure", type=Path, help="also draw all tasks")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    models: dict[str, Any] = {}
    study: dict[str, Found] = {}
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name in asked.tasks:
        path = asked.out / f"{name}.json"
        if not path.exists():
            models = models or opened(asked.dense, asked.sparse, asked.base)
            write_json(path, found_in(models, name, asked.n))
        study[name] = json.loads(path.read_text())
        print(row(name, study[name]), flush=True)
    if draw and asked.figure:
        draw(study, asked.figure)


def opened(dense: str, sparse: str, base: str | None) -> dict[str, Any]:
    options = {} if base is None else {"base": base}
    return {"dense": sl.load(dense), "sparse": sl.load(sparse, **options)}


def found_in(models: Mapping[str, Any], name: str, n: int) -> Found:
    """Everything about one task."""
    able, pairs = both_solve(models, name, n)
    scores = {side: attribute_edges(model, pairs, TASKS[name].metric) for side, model in models.items()}
    sizes = sizes_of(scores["dense"].graph.n_edges)
    curves = {
        side: faithfulness_curve(model, pairs, scores[side], TASKS[name].metric, sizes)
        for side, model in models.items()
    }
    needed = [edges_needed(scores[side], SHARE).double() for side in SIDES]
    goals = [edges_for_goal(curves[side], GOAL) for side in SIDES]
    areas = [mib(curves[side]) for side in SIDES]
    return {
        "pairs": len(pairs),
        "accuracy": [ends(found.accuracy) for found in able],
        "open": measure_loss(models["sparse"], pairs).share_of_visible_pairs,
        "attribution": [float(some.mean()) for some in needed],
        "attribution, ratio": ends(ratio_interval(*needed)),
        "faithful": [None if goal is None else ends(goal) for goal in goals],
        "faithful, ratio": None if None in goals else ratio_of(curves, len(pairs)),
        "cpr": [area.cpr for area in areas],
        "cmd": [area.cmd for area in areas],
    }


def both_solve(models: Mapping[str, Any], name: str, n: int) -> tuple[list[sl.Capability], sl.TokenizedPairs]:
    """What each model can do of n pairs, and the pairs that both solve."""
    able = [sl.evaluate(model, TASKS[name], n, progress=False) for model in models.values()]
    return able, able[0].pairs[torch.stack([found.correct for found in able]).all(0).nonzero().flatten()]


def ends(found: Interval) -> list[float | None]:
    """The estimate and both ends; None for what is not known, since JSON has no NaN."""
    return [value if math.isfinite(value) else None for value in (found.mean, found.low, found.high)]


COLUMNS = (
    *("task", "pairs", "accuracy, dense", "sparse", "open edges"),
    *("edges for 90 % of attribution, dense", "sparse", "ratio"),
    *("edges for 0.8 faithfulness, dense", "sparse", "ratio", "CPR, dense", "sparse", "CMD, dense", "sparse"),
)


def row(name: str, found: Found) -> str:
    """The task's line of the table."""
    cells = [name, str(found["pairs"]), *(told(some, "{:.0%}") for some in found["accuracy"]), f"{found['open']:.1%}"]
    cells += [f"{mean:,.0f}" for mean in found["attribution"]]
    cells.append(told(found["attribution, ratio"], "{:.3g}x"))
    cells += [told(some, "{:,.0f}") for some in found["faithful"]]
    cells.append(told(found["faithful, ratio"], "{:.3g}x"))
    cells += [f"{area:.2f}" for area in (*found["cpr"], *found["cmd"])]
    return f"| {' | '.join(cells)} |".replace("%", " %")


def told(interval: list[float | None] | None, form: str) -> str:
    if interval is None:
        return "none"
    mean, *around = [form.format(value) for value in interval if value is not None]
    return f"{mean} [{', '.join(around)}]" if around else mean


def draw(study: Mapping[str, Found], path: Path) -> None:
    """Edges for 90 % of attribution and for 0.8 faithfulness, dense and sparse, a line for each task."""
    import matplotlib.pyplot as plt

    titles = {"attribution": "edges for 90 % of attribution", "faithful": "edges for 0.8 faithfulness"}
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.9 + 0.3 * len(study)), sharey=True, layout="constrained")
    places = range(len(study))
    known = [value for found in study.values() for what in titles for value in found[what] if value]
    every = np.concatenate([around(value) for value in known])
    limits = 10 ** np.floor(np.log10(every.min())), 10 ** np.ceil(np.log10(every.max()))
    for axis, (what, title) in zip(axes, titles.items(), strict=True):
        for number, side in enumerate(SIDES):
            ink = MODELS[side]
            known = [(place, found[what][number]) for place, found in enumerate(study.values()) if found[what][number]]
            known = [(place, around(value)) for place, value in known]
            means = [interval[0] for _, interval in known]
            far = [[abs(interval[0] - interval[end]) for _, interval in known] for end in (1, 2)]
            filled = ink.light if side == "sparse" else "white"
            at = [place + 0.12 * (2 * number - 1) for place, _ in known]
            axis.errorbar(means, at, xerr=far, ls="", marker=ink.marker, color=ink.light, mfc=filled, label=side, ms=6)
        axis.set(xscale="log", xlabel=title, xlim=limits)
        axis.grid(axis="x", color=RULE, lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(places, study)
    axes[0].invert_yaxis()
    axes[1].legend(frameon=False)
    figure.savefig(path, dpi=160)


def around(value: Any) -> list[float]:
    """An estimate with the ends of its interval; itself for ends that are not known."""
    mean, *known = value if isinstance(value, list) else [value, None, None]
    return [mean, *(mean if end is None else end for end in known)]


def sizes_of(total: int) -> list[int]:
    """MIB's, and the powers of sqrt 2 from 4 on."""
    powers = [round(2 ** (power / 2)) for power in range(4, 100)]
    return sorted({*(int(share * total) for share in SIZES), *(size for size in powers if size < total)})


def mib(curve: FaithfulnessCurve) -> FaithfulnessCurve:
    """Those of the circuits that MIB has."""
    numbers = tuple(int(share * curve.total) for share in SIZES)
    return FaithfulnessCurve(numbers, curve.total, tuple(curve[number] for number in numbers), SIZES)


def ratio_of(curves: Mapping[str, FaithfulnessCurve], n: int) -> list[float | None] | None:
    """Edges for the goal, dense / sparse, by the same resamples of prompts."""

    def fewer(weights: Any) -> Any:
        dense, sparse = (edges_reached(curves[side], GOAL, weights) for side in SIDES)
        return dense / sparse

    try:
        return ends(bootstrap_interval(fewer, n))
    except ValueError:  # a resample in which nothing is as good as the whole
        return None


if __name__ == "__main__":
    main()
