"""What becomes of circuits, task by task: edges, faithfulness and MIB's areas in a dense and a sparse model.

    python tests/benchmarks/bench_study.py --dense FOLDER --sparse FOLDER --out study --tasks ioi docstring -n 24

Prints a markdown table with a row for every task; OUT keeps finished tasks, so that the same command goes on. All is on
the pairs that both models solve. Circuits are the highest-scoring edges (EAP-IG), of the same sizes in both models:
MIB's shares of all edges, and every power of sqrt 2. Intervals: 95 %, over prompts.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

import sparselens as sl
from sparselens.analyses import FaithfulnessCurve, attribute_edges, edges_needed, faithfulness_curve, measure_loss
from sparselens.analyses.circuits.edges_for_goal import edges_for_goal, edges_reached
from sparselens.analyses.circuits.faithfulness import SIZES
from sparselens.files.whole import write_json
from sparselens.prompts.intervals import Interval, bootstrap_interval, proportion_interval, ratio_interval
from sparselens.tasks import TASKS

SIDES = ("dense", "sparse")
GOAL, SHARE = 0.8, 0.9
COLUMNS = (
    *("task", "pairs", "accuracy, dense", "sparse", "open edges"),
    *("edges for 90 % of attribution, dense", "sparse", "ratio"),
    *("edges for 0.8 faithfulness, dense", "sparse", "ratio", "CPR, dense", "sparse", "CMD, dense", "sparse"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for side in SIDES:
        parser.add_argument(f"--{side}", required=True)
    parser.add_argument("--base", help="of a sparse model that is an adapter; default: what it names")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("-n", type=int, default=24, help="pairs to draw of each task")
    asked = parser.parse_args()
    base = {} if asked.base is None else {"base": asked.base}
    models = {"dense": sl.load(asked.dense), "sparse": sl.load(asked.sparse, **base)}
    asked.out.mkdir(parents=True, exist_ok=True)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for name in asked.tasks:
        path = asked.out / f"{name}.json"
        if not path.exists():
            write_json(path, {"n": asked.n, "row": row_of(models, name, asked.n)})
        print(f"| {' | '.join([name, *json.loads(path.read_text())['row']])} |", flush=True)


def row_of(models: Mapping[str, Any], name: str, n: int) -> list[str]:
    """The cells of one task."""
    able = [sl.evaluate(model, TASKS[name], n, progress=False) for model in models.values()]
    solved = [found.correct for found in able]
    pairs = able[0].pairs[torch.stack(solved).all(0).nonzero().flatten()]
    scores = {side: attribute_edges(model, pairs, TASKS[name].metric) for side, model in models.items()}
    sizes = sizes_of(scores["dense"].graph.n_edges)
    found = {
        side: faithfulness_curve(model, pairs, scores[side], TASKS[name].metric, sizes)
        for side, model in models.items()
    }
    needed = [edges_needed(scores[side], SHARE).double() for side in SIDES]
    goals = [edges_for_goal(found[side], GOAL) for side in SIDES]
    areas = [mib(found[side]) for side in SIDES]
    return [
        str(len(pairs)),
        *(f"{proportion_interval(some, clusters=able[0].pairs.clusters())}" for some in solved),
        f"{measure_loss(models['sparse'], pairs).share_of_visible_pairs:.2%}",
        *(f"{float(some.mean()):,.0f}" for some in needed),
        ratio(lambda: ratio_interval(*needed)),
        *(edges(goal) for goal in goals),
        ratio(lambda: fewer(found, len(pairs))) if None not in goals else "",
        *(f"{area.cpr:.2f}" for area in areas),
        *(f"{area.cmd:.2f}" for area in areas),
    ]


def sizes_of(total: int) -> list[int]:
    """MIB's, and the powers of sqrt 2 from 4 on."""
    powers = [round(2 ** (power / 2)) for power in range(4, 100)]
    return sorted({*(int(share * total) for share in SIZES), *(size for size in powers if size < total)})


def mib(curve: FaithfulnessCurve) -> FaithfulnessCurve:
    """Those of the circuits that MIB has."""
    numbers = tuple(int(share * curve.total) for share in SIZES)
    return FaithfulnessCurve(numbers, curve.total, tuple(curve[number] for number in numbers), SIZES)


def fewer(found: Mapping[str, FaithfulnessCurve], n: int) -> Interval:
    """Edges for the goal, dense / sparse, by the same resamples of prompts."""
    return bootstrap_interval(
        lambda weights: edges_reached(found["dense"], GOAL, weights) / edges_reached(found["sparse"], GOAL, weights), n
    )


def edges(found: Interval | None) -> str:
    return "none" if found is None else f"{found.mean:,.0f} [{found.low:,.0f}, {found.high:,.0f}]"


def ratio(compute: Callable[[], Interval]) -> str:
    try:
        return f"{compute()}x"
    except ValueError as error:  # a resample in which nothing is as good as the whole
        return str(error)


if __name__ == "__main__":
    main()
