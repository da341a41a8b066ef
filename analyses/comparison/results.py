"""The results of the same analyses of a dense and a sparse model on the same prompts, side by side.

1. Plain data: no model is needed to look at a comparison, draw it, or load it again.
2. Every number has its per-prompt values, and all prompts are the same for both models, so ratios dense / sparse come
   with paired bootstrap confidence intervals over prompts.
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
    """A prompt whose attention is shown."""

    title: str
    tokens: tuple[str, ...]
    outputs: tuple[str, ...] = ()  # above each position: what both models predict, dense/sparse where they differ


@dataclass(frozen=True)
class About:
    """Task, settings, models and versions of a comparison."""

    task: str  # a fingerprint: name, version, corruption, seed, n
    description: str
    metric: str
    method: str  # of edge attribution, with the gates' gradient if they are given one
    share: float  # of the sum of |scores|: the paper's rule
    goal: float  # faithfulness that circuits are searched for and pruned to
    ablation: str
    names: tuple[str, str]  # of the two models
    loss: str  # what the loss is of
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
    kept: Bool[Tensor, " drawn"]  # those that everything else is computed on
    chance: float  # accuracy of guessing
    clean_prompt: Int[Tensor, " drawn"]  # its number: equal for pairs with the same clean prompt


@dataclass(frozen=True, eq=False)
class LossPoints:
    """Loss against the share of open edges (Fig. 2a): dense, dense with top-k attention, sparse, control if given."""

    points: tuple[LossPoint, ...]

    def named(self, name: str) -> LossPoint:
        """The point of this name."""
        return next(point for point in self.points if point.name == name)


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Result):
    """Both models' results; made by `compare`, or read by `load_comparison`.

    >>> comparison.sparse.circuit.edges, comparison.dense.heads.mean  # Float["layer head"]
    >>> comparison.fewer_edges()  # how many times fewer edges the sparse model needs, with its confidence interval

    Intervals raise a ValueError where clean and ablated runs score the same, or a ratio is not finite in some resample
    of the prompts.
    """

    about: About
    solved: Solved
    loss: LossPoints
    dense: ModelResults
    sparse: ModelResults
    summary: PairSummary | None = None  # of the scores that a slim comparison does not hold

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
        """The clean prompt of every pair in use: in intervals, pairs with the same one are one observation."""
        return self.solved.clean_prompt[self.solved.kept].tolist()

    def edges_for_goal(self, side: str) -> Interval | None:
        """Edges of the smallest prefix of the ranking that is as faithful as `about.goal`; None if none is."""
        return edges_for_goal(self._side(side).circuits.tried, self.about.goal, clusters=self.clusters)

    def circuit(self, side: str) -> Circuit:
        """The circuit of the paper's rule in one of the two models: `comparison.sparse.circuit`."""
        return self._side(side).circuit

    @property
    def overlap(self) -> float:
        """Jaccard index of the two circuits."""
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
        """Mean number of edges that a prompt needs, dense / sparse (Fig. 4a, solid)."""
        return ratio_interval(self._needed("dense"), self._needed("sparse"), clusters=self.clusters)

    def fewer_edges_of_mean(self) -> Interval:
        """Number of edges that the mean scores need, dense / sparse (Fig. 4a, dotted)."""
        return self._fewer_edges_of_mean

    def fewer_components(self, part: str, goal: float = 0.9) -> Interval | None:
        """Number of components that keep `goal` of the metric, dense / sparse, for a field of `ComponentCurves`.

        None where a model has no such components, or never keeps that much.
        """
        if (part, goal) not in self._fewer_components:
            self._fewer_components[part, goal] = self._components_ratio(part, goal)
        return self._fewer_components[part, goal]

    def _components_ratio(self, part: str, goal: float) -> Interval | None:
        kept = [getattr(self._side(side).kept, part) for side in SIDES]
        if any(k is None or k.smallest(goal) is None for k in kept):
            return None
        return self._ratio(lambda side, weights: getattr(side.kept, part).smallest_of(weights, goal))

    def fewer_edges_for_goal(self) -> Interval | None:
        """Edges of the smallest prefixes of the rankings that are as faithful as `about.goal`, dense / sparse.

        None if one model has none.
        """
        if None in (self.dense.circuits.faithful_edges, self.sparse.circuits.faithful_edges):
            return None
        return self._ratio(lambda side, weights: edges_reached(side.circuits.tried, self.about.goal, weights))

    def pruned_edges(self, side: str) -> Interval | None:
        """Edges of the pruned circuit, with their interval over the prompts that chose it; None if there is none."""
        pruned = self._side(side).circuits.pruned
        return None if pruned is None else pruned.size_interval(self.about.goal, clusters=self._clusters_of(pruned))

    def fewer_edges_pruned(self) -> Interval | None:
        """Edges of the pruned circuits, dense / sparse, with its interval over the prompts that chose them both.

        None if a model has none.
        """
        dense, sparse = self.dense.circuits.pruned, self.sparse.circuits.pruned
        if dense is None or sparse is None:
            return None

        def size(side: ModelResults, weights: np.ndarray) -> np.ndarray:
            assert side.circuits.pruned is not None
            return edges_reached(side.circuits.pruned.tried, self.about.goal, weights)

        return self._ratio(size, self._clusters_of(dense))

    # -- out

    def table(self, form: str = "pandas") -> Any:
        """All numbers: a pandas frame, or text in "markdown", "latex" (booktabs) or "html".

        Raises:
            ValueError: there is no such form.
        """
        from sparselens.analyses.comparison.table import in_form

        return in_form(cast(Any, self), form)

    def save(self, folder: Any, slim: bool = False) -> Any:
        """Write everything into a folder, from which `load_comparison` reads it without a model.

        Args:
            slim: write one small file instead, `folder` being a name that ends in .zip. Its table, figures and viewer
                are the same, but it holds no single prompt's edge scores, and of the mean scores only the largest
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
        """Both circuits, linked, to explore in a notebook or in one HTML file."""
        from sparselens.analyses.comparison.figures import view

        return view(cast(Any, self))

    def save_html(self, path: Any, hero: Any = None) -> Any:
        """Write the report: the finding, figures, viewer and tables in one file that needs no network.

        Args:
            hero: the picture that it begins with, a `token_view`; default: attention edges on the first prompts
        """
        from sparselens.analyses.comparison.report import save_report

        return save_report(cast(Any, self), path, hero)

    def _repr_html_(self) -> str:
        return self.table("html")

    # -- inside

    def _side(self, side: str) -> ModelResults:
        if side not in SIDES:
            raise ValueError(f"no such model: {side!r} (want {' or '.join(SIDES)})")
        return self.dense if side == "dense" else self.sparse

    def _needed(self, side: str) -> Float[Tensor, " batch"]:
        return self._side(side).stability.sizes.double()

    @cached_property
    def _fewer_components(self) -> dict[tuple[str, float], Interval | None]:
        """Those that were asked for: table, plots, viewer and report each tell them."""
        return {}

    @cached_property
    def _fewer_edges_of_mean(self) -> Interval:  # takes seconds on large graphs
        if self.summary is not None:
            if self.summary.fewer_edges_of_mean is None:
                raise ValueError("the ratio is not finite, at least in one resample")
            return self.summary.fewer_edges_of_mean
        return self._ratio(lambda side, weights: edges_of_mean(side.edges, weights, self.about.share))

    def _clusters_of(self, pruned: PrunedCircuit) -> list[int]:
        """The clean prompts of the pairs that chose it."""
        return [self.clusters[row] for row in pruned.chosen_on.tolist()]

    def _ratio(
        self, size: Callable[[ModelResults, np.ndarray], np.ndarray], clusters: list[int] | None = None
    ) -> Interval:
        """Of two statistics that are not means; each resample weights the prompts of both models alike."""

        def ratio(weights: np.ndarray) -> np.ndarray:
            with np.errstate(divide="ignore", invalid="ignore"):  # refused as not finite
                return size(self.dense, weights) / size(self.sparse, weights)

        clusters = self.clusters if clusters is None else clusters
        return bootstrap_interval(ratio, len(clusters), clusters=clusters)
