"""Statistics of edge scores that a slim comparison stores in place of the scores themselves."""

from dataclasses import dataclass

from sparselens.analyses.circuits.stability import Stability
from sparselens.analyses.figures.plot import Series
from sparselens.prompts.intervals import Interval


@dataclass(frozen=True, eq=False)
class EdgeSummary:
    """Statistics of one model's per-prompt scores."""

    stability: Stability
    curves: tuple[Series, ...]  # `ModelResults.curves` as drawn, thinned


@dataclass(frozen=True, eq=False)
class PairSummary:
    """Statistics of both models' scores over all edges."""

    fewer_edges_of_mean: Interval | None  # None: the ratio is not finite in some resample of the prompts
    rank_correlation: float
