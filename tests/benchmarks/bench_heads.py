"""How many heads must act for 90 % of the metric, task by task, in a dense and a sparse model (the paper's Fig. 3).

    python tests/benchmarks/bench_heads.py --dense FOLDER --sparse FOLDER --out heads --tasks ioi docstring -n 16

Prints a markdown table with a row for every task; OUT keeps finished tasks, so that the same command goes on. All is on
the pairs that both models solve. Heads are ranked by |effect| under activation patching, per prompt and once for all;
as many act as every power of sqrt 2 says, all others are corrupted, MLPs act. Intervals: 95 %, over prompts.
"""

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from sparselens.analyses import ComponentCurve, keep_top, patch_heads
from sparselens.prompts.intervals import bootstrap_interval
from sparselens.tasks import TASKS
from tests.benchmarks.bench_study import SIDES, Found, both_solve, ends, study_tasks, told

SHARE = 0.9
RANKINGS = {"prompt": "per prompt", "mean": "once for all"}
COLUMNS = ["task", "pairs"]
for told_so in RANKINGS.values():
    COLUMNS += [*(f"heads for 90 %, {told_so}, {side}" for side in SIDES), "ratio"]


def main() -> None:
    study_tasks(str(__doc__), COLUMNS, found_in, row, None)


def found_in(models: Mapping[str, Any], name: str, n: int) -> Found:
    """Everything about one task."""
    (_, pairs), metric = both_solve(models, name, n), TASKS[name].metric
    ranked = {side: patch_heads(model, pairs, metric, progress=False) for side, model in models.items()}
    total = ranked["dense"].mean.numel()
    powers = {round(2 ** (power / 2)) for power in range(60)}
    counts = sorted({0, *(count for count in powers if count < total), total})

    def curve(side: str, rank_by: str) -> ComponentCurve:
        how: dict[str, Any] = {"counts": counts, "rank_by": rank_by, "progress": False}
        return keep_top(models[side], pairs, [ranked[side]], metric, **how)

    found: Found = {"pairs": len(pairs), "heads": total}
    for rank_by in RANKINGS:
        curves = [curve(side, rank_by) for side in SIDES]
        alone = [around(partial(one.smallest_of, share=SHARE), len(pairs)) for one in curves]
        found[rank_by] = {"needed": alone, "ratio": around(partial(fewer, curves), len(pairs))}
        found[rank_by]["shares"] = [one.shares.tolist() for one in curves]
    return found


def fewer(curves: list[ComponentCurve], weights: np.ndarray) -> np.ndarray:
    dense, sparse = (one.smallest_of(weights, SHARE) for one in curves)
    return dense / sparse


def around(statistic: Any, n: int) -> list[float | None]:
    try:
        return ends(bootstrap_interval(statistic, n))
    except ValueError:  # some resample has no gap between clean and corrupted
        return [float(statistic(np.full((1, n), 1 / n))[0]), None, None]


def row(name: str, found: Found) -> str:
    """The task's line of the table."""
    cells = [name, str(found["pairs"])]
    for rank_by in RANKINGS:
        cells += [
            *(told(some, "{:,.0f}") for some in found[rank_by]["needed"]),
            told(found[rank_by]["ratio"], "{:.3g}x"),
        ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
