"""The confidence interval of the smallest faithful circuit's size: which of the tried sizes would other prompts need?

In every resample of the prompts, take the smallest tried circuit that reaches the goal, as the search does.
"""

from functools import partial

import numpy as np

from sparselens.analyses.circuits.faithfulness import FaithfulnessCurve
from sparselens.prompts.intervals import Clusters, Interval, bootstrap_interval


def edges_for_goal(
    tried: FaithfulnessCurve, goal: float, level: float = 0.95, clusters: Clusters = None
) -> Interval | None:
    """The number of edges of the smallest tried circuit that reaches the goal, with its BCa interval.

    A resample in which no circuit reaches it counts as all edges of the graph. None if no circuit reaches it on the
    prompts themselves.

    Args:
        clusters: default: the clean prompts that the circuits were run on

    Raises:
        ValueError: in a resample, the fully ablated model scores as well as the whole model or better.
    """
    if tried.first_to_reach(goal) is None:
        return None

    first = tried.points[0]
    alike = first.clean_prompt if clusters is None else clusters
    return bootstrap_interval(partial(edges_reached, tried, goal), len(first.clean), level, clusters=alike)


def edges_reached(tried: FaithfulnessCurve, goal: float, weights: np.ndarray) -> np.ndarray:
    """The number of edges of the smallest tried circuit that reaches the goal, for every row of prompt weights.

    NaN if the gap between clean and ablated runs, by which faithfulness divides, is zero or has another sign than over
    all prompts.
    """
    whole, nothing = (getattr(tried.points[0], name).double().numpy() for name in ("clean", "ablated"))
    alone = np.stack([point.circuit.double().numpy() for point in tried.points], 1)
    gap, sign = (weights @ (whole - nothing))[:, None], np.sign((whole - nothing).mean())
    with np.errstate(divide="ignore", invalid="ignore"):
        reached = (weights @ (alone - nothing[:, None])) / gap >= goal
    sizes = np.where(reached.any(1), np.array(tried.n_edges)[reached.argmax(1)], tried.total).astype(float)
    return np.where(sign * gap[:, 0] > 0, sizes, np.nan)
