"""How few heads carry the influence of features on one another, over prompts.

After a figure of the sparse-attention paper (Draye et al., 2512.05865), where on one prompt five heads of the sparse
model explain 80 % of the attention attribution, but it takes more than forty of the dense model. The definition of
influence used here is our own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselens.analyses.engine.prompt_tokens import prompt_tokens
from sparselens.analyses.engine.request import OpenModel
from sparselens.analyses.features.feature_attribution import head_names, heads_needed, refuse_other_sum
from sparselens.analyses.features.feature_paths import (
    feature_target,
    influences,
    logit_target,
    sources_of,
)
from sparselens.analyses.features.frozen_run import FrozenRun, freeze
from sparselens.analyses.features.transcoders import Transcoders
from sparselens.bars import progress_bar
from sparselens.gates.modes import evaluating
from sparselens.models.hooked_model import HookedModel
from sparselens.prompts.checks import refuse_misfits
from sparselens.prompts.intervals import Interval, first_alike, mean_interval
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.results import Result


@dataclass(frozen=True, eq=False, repr=False)
class FeatureHeads(Result):
    """Each head's share of the influence of features on features, per prompt; returned by `feature_heads`.

    >>> found = analyses.feature_heads(model, transcoders, pairs)
    >>> found.needed(0.8), found.interval(0.8)  # heads needed per prompt, and their mean
    >>> found.influence[0].shape, found.targets[0]  # Float["target head"] of prompt 0
    """

    heads: tuple[str, ...]
    targets: tuple[tuple[str, ...], ...]  # per prompt: the features active at END, and the logits
    influence: tuple[Float[Tensor, "_target head"], ...]  # per prompt: |influence| by head, summed over features
    errors: Float[Tensor, " batch"]  # errors' share of |influence| (features and errors) through heads, target mean
    clean_prompt: Int[Tensor, " batch"] | None = None  # prompts with the same number are one observation in intervals

    _largest = "share"

    def __len__(self) -> int:
        return len(self.influence)

    @property
    def shares(self) -> Float[Tensor, "batch head"]:
        """Each head's share of the influence; every target has the same weight."""
        totals = [found.sum(-1, keepdim=True) for found in self.influence]
        means = [(found / total.clamp_min(1e-30)).sum(0) for found, total in zip(self.influence, totals, strict=True)]
        return torch.stack([mean / mean.sum().clamp_min(1e-30) for mean in means])

    def needed(self, share: float = 0.8) -> Int[Tensor, " batch"]:
        """The fewest heads that carry this share of the influence in each prompt; every target has the same weight."""
        return heads_needed(self.shares, share)

    def needed_per_target(self, share: float = 0.8) -> Float[Tensor, " batch"]:
        """The fewest heads that carry this share of the influence on one target, as a mean over a prompt's targets."""
        reached = [found[found.sum(-1) > 0] for found in self.influence]  # the targets that any head influences
        return torch.stack([heads_needed(found, share).double().mean().nan_to_num(0) for found in reached]).float()

    def interval(self, share: float = 0.8, per_target: bool = False) -> Interval:
        """The mean over prompts of `needed` or `needed_per_target`, with its 95 % interval over distinct prompts."""
        needed = self.needed_per_target(share) if per_target else self.needed(share).float()
        return mean_interval(needed, clusters=self.clean_prompt)

    def _line(self) -> str:
        return (
            f"{len(self)} prompts: {self.interval()} of {len(self.heads)} heads carry 80% of the influence, "
            f"{self.interval(per_target=True)} on a single target"
        )

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        return {
            "prompt": [prompt for prompt in range(len(self)) for _ in self.heads],
            "head": list(self.heads) * len(self),
            "share": self.shares.flatten().tolist(),
        }

    def plot(self) -> Any:
        """A plotly line: share of the influence carried by the top heads, mean over prompts, by number of heads."""
        import pandas

        held = self.shares.sort(descending=True, dim=-1).values.cumsum(-1).mean(0)
        frame = pandas.DataFrame({"heads": range(1, len(held) + 1), "share of influence": held.tolist()})
        return self._figure("line", frame, x="heads", y="share of influence", markers=True)


