"""From circuits of single prompts to one of all: how many edges each needs, and how much they agree.

The mean of the prompts' curves lies above the curve of the mean scores where prompts use different edges: the gap is
the paper's sign of instability (Fig. 4a).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.circuits.circuit import edges_to_reach, rank_correlation, smallest
from sparselens.prompts.intervals import Interval, mean_interval


@dataclass(frozen=True, eq=False)
class Stability:
    """Circuits of the paper's rule, of every prompt and of the mean scores."""

    share: float  # of the sum of |scores|
    sizes: Int[Tensor, " batch"]  # edges of each prompt's circuit
    size_of_mean: int  # edges of the circuit of the mean scores
    overlap: Float[Tensor, "batch other"]  # Jaccard index of every two prompts' circuits
    overlap_with_mean: Float[Tensor, " batch"]
    rank_correlation: Float[Tensor, " batch"]  # Spearman's, of a prompt's |scores| with those of the mean

    @property
    def mean_overlap(self) -> float:
        """Mean Jaccard index of two different prompts' circuits; NaN for one prompt."""
        different = ~torch.eye(len(self.overlap), dtype=torch.bool)
        return float(self.overlap[different].mean())

    def size_interval(self) -> Interval:
        """Mean number of edges of a prompt's circuit, and how sure it is."""
        return mean_interval(self.sizes.double())


def stability(scores: EdgeScores, share: float = 0.9) -> Stability:
    """How much the prompts' own circuits differ.

    Raises:
        ValueError: only mean scores were kept, or the share is not above 0 and at most 1.
    """
    circuits = [smallest(scores.graph, own.mean, share) for own in _prompts(scores)]
    of_mean = scores.smallest(share)
    kept = torch.stack([circuit.kept[scores.exists] for circuit in circuits])
    whole = of_mean.kept[scores.exists][None]
    return Stability(
        share,
        kept.sum(-1),
        len(of_mean),
        _jaccard(kept, kept),
        _jaccard(kept, whole)[:, 0],
        torch.tensor([rank_correlation(circuit, of_mean) for circuit in circuits]),
    )


def _jaccard(first: Bool[Tensor, "batch edge"], second: Bool[Tensor, "other edge"]) -> Float[Tensor, "batch other"]:
    both = first.float() @ second.float().T
    either = first.sum(-1)[:, None] + second.sum(-1) - both
    return torch.where(either > 0, both / either.clamp_min(1), torch.ones(()))


@dataclass(frozen=True, eq=False)
class ShareCurves:
    """Share of the sum of |scores| that the n largest edges hold, n = 1, 2, ..."""

    per_prompt: Float[Tensor, "batch edge"]
    of_mean: Float[Tensor, " edge"]  # the curve of the mean scores: dotted in the paper

    @property
    def mean(self) -> Float[Tensor, " edge"]:
        """The mean of the prompts' curves: solid in the paper."""
        return self.per_prompt.mean(0)


def share_curves(scores: EdgeScores) -> ShareCurves:
    """The curves of Fig. 4a; all ones where every score is zero.

    Raises:
        ValueError: only mean scores were kept.
    """
    curves = [_cumulative(own.mean[scores.exists]) for own in _prompts(scores)]
    return ShareCurves(torch.stack(curves), _cumulative(scores.mean[scores.exists]))


def _cumulative(values: Float[Tensor, " edge"]) -> Float[Tensor, " edge"]:
    reached = values.double().abs().sort(descending=True).values.cumsum(0)
    return (reached / reached[-1] if reached[-1] > 0 else torch.ones_like(reached)).float()


def edges_needed(scores: EdgeScores, share: float = 0.9) -> Int[Tensor, " batch"]:
    """How many edges each prompt needs to reach a share of its |scores|."""
    return torch.tensor([edges_to_reach(own.mean[scores.exists], share) for own in _prompts(scores)])


def _prompts(scores: EdgeScores) -> list[EdgeScores]:
    return [scores.of_prompt(prompt) for prompt in range(len(scores.clean))]
