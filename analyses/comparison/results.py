"""The answers of a dense and a sparse model to the same questions about the same prompts, side by side.

Plain data: no model is needed to look at a comparison, draw it, or load it again. Every number has its per-prompt
values, and all prompts are the same for both models, so ratios dense / sparse come from a paired bootstrap.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparselens.analyses.attribution.attention_edges import AttentionEdges
from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.circuits.edges_for_goal import edges_for_goal, edges_reached
from sparselens.analyses.circuits.faithfulness import Curve, Faithfulness
from sparselens.analyses.circuits.stability import ShareCurves, Stability, edges_needed, share_curves, stability
from sparselens.analyses.patching.activation_patching import Patched
from sparselens.analyses.patching.top_components import Kept
from sparselens.analyses.sparsity.head_labels import HeadScores
from sparselens.analyses.sparsity.loss_curve import LossPoint
from sparselens.circuits.circuit import Circuit, jaccard, rank_correlation
from sparselens.prompts.intervals import Interval, bootstrap_interval, ratio_interval

SIDES = ("dense", "sparse")


@dataclass(frozen=True)
class Prompt:
    """A prompt whose attention is kept."""

    title: str
    tokens: tuple[str, ...]


@dataclass(frozen=True)
class About:
    """What was asked, of whom, and with what."""

    task: str  # a fingerprint: name, version, corruption, seed, n
    description: str
    metric: str
    method: str  # of edge attribution
    share: float  # of the sum of |scores|: the paper's rule
    goal: float  # faithfulness of the smallest circuit that is looked for
    ablation: str
    names: tuple[str, str]  # of the two models
    loss: str  # what the loss is of
    prompts: tuple[Prompt, ...]
    versions: dict[str, str]
    seed: int
    notes: tuple[str, ...] = ()  # what a reader should know before trusting a number
    command: str = ""


@dataclass(frozen=True, eq=False)
class Solved:
    """Which of the drawn pairs each model gets right."""

    dense: Bool[Tensor, " drawn"]
    sparse: Bool[Tensor, " drawn"]
    asked: Bool[Tensor, " drawn"]  # those that everything else is about
    chance: float  # accuracy of guessing
    clean_prompt: Int[Tensor, " drawn"]  # its number: equal for pairs that ask the same clean prompt


@dataclass(frozen=True, eq=False)
class LossPoints:
    """Loss against the share of open edges (Fig. 2a): dense, dense with top-k attention, sparse, control if given."""

    points: tuple[LossPoint, ...]

    def named(self, name: str) -> LossPoint:
        """The point of that name."""
        return next(point for point in self.points if point.name == name)


@dataclass(frozen=True, eq=False)
class KeptComponents:
    """The metric when only the top components act (Fig. 3), chosen for every prompt or once for all."""

    heads: Kept
    heads_once: Kept
    components: Kept | None  # heads and MLPs in one order; None: the model has no MLPs
    components_once: Kept | None

    def has(self, part: str) -> bool:
        """Was the field of that name asked for?"""
        return getattr(self, part) is not None


@dataclass(frozen=True, eq=False)
class CircuitRuns:
    """What circuits do when they act alone in this model (Fig. 4b)."""

    own: Faithfulness  # this model's circuit of the paper's rule
    other: Faithfulness  # the other model's, transferred
    random: Faithfulness  # as many edges as in `own`, drawn from all alike
    faithful: Faithfulness  # the smallest circuit found to reach the goal
    faithful_edges: int | None  # None: not even all edges reach it, or nothing is as good as the model
    tried: Curve  # all circuits that the search for it has run


@dataclass(frozen=True, eq=False)
class Answers:
    """What one model answered."""

    attention: AttentionEdges  # of `About.prompts`
    labels: HeadScores
    heads: Patched
    mlps: Patched | None
    kept: KeptComponents
    edges: EdgeScores
    circuits: CircuitRuns


@dataclass(frozen=True, eq=False)
class Comparison:
    """See `compare`; `load_comparison` reads what `save` wrote."""

    about: About
    solved: Solved
    loss: LossPoints
    dense: Answers
    sparse: Answers

    @property
    def clusters(self) -> list[int]:
        """The clean prompt of every pair that everything is about: in intervals, equal ones are one observation."""
        return self.solved.clean_prompt[self.solved.asked].tolist()

    def edges_for_goal(self, side: str) -> Interval | None:
        """Edges of the smallest circuit that is as faithful as `about.goal`; None if none is.

        Raises:
            ValueError: nothing is as good as the whole model, at least in one resample of the prompts.
        """
        return edges_for_goal(self._side(side).circuits.tried, self.about.goal, clusters=self.clusters)

    def circuit(self, side: str) -> Circuit:
        """The circuit of the paper's rule in one of the two models."""
        return self._side(side).edges.smallest(self.about.share)

    def curves(self, side: str) -> ShareCurves:
        """Share of attribution against number of edges."""
        return self._curves[self._place(side)]

    def stability(self, side: str) -> Stability:
        """How much the prompts' own circuits differ."""
        return self._stability[self._place(side)]

    @property
    def overlap(self) -> float:
        """Jaccard index of the two circuits."""
        return jaccard(self.circuit("dense"), self.circuit("sparse"))

    @property
    def shared_edges(self) -> int:
        """Edges that are in both circuits."""
        return int((self.circuit("dense").kept & self.circuit("sparse").kept).sum())

    @property
    def rank_correlation(self) -> float:
        """Spearman's correlation of |mean score| over all edges."""
        return rank_correlation(self.circuit("dense"), self.circuit("sparse"))

    # -- ratios dense / sparse

    def fewer_edges(self) -> Interval:
        """Mean edges that a prompt needs, dense / sparse (Fig. 4a, solid)."""
        return ratio_interval(self._needed("dense"), self._needed("sparse"), clusters=self.clusters)

    def fewer_edges_of_mean(self) -> Interval:
        """Edges that the mean scores need, dense / sparse (Fig. 4a, dotted)."""
        return self._fewer_edges_of_mean

    def fewer_components(self, part: str, goal: float = 0.9) -> Interval | None:
        """Components that keep `goal` of the metric, dense / sparse, for a field of `KeptComponents`.

        None where a model has no such components, or never keeps that much.

        Raises:
            ValueError: the ratio is not finite, at least in one resample of the prompts.
        """
        kept = [getattr(self._side(side).kept, part) for side in SIDES]
        if any(k is None or k.smallest(goal) is None for k in kept):
            return None
        return self._ratio(lambda side, weights: _counts(getattr(side.kept, part), goal, weights))

    def fewer_edges_for_goal(self) -> Interval | None:
        """Edges of the smallest circuits that are as faithful as `about.goal`, dense / sparse; None if one has none.

        Raises:
            ValueError: the ratio is not finite, at least in one resample of the prompts.
        """
        if None in (self.dense.circuits.faithful_edges, self.sparse.circuits.faithful_edges):
            return None
        return self._ratio(lambda side, weights: edges_reached(side.circuits.tried, self.about.goal, weights))

    # -- out

    def table(self, form: str = "pandas") -> Any:
        """All numbers: a pandas frame, or text in "markdown", "latex" (booktabs) or "html".

        Raises:
            ValueError: there is no such form.
        """
        from sparselens.analyses.comparison.table import in_form

        this: Any = self  # type checkers meet this class under two names
        return in_form(this, form)

    def save(self, folder: Any) -> Any:
        """Write everything into a folder, from which `load_comparison` reads it without a model."""
        from sparselens.analyses.comparison.files import save_comparison

        this: Any = self
        return save_comparison(this, folder)

    def save_circuits(self, folder: Any) -> list[Any]:
        """Write both circuits as EAP-IG and MIB read them, and as Neuronpedia draws them."""
        from sparselens.analyses.comparison.files import save_circuits

        this: Any = self
        return save_circuits(this, folder)

    def figures(self, folder: Any, form: str = "pdf") -> list[Any]:
        """Draw all figures of the paper into a folder."""
        from sparselens.analyses.comparison.figures import draw_all

        this: Any = self
        return draw_all(this, folder, form)

    def viewer(self) -> Any:
        """Both circuits, linked, to explore in a notebook or as one HTML file."""
        from sparselens.analyses.comparison.figures import view

        this: Any = self
        return view(this)

    def save_html(self, path: Any) -> Any:
        """Write the report: tables, figures and viewer in one file that asks the network for nothing."""
        from sparselens.analyses.comparison.report import save_report

        this: Any = self
        return save_report(this, path)

    def _repr_html_(self) -> str:
        return self.table("html")

    # -- inside

    def _side(self, side: str) -> Answers:
        return (self.dense, self.sparse)[self._place(side)]

    def _place(self, side: str) -> int:
        if side not in SIDES:
            raise ValueError(f"no such model: {side!r} (want {' or '.join(SIDES)})")
        return SIDES.index(side)

    def _needed(self, side: str) -> Float[Tensor, " batch"]:
        return edges_needed(self._side(side).edges, self.about.share).double()

    @cached_property
    def _fewer_edges_of_mean(self) -> Interval:  # takes seconds on large graphs
        return self._ratio(lambda side, weights: _sizes_of_mean(side.edges, self.about.share, weights))

    @cached_property
    def _curves(self) -> tuple[ShareCurves, ShareCurves]:
        return share_curves(self.dense.edges), share_curves(self.sparse.edges)

    @cached_property
    def _stability(self) -> tuple[Stability, Stability]:
        return stability(self.dense.edges, self.about.share), stability(self.sparse.edges, self.about.share)

    def _ratio(self, size: "Callable[[Answers, Weights], np.ndarray]") -> Interval:
        """Of two statistics that are no means; each resample weighs the prompts alike in both models."""

        def ratio(weights: Weights) -> np.ndarray:
            with np.errstate(divide="ignore", invalid="ignore"):  # refused as not finite
                return size(self.dense, weights) / size(self.sparse, weights)

        return bootstrap_interval(ratio, len(self.dense.edges.clean), clusters=self.clusters)


