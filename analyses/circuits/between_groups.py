"""The confidence interval of a mean over pairs of groups, such as of circuits found on one group and run on another.

1. A cell is a pair of groups. Cells that share a group depend on each other, so the sampling units are groups.
2. Jackknife: the mean without each of the G groups in turn, its row and its column.
   SE^2 = (G - 1) / G * sum over groups of (mean without g - mean of these)^2.
3. Student's t with G - 1 degrees of freedom. If all cells were independent, this would be too wide (Snijders & Borgatti
   1999, Connections 22:161, use (G - 2) / (2 G) then); but a group that is hard in one cell is hard in most.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from sparselens.prompts.intervals import Interval


def mean_over_cells(
    values: Float[np.ndarray, "row column"],
    chosen: Bool[np.ndarray, "row column"],
    rows: Sequence[str],
    columns: Sequence[str],
    level: float = 0.95,
) -> Interval:
    """Mean of the chosen cells with its interval, whose ends are NaN if leaving out one of the groups leaves no cell.

    Raises:
        ValueError: no cell is chosen.
    """
    from scipy import stats

    if not chosen.any():
        raise ValueError("there is no such cell: these circuits were not run on groups of this kind")
    mean, groups = float(values[chosen].mean()), sorted({*rows, *columns})
    without: list[float] = []
    for group in groups:
        left = chosen & (np.array(rows) != group)[:, None] & (np.array(columns) != group)
        if not left.any():
            return Interval(mean, math.nan, math.nan, math.nan, int(chosen.sum()), level, len(groups))
        without.append(float(values[left].mean()))
    count = len(groups)
    error = math.sqrt((count - 1) * float(np.var(without)))
    half = float(stats.t.ppf((1 + level) / 2, count - 1)) * error
    return Interval(mean, mean - half, mean + half, error, int(chosen.sum()), level, count)
