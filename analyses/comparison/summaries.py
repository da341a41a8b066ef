"""What a comparison reports about edge scores that a slim one does not hold: computed once and kept instead."""

from dataclasses import dataclass

from sparselens.analyses.circuits.stability import Stability
from sparselens.analyses.figures.plot import Series
from sparselens.prompts.intervals import Interval


@dataclass(frozen=True, eq=False)
class EdgeSummary:
    """A summary of every prompt's scores, for one model."""

    stability: Stability
    curves: tuple[Series, ...]  # of `ModelResults.curves`, thinned as they are drawn


@dataclass(frozen=True, eq=False)
class PairSummary:
    """A summary of the scores of all edges, for both models."""

    fewer_edges_of_mean: Interval | None  # None: not finite in some resample of the prompts
    rank_correlation: float