Weights = Float[np.ndarray, "resample prompt"]


def _sizes_of_mean(scores: EdgeScores, share: float, weights: Weights) -> Float[np.ndarray, " resample"]:
    """As `sparselens.circuits.circuit.edges_to_reach` of the weighted mean scores."""
    assert scores.per_prompt is not None
    values = scores.per_prompt[:, scores.exists].double()
    sizes = []
    for some in torch.from_numpy(weights).split(max(1, 2**24 // values.shape[1])):
        sums = (some @ values).abs().sort(descending=True).values.cumsum(-1)
        needed = (sums < share * sums[:, -1:] * (1 - 1e-12)).sum(-1) + 1
        sizes.append(needed * (sums[:, -1] > 0))
    return torch.cat(sizes).double().numpy()


def _counts(kept: Kept, goal: float, weights: Weights) -> Float[np.ndarray, " resample"]:
    """As `Kept.smallest` of the weighted means; the largest count where a resample does not get there."""
    values, clean, ablated = (x.double().numpy() for x in (kept.values, kept.clean, kept.ablated))
    base = (weights @ ablated)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample may have no gap: it gets nowhere
        reached = (weights @ values - base) / ((weights @ clean)[:, None] - base) >= goal
    stays = np.flip(np.flip(reached, 1).cumprod(1), 1).astype(bool)
    first = np.where(stays.any(1), stays.argmax(1), stays.shape[1] - 1)
    return np.array(kept.counts, dtype=float)[first]
