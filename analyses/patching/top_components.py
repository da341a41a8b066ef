"""How many components carry a behaviour: the metric when only the top k of them act (the paper's Fig. 3).

1. Rank heads, MLPs or both by |effect| under activation patching, per prompt or by the mean over prompts.
2. Run the clean prompt with all but the top k ablated, in all layers at once; the embedding is kept.
3. share(k) = (metric of that run - ablated) / (clean - ablated). "Ablated" is the corrupted run, or for means and zeros
   the run in which all components are replaced.
The ranking by patching is our choice; the paper does not say how it ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparselens.analyses.engine.renamed import renamed_argument
from sparselens.analyses.engine.request import Request, open_request
from sparselens.analyses.engine.resume import BatchLog, batch_log
from sparselens.analyses.patching.patch_runs import Patching, Recorded, groups, patching
from sparselens.analyses.patching.patch_sites import find_site, replacing
from sparselens.analyses.patching.patching_result import PatchingResult
from sparselens.bars import progress_bar
from sparselens.models.hooked_model import HookedModel
from sparselens.names import unknown
from sparselens.prompts.checks import refuse_other_pairs
from sparselens.prompts.intervals import Interval, ratio_interval
from sparselens.prompts.metrics import Metric, logit_difference
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.results import Result

RANKINGS = ("prompt", "mean")


@dataclass(frozen=True, repr=False)
class ComponentCurve(Result):
    """The metric of every prompt when only its top components act, and all others are ablated.

    Raises:
        ValueError: counts do not rise.
    """

    counts: tuple[int, ...]  # numbers of components that act
    rank_by: str  # "prompt": ranked separately for every prompt; "mean": once, by the mean effect
    values: Float[Tensor, "batch count"]
    clean: Float[Tensor, " batch"]
    corrupted: Float[Tensor, " batch"]
    ablated: Float[Tensor, " batch"]  # no component acts: the corrupted run, or all at the means or zeros
    clean_prompt: Int[Tensor, " batch"] | None = None  # its index; pairs with the same one count as one observation

    def __post_init__(self) -> None:
        if list(self.counts) != sorted(set(self.counts)):
            raise ValueError(f"counts must rise, not {list(self.counts)}")

    def _line(self) -> str:
        enough, total = self.smallest(), self.counts[-1] if self.counts else 0
        return f"{len(self.values)} prompts, {enough or 'no number'} of {total} components keep 90 % of the metric"

    def _columns(self) -> dict[str, list[Any]]:
        return {"components": list(self.counts), "share": self.shares.tolist()}

    def __getitem__(self, count: int) -> float:
        return self.interval(count).mean

    def plot(self) -> Any:
        """The share of the metric over the number of components, in plotly."""
        from sparselens.analyses.figures.plot import curve

        labels = ("components that act", "metric kept")
        return curve("Top components", self.counts, self.shares.tolist(), labels).plotly()

    @property
    def shares(self) -> Float[Tensor, " count"]:
        """Mean(value - ablated) / mean(clean - ablated) for every count."""
        return (self.values.mean(0) - self.ablated.mean()) / (self.clean - self.ablated).mean()

    def interval(self, count: int, level: float = 0.95) -> Interval:
        """The share at one count, with its bootstrap confidence interval over clean prompts.

        Raises:
            ValueError: that count was not run, or the clean and the ablated run have the same mean.
        """
        if count not in self.counts:
            raise ValueError(f"count = {count}: want one of {', '.join(map(str, self.counts))}")
        values = self.values[:, self.counts.index(count)]
        return ratio_interval(values - self.ablated, self.clean - self.ablated, level, clusters=self.clean_prompt)

    def smallest(self, share: float = 0.9) -> int | None:
        """The smallest count from which on the share stays at `share` or above; None if it never does."""
        reached = self.shares >= share
        stays = reached.flip(0).cumprod(0).flip(0).bool()
        return self.counts[int(stays.nonzero()[0])] if stays.any() else None

    def smallest_of(
        self, weights: Float[np.ndarray, "resample prompt"], share: float = 0.9
    ) -> Float[np.ndarray, " resample"]:
        """`smallest` for every resample, given as weights of the prompts; the largest count if it is never reached.

        NaN if in a resample clean and ablated do not differ, or differ with another sign than over all prompts.
        """
        values, clean, ablated = (x.double().numpy() for x in (self.values, self.clean, self.ablated))
        base, sign = (weights @ ablated)[:, None], np.sign((clean - ablated).mean())
        gap = (weights @ clean)[:, None] - base
        with np.errstate(divide="ignore", invalid="ignore"):
            reached = (weights @ values - base) / gap >= share
        stays = np.flip(np.flip(reached, 1).cumprod(1), 1).astype(bool)
        first = np.where(stays.any(1), stays.argmax(1), stays.shape[1] - 1)
        return np.where(sign * gap[:, 0] > 0, np.array(self.counts, dtype=float)[first], np.nan)


@renamed_argument("source", "ablation")
@renamed_argument("per_prompt", "rank_by", lambda per_prompt: "prompt" if per_prompt else "mean")
def keep_top(
    model: HookedModel,
    pairs: TokenizedPairs,
    scores: Sequence[PatchingResult],
    metric: Metric | str = logit_difference,
    *,
    counts: Sequence[int] | None = None,
    rank_by: str = "prompt",
    ablation: str = "corrupted",
    memory: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
    out: str | Path | None = None,
) -> ComponentCurve:
    """The metric when only the top components act, and all others are ablated.

    >>> heads = patch_heads(model, pairs)
    >>> keep_top(model, pairs, [heads]).shares  # of 0, 1, 2, ... heads; all MLPs act
    >>> keep_top(model, pairs, [heads, patch_activations(model, pairs, site="mlps")])  # heads and MLPs in one ranking

    Scope: the top k by single effects need not be the best k together; the curve is an upper bound on how many
    components suffice.

    Sign convention: a share is 1 if the kept components score like the whole model, 0 if like the ablated one.

    Args:
        scores: of the same pairs, over all positions, for `heads`, `mlps` or both
        counts: numbers of components, in any order; default: 0 to all of them
        rank_by: "prompt": rank components separately for every prompt (Fig. 3a); "mean": once, by |mean effect|
            (Fig. 3b)
        ablation: "corrupted", "mean" (over corrupted prompts) or "zero"
        memory, batch_size, out: as in `patch_activations`

    Raises:
        ValueError: scores are of other prompts, by position, incomplete, or of other sites; or as `patch_activations`.
    """
    if rank_by not in RANKINGS:
        raise unknown("ranking", rank_by, RANKINGS)
    refuse_other_pairs(pairs)
    _refuse_scores(scores, len(pairs))
    order = _order(scores, rank_by)
    n_components = order.shape[1]
    counts = tuple(range(n_components + 1)) if counts is None else tuple(sorted(set(counts)))
    wrong = [count for count in counts if not 0 <= count <= n_components]
    if wrong:
        raise ValueError(f"count = {wrong[0]}: there are {n_components} components")
    tried = counts if ablation == "corrupted" else tuple(sorted({0, *counts}))
    with open_request(model, pairs, metric, memory=memory, batch_size=batch_size, progress=progress) as request:
        log = batch_log(
            out, request, sites=[score.site for score in scores], order=order, counts=tried, ablation=ablation
        )
        sites = [find_site(request.model, score.site) for score in scores]
        with patching(request, sites, "clean", ablation) as setup:
            values, clean, corrupted = _run(setup, order, tried, log)
    ablated = corrupted if ablation == "corrupted" else values[:, 0]
    values = values[:, [tried.index(n) for n in counts]]
    return ComponentCurve(counts, rank_by, values, clean, corrupted, ablated, pairs.clean_prompt)


def _run(
    setup: Patching, order: Int[Tensor, "batch component"], tried: Sequence[int], log: BatchLog
) -> tuple[Float[Tensor, "batch count"], Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """The metric when the first n components of the order act, for each n in `tried`, and of the two baselines."""
    request = setup.request
    dtype = torch.promote_types(request.opened.dtype, torch.float32)
    values, baselines = torch.zeros(len(request), len(tried), dtype=dtype), torch.zeros(2, len(request), dtype=dtype)

    def one_row(trial: Patching, batch: Request, recorded: Recorded) -> Tensor:
        return _ablated(trial, batch, recorded, torch.zeros(1, dtype=torch.long), torch.zeros_like(order[:1]).bool())

    with progress_bar(values.numel(), "top components", "run", request.progress) as bar:
        for batch, recorded, at_once in groups(setup, one_row):
            prompts = batch.prompts
            baselines[:, prompts] = torch.stack([recorded.clean, recorded.corrupted]).to(baselines)
            cells = torch.cartesian_prod(torch.arange(len(prompts)), torch.arange(len(tried)))
            for rows, numbers in (part.T for part in cells.split(at_once)):
                acting, where = order[prompts[rows]] < torch.tensor(tried)[numbers, None], (prompts[rows], numbers)
                (found,) = log.once(where, lambda: (_ablated(setup, batch, recorded, rows, acting),))  # noqa: B023
                values[where] = found.to(values)
                bar.update(len(rows))
    return values, baselines[0], baselines[1]


def _refuse_scores(scores: Sequence[PatchingResult], n_prompts: int) -> None:
    if not scores:
        raise ValueError("there are no scores to rank by: pass those of patch_heads")
    for score in scores:
        if score.site not in ("heads", "mlps") or "pos" in score.axes:
            raise ValueError(f"scores of {score.site} along {score.axes}: want heads or mlps over all positions")
        if len(score.values) != n_prompts:
            raise ValueError(f"scores of {len(score.values)} prompts for {n_prompts}: want those of the same prompts")
        if score.values.isnan().any():
            raise ValueError(f"some {score.site} have no score")


def _order(scores: Sequence[PatchingResult], rank_by: str) -> Int[Tensor, "batch component"]:
    """Every component's rank, 0 for the largest effect; layer by layer within a site, site after site."""
    effects = torch.cat([score.effects.flatten(1) for score in scores], 1)
    if rank_by == "mean":
        effects = effects.mean(0, keepdim=True).expand_as(effects)
    return effects.abs().argsort(dim=-1, descending=True, stable=True).argsort(-1)


def _ablated(
    setup: Patching,
    batch: Request,
    recorded: Recorded,
    rows: Int[Tensor, " row"],
    acting: Bool[Tensor, "row component"],
) -> Float[Tensor, " row"]:
    """The metric when only `acting` components act, one choice per row."""
    config = batch.model.cfg
    places = [site for site in setup.sites for _ in range(config.n_layers)]
    sizes = [(config.n_heads,) if site.cell else () for site in places]
    masks = (~acting).split([*(size[0] if size else 1 for size in sizes)], 1)
    hooks = [
        (name, replacing(site, mask.reshape(len(rows), *size), recorded.replacement[name][rows]))
        for name, site, mask, size in zip(setup.names, places, masks, sizes, strict=True)
    ]
    return setup.measure(batch.rows(rows), hooks)
