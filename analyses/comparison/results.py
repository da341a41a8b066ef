"""The results of the same analyses of a dense and a sparse model on the same prompts, side by side.

1. Plain data: no model is needed to look at a comparison, draw it, or load it again.
2. Numbers are kept per prompt, and the prompts are the same for both models, so ratios dense / sparse come with paired
   bootstrap confidence intervals over prompts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparselens.analyses.circuits.edges_for_goal import edges_for_goal, edges_reached
from sparselens.analyses.circuits.pruning import PrunedCircuit
from sparselens.analyses.circuits.stability import edges_of_mean
from sparselens.analyses.comparison.model_results import ModelResults
from sparselens.analyses.comparison.summaries import PairSummary
from sparselens.analyses.sparsity.loss_curve import LossPoint
from sparselens.circuits.circuit import Circuit
from sparselens.prompts.intervals import Interval, bootstrap_interval, ratio_interval
from sparselens.results import Result

SIDES = ("dense", "sparse")


@dataclass(frozen=True)
class Prompt:
    """An example prompt, whose attention is drawn."""

    title: str
    tokens: tuple[str, ...]
    outputs: tuple[str, ...] = ()  # drawn above each position: the models' predictions, dense/sparse if they differ


@dataclass(frozen=True)
class About:
    """Task, settings, models and versions of a comparison."""

    task: str  # a fingerprint: name, version, corruption, seed, n
    description: str
    metric: str
    method: str  # of edge attribution, including the gate gradient, if any
    share: float  # of the sum of |scores| that the circuits of the paper's rule hold
    goal: float  # target faithfulness of the smallest circuits, before and after pruning
    ablation: str
    names: tuple[str, str]  # of the two models
    loss: str  # what the loss was measured on: "the answers" or "the text"
    prompts: tuple[Prompt, ...]
    versions: dict[str, str]
    seed: int
    notes: tuple[str, ...] = ()  # caveats
    command: str = ""


@dataclass(frozen=True, eq=False)
class Solved:
    """Which of the drawn pairs each model solves."""

    dense: Bool[Tensor, " drawn"]
    sparse: Bool[Tensor, " drawn"]
    kept: Bool[Tensor, " drawn"]  # the pairs that everything else is computed on
    chance: float  # accuracy of guessing
    clean_prompt: Int[Tensor, " drawn"]  # a number for each clean prompt: pairs with the same one share it


@dataclass(frozen=True, eq=False)
class LossPoints:
    """Loss against the share of open edges (Fig. 2a): dense, dense with top-k attention, sparse, control if given."""

    points: tuple[LossPoint, ...]

    def named(self, name: str) -> LossPoint:
        """The point with this name."""
        return next(point for point in self.points if point.name == name)


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Result):
    """Both models' results; returned by `compare` and `load_comparison`.

    >>> comparison.sparse.circuit.edges, comparison.dense.heads.mean  # Float["layer head"]
    >>> comparison.fewer_edges()  # how many times fewer edges the sparse model needs, with a confidence interval

    Methods that return an interval raise a ValueError if clean and ablated runs score the same, or if a ratio is not
    finite in some resample of the prompts.
    """

    about: About
    solved: Solved
    loss: LossPoints
    dense: ModelResults
    sparse: ModelResults
    summary: PairSummary | None = None  # only in a slim comparison: replaces the scores that it no longer holds

    def _line(self) -> str:
        return f"{' and '.join(self.about.names)} on {self.about.task}, {int(self.solved.kept.sum())} pairs"

    def _columns(self) -> Any:
        return self.table().reset_index()

    def plot(self) -> Any:
        """Share of attribution in the largest edges of both models (Fig. 4a), in plotly."""
        from sparselens.analyses.comparison.plots import edges_needed_plot

        return edges_needed_plot(cast(Any, self)).plotly()

    @property
    def clusters(self) -> list[int]:
        """The number of each kept pair's clean prompt; in intervals, pairs with the same number are one observation."""
        return self.solved.clean_prompt[self.solved.kept].tolist()

    def edges_for_goal(self, side: str) -> Interval | None:
        """How many top-ranked edges are needed for a faithfulness of `about.goal`; None if it is not reached."""
        return edges_for_goal(self._side(side).circuits.tried, self.about.goal, clusters=self.clusters)

    def circuit(self, side: str) -> Circuit:
        """The circuit of the paper's rule in one of the two models, as in `comparison.sparse.circuit`."""
        return self._side(side).circuit

    @property
    def overlap(self) -> float:
        """Jaccard index of the two models' circuits."""
        return self.dense.circuit.jaccard(self.sparse.circuit)

    @property
    def shared_edges(self) -> int:
        """Number of edges in both circuits."""
        return int((self.dense.circuit.kept & self.sparse.circuit.kept).sum())

    @property
    def rank_correlation(self) -> float:
        """Spearman's correlation of |mean score| over all edges."""
        if self.summary is not None:
            return self.summary.rank_correlation
        return self.dense.circuit.rank_correlation(self.sparse.circuit)

    # -- ratios dense / sparse

    def fewer_edges(self) -> Interval:
        """Mean number of edges needed per prompt, dense / sparse (Fig. 4a, solid)."""
        return ratio_interval(self._needed("dense"), self._needed("sparse"), clusters=self.clusters)

    def fewer_edges_of_mean(self) -> Interval:
        """Number of edges needed in the mean scores, dense / sparse (Fig. 4a, dotted)."""
        return self._fewer_edges_of_mean

    def fewer_components(self, part: str, goal: float = 0.9) -> Interval | None:
        """Number of components needed to keep `goal` of the metric, dense / sparse.

        None if a model has no such components, or never keeps that much.

        Args:
            part: a field of `ComponentCurves`
        """
        if (part, goal) not in self._components_ratios:
            self._components_ratios[part, goal] = self._components_ratio(part, goal)
        return self._components_ratios[part, goal]

    def _components_ratio(self, part: str, goal: float) -> Interval | None:
        kept = [getattr(self._side(side).kept, part) for side in SIDES]
        if any(k is None or k.smallest(goal) is None for k in kept):
            return None
        return self._ratio(lambda side, weights: getattr(side.kept, part).smallest_of(weights, goal))

    def fewer_edges_for_goal(self) -> Interval | None:
        """Number of top-ranked edges needed for a faithfulness of `about.goal`, dense / sparse.

        None if one model does not reach it.
        """
        if None in (self.dense.circuits.faithful_edges, self.sparse.circuits.faithful_edges):
            return None
        return self._ratio(lambda side, weights: edges_reached(side.circuits.tried, self.about.goal, weights))

    def pruned_edges(self, side: str) -> Interval | None:
        """Size of the pruned circuit, with its interval over the prompts it was pruned on; None if there is none."""
        pruned = self._side(side).circuits.pruned
        return None if pruned is None else pruned.size_interval(self.about.goal, clusters=self._clusters_of(pruned))

    def fewer_edges_pruned(self) -> Interval | None:
        """Size of the pruned circuits, dense / sparse, with its interval over the prompts they were pruned on.

        None if a model has no pruned circuit.
        """
        dense, sparse = self.dense.circuits.pruned, self.sparse.circuits.pruned
        if dense is None or sparse is None:
            return None

        def size(side: ModelResults, weights: np.ndarray) -> np.ndarray:
            assert side.circuits.pruned is not None
            return edges_reached(side.circuits.pruned.tried, self.about.goal, weights)

        return self._ratio(size, self._clusters_of(dense))

    # -- output

    def table(self, form: str = "pandas") -> Any:
        """All numbers: a pandas frame, or text in "markdown", "latex" (booktabs) or "html".

        Raises:
            ValueError: the form is unknown.
        """
        from sparselens.analyses.comparison.table import in_form

        return in_form(cast(Any, self), form)

    def save(self, folder: Any, slim: bool = False) -> Any:
        """Write everything into a folder, from which `load_comparison` reads it without a model.

        Args:
            slim: write one small file instead; `folder` must then end in .zip. Its table, figures and viewer are the
                same, but it holds no per-prompt edge scores, and only the largest mean scores
        """
        from sparselens.analyses.comparison.files import save_comparison, save_slim

        return save_slim(cast(Any, self), folder) if slim else save_comparison(cast(Any, self), folder)

    def save_circuits(self, folder: Any) -> list[Any]:
        """Write both circuits in the formats of EAP-IG and MIB, and of Neuronpedia."""
        from sparselens.analyses.comparison.circuit_files import save_circuits

        return save_circuits(cast(Any, self), folder)

    def figures(self, folder: Any, form: str = "pdf") -> list[Any]:
        """Draw all figures of the paper into a folder."""
        from sparselens.analyses.comparison.figures import draw_all

        return draw_all(cast(Any, self), folder, form)

    def viewer(self) -> Any:
        """An interactive view of both circuits, linked to each other, in a notebook or as one HTML file."""
        from sparselens.analyses.comparison.figures import view

        return view(cast(Any, self))

    def save_html(self, path: Any, hero: Any = None) -> Any:
        """Write the report: the finding, figures, viewer and tables in one HTML file that works offline.

        Args:
            hero: the first figure, a `token_view`; default: attention edges on the first prompts
        """
        from sparselens.analyses.comparison.report import save_report

        return save_report(cast(Any, self), path, hero)

    def _repr_html_(self) -> str:
        return self.table("html")

    # -- internals

    def _side(self, side: str) -> ModelResults:
        if side not in SIDES:
            raise ValueError(f"no such model: {side!r} (want {' or '.join(SIDES)})")
        return self.dense if side == "dense" else self.sparse

    def _needed(self, side: str) -> Float[Tensor, " batch"]:
        return self._side(side).stability.sizes.double()

    @cached_property
    def _components_ratios(self) -> dict[tuple[str, float], Interval | None]:
        """Cache of `fewer_components`: table, plots, viewer and report all need the same ones."""
        return {}

    @cached_property
    def _fewer_edges_of_mean(self) -> Interval:  # takes seconds on large graphs
        if self.summary is not None:
            if self.summary.fewer_edges_of_mean is None:
                raise ValueError("the ratio is not finite in at least one resample of the prompts")
            return self.summary.fewer_edges_of_mean
        return self._ratio(lambda side, weights: edges_of_mean(side.edges, weights, self.about.share))

    def _clusters_of(self, pruned: PrunedCircuit) -> list[int]:
        """The clean prompts of the pairs that the circuit was pruned on."""
        return [self.clusters[row] for row in pruned.chosen_on.tolist()]

    def _ratio(
        self, size: Callable[[ModelResults, np.ndarray], np.ndarray], clusters: list[int] | None = None
    ) -> Interval:
        """The ratio of a statistic that is not a mean; each resample weights both models' prompts in the same way."""

        def ratio(weights: np.ndarray) -> np.ndarray:
            with np.errstate(divide="ignore", invalid="ignore"):  # bootstrap_interval refuses what is not finite
                return size(self.dense, weights) / size(self.sparse, weights)

        clusters = self.clusters if clusters is None else clusters
        return bootstrap_interval(ratio, len(clusters), clusters=clusters)