def feature_heads(
    model: HookedModel,
    transcoders: Transcoders,
    prompts: Sequence[str] | Int[Tensor, "batch pos"] | TokenizedPairs,
    *,
    one_head: bool = False,
    progress: bool = True,
) -> FeatureHeads:
    """Measure how few heads carry the influence of a prompt's features on the features and logits at END.

    >>> dense, sparse = (analyses.feature_heads(m, t, pairs) for m, t in ((dense, clt), (sparse, sparse_clt)))
    >>> dense.interval(0.8), sparse.interval(0.8)

    Runs `attribute_feature` for every feature active at END, and for the most likely token's logit. Targets that no
    feature influences through a head, such as those of layer 0, are not counted.

    Args:
        prompts: texts, rows of tokens without padding, or pairs, whose clean prompts are run up to END
        one_head: leave out paths through several heads

    Raises:
        ValueError: as in `attribute_feature`.
    """
    opened = OpenModel(model)
    rows = _rows(opened, prompts)
    transcoders.refuse_other_model(opened.reading)
    targets: list[tuple[str, ...]] = []
    weights: list[Tensor] = []
    errors: list[float] = []
    names: tuple[str, ...] = ()
    with evaluating(opened.model), torch.no_grad(), progress_bar(len(rows), "features", "prompt", progress) as bar:
        for tokens in rows:
            frozen = freeze(opened, transcoders, tokens)
            some_targets, weight, error = _weights(opened, frozen, transcoders, one_head)
            targets.append(some_targets)
            weights.append(weight)
            errors.append(error)
            names = head_names(frozen)
            bar.update(1)
    clean_prompt = torch.from_numpy(first_alike([tuple(tokens.tolist()) for tokens in rows]))
    return FeatureHeads(names, tuple(targets), tuple(weights), torch.tensor(errors), clean_prompt)


def _rows(opened: OpenModel, prompts: Sequence[str] | Tensor | TokenizedPairs) -> list[Int[Tensor, " pos"]]:
    """The tokens of each prompt up to END."""
    if isinstance(prompts, TokenizedPairs):
        refuse_misfits(opened.model, prompts)
        found: dict[int, Tensor] = {}
        for numbers, first, tokens in prompts.clean_rows():
            for number, start, ids in zip(numbers.tolist(), first.tolist(), tokens, strict=True):
                found[number] = ids[: int(prompts.end[number]) - start + 1]
        return [found[number] for number in sorted(found)]
    texts = [prompts] if isinstance(prompts, str) else prompts
    if not len(texts):
        raise ValueError("no prompt: want texts, rows of tokens or pairs")
    return [row for one in texts for row in prompt_tokens(opened, one)]


def _weights(
    opened: OpenModel, frozen: FrozenRun, transcoders: Transcoders, one_head: bool
) -> tuple[tuple[str, ...], Float[Tensor, "target head"], float]:
    """The targets at the last position, each head's weight in each of them, and the errors' mean share."""
    end = len(frozen.start) - 1
    features = sources_of(frozen).features
    targets = [feature_target(frozen, transcoders, feature) for feature in features if feature.pos == end]
    targets.append(logit_target(opened, frozen, end))
    n_features, n_errors = len(features), len(frozen.layers) * len(frozen.start)
    names: list[str] = []
    rows: list[Tensor] = []
    errors: list[float] = []
    for target, found in influences(frozen, transcoders, targets, one_head):
        refuse_other_sum(opened, target, found, one_head)
        by_features, by_errors = found[:, 1:].abs()[: n_features + n_errors].tensor_split([n_features])
        names.append(target.name)
        rows.append(by_features.sum(0))
        errors.append(float(by_errors.sum() / (by_features.sum() + by_errors.sum()).clamp_min(1e-30)))
    return tuple(names), torch.stack(rows).cpu(), sum(errors) / len(errors)
