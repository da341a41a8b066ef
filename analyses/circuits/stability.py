"""Circuits of single prompts compared with one for all prompts: how many edges each needs, and how much they agree.

1. Choose a circuit for every prompt by the paper's rule, and one by the mean scores.
2. Compare them: sizes, Jaccard overlaps, rank correlations.
3. Or draw cumulative curves: if prompts use different edges, the mean of the prompts' curves is above the curve of the
   mean scores. This gap is the paper's sign of instability (Fig. 4a).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.circuits.selection import edges_to_reach
from sparselens.prompts.intervals import Interval, mean_interval
from sparselens.results import Result


@dataclass(frozen=True, eq=False, repr=False)
class Stability(Result):
    """How much the prompts' own circuits differ from each other, and from the circuit of the mean scores.

    >>> found = scores.stability()
    >>> found.size_interval(), found.mean_overlap, found.overlap.shape  # [batch batch]
    """

    share: float  # of the sum of |scores|
    sizes: Int[Tensor, " batch"]  # edges of each prompt's circuit
    size_of_mean: int  # edges of the circuit of the mean scores
    overlap: Float[Tensor, "batch other"]  # Jaccard index of each pair of prompts' circuits
    overlap_with_mean: Float[Tensor, " batch"]
    rank_correlation: Float[Tensor, " batch"]  # Spearman's, of a prompt's |scores| with the |mean scores|
    clean_prompt: Int[Tensor, " batch"] | None = None  # its index; pairs with the same one count as one observation

    def _line(self) -> str:
        sizes = f"{self.size_interval()} edges a prompt, {self.size_of_mean} of the mean scores"
        return f"{self.share:.0%} of |score|, {len(self.sizes)} prompts: {sizes}, overlap {self.mean_overlap:.2f}"

    def _columns(self) -> dict[str, list[Any]]:
        names = ("sizes", "overlap_with_mean", "rank_correlation")
        return {name.replace("sizes", "edges"): getattr(self, name).tolist() for name in names}

    def plot(self) -> Any:
        """Edges of the prompts' circuits, as a plotly histogram."""
        return self._figure("histogram", self.to_frame(), x="edges")

    @property
    def mean_overlap(self) -> float:
        """Mean Jaccard index over pairs of different clean prompts; NaN if there is only one clean prompt."""
        prompt = torch.arange(len(self.overlap)) if self.clean_prompt is None else self.clean_prompt
        different = prompt[:, None] != prompt
        return float(self.overlap[different].mean())

    def size_interval(self) -> Interval:
        """Mean number of edges of a prompt's circuit, with its bootstrap confidence interval."""
        return mean_interval(self.sizes.double(), clusters=self.clean_prompt)


def stability(scores: EdgeScores, share: float = 0.9) -> Stability:
    """How much the prompts' own circuits differ (also available as `EdgeScores.stability`).

    >>> found = stability(attribute_edges(model, pairs))
    >>> found.sizes, found.overlap.shape  # Int[" batch"], [batch batch]

    Raises:
        ValueError: only mean scores were kept, or the share is not above 0 and at most 1.
    """
    of_mean, circuits = scores.smallest(share), [own.smallest(share) for own in _prompts(scores)]
    kept = torch.stack([circuit.kept[scores.measured] for circuit in circuits])
    whole = of_mean.kept[scores.measured][None]
    return Stability(
        share,
        kept.sum(-1),
        len(of_mean),
        _jaccard(kept, kept),
        _jaccard(kept, whole)[:, 0],
        torch.tensor([circuit.rank_correlation(of_mean, scores.measured) for circuit in circuits]),
        scores.clean_prompt,
    )


def _jaccard(first: Bool[Tensor, "batch edge"], second: Bool[Tensor, "other edge"]) -> Float[Tensor, "batch other"]:
    both = first.float() @ second.float().T
    either = first.sum(-1)[:, None] + second.sum(-1) - both
    return torch.where(either > 0, both / either.clamp_min(1), torch.ones(()))


@dataclass(frozen=True, eq=False, repr=False)
class ShareCurves(Result):
    """Share of the sum of |scores| that the n largest edges hold, n = 1, 2, ..."""

    per_prompt: Float[Tensor, "batch edge"]
    of_mean: Float[Tensor, " edge"]  # the curve of the mean scores: dotted in the paper

    def _line(self) -> str:
        n_prompts, n_edges = self.per_prompt.shape
        needed = int((self.mean < 0.9).sum()) + 1
        return f"{n_prompts} prompts, {n_edges:,} edges: {needed} hold 90 % of a prompt's |score| on average"

    def _columns(self) -> dict[str, list[Any]]:
        return {
            "edges": [*range(1, len(self.of_mean) + 1)],
            "share": self.mean.tolist(),
            "of_mean": self.of_mean.tolist(),
        }

    def plot(self) -> Any:
        """The mean of the prompts' curves over the number of edges, in plotly."""
        from sparselens.analyses.figures.plot import curve

        edges, labels = range(1, len(self.of_mean) + 1), ("edges, largest |score| first", "share of attribution")
        return curve("Edges needed", edges, self.mean.tolist(), labels, log_x=True, guides=(0.9,)).plotly()

    @property
    def mean(self) -> Float[Tensor, " edge"]:
        """The mean of the prompts' curves: solid in the paper."""
        return self.per_prompt.mean(0)


def share_curves(scores: EdgeScores) -> ShareCurves:
    """The curves of Fig. 4a; all ones where every score is zero.

    >>> curves = share_curves(attribute_edges(model, pairs))
    >>> curves.per_prompt.shape, curves.mean, curves.of_mean  # [batch edge], solid line, dotted line
    """
    curves = [_cumulative(own.mean[scores.measured]) for own in _prompts(scores)]
    return ShareCurves(torch.stack(curves), _cumulative(scores.mean[scores.measured]))


def _cumulative(values: Float[Tensor, " edge"]) -> Float[Tensor, " edge"]:
    reached = values.double().abs().sort(descending=True).values.cumsum(0)
    return (reached / reached[-1] if reached[-1] > 0 else torch.ones_like(reached)).float()


def edges_needed(scores: EdgeScores, share: float = 0.9) -> Int[Tensor, " batch"]:
    """Number of edges that each prompt needs to reach a share of its sum of |scores|.

    >>> edges_needed(attribute_edges(model, pairs), 0.9)  # Int[" batch"]
    """
    return torch.tensor([edges_to_reach(own.mean[scores.measured], share) for own in _prompts(scores)])


def edges_of_mean(
    scores: EdgeScores, weights: Float[np.ndarray, "resample prompt"], share: float = 0.9
) -> Float[np.ndarray, " resample"]:
    """Number of edges that the mean scores need to reach a share of their sum of |scores|, by row of prompt weights."""
    assert scores.per_prompt is not None
    values = scores.per_prompt[:, scores.exists].double()
    sizes = []
    for some in torch.from_numpy(weights).split(max(1, 2**24 // values.shape[1])):
        sums = (some @ values).abs().sort(descending=True).values.cumsum(-1)
        needed = (sums < share * sums[:, -1:] * (1 - 1e-12)).sum(-1) + 1  # as `edges_to_reach`
        sizes.append(needed * (sums[:, -1] > 0))
    return torch.cat(sizes).double().numpy()


def _prompts(scores: EdgeScores) -> list[EdgeScores]:
    return [scores.of_prompt(prompt) for prompt in range(len(scores.clean))]
