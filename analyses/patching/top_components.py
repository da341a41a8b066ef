"""How many components carry a behaviour: the metric when only the top k of them act (the paper's Fig. 3).

    share(k) = (metric with all but the top k ablated - ablated) / (clean - ablated)
where "ablated" is the corrupted run, or for means and zeros the run in which all components give these.

Activation patching turned round: there one component of the clean run is replaced, here all but k are, in every layer
at once; the embedding stays. Components are ranked by the size of their effect under patching, for every prompt anew or
once for all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from sparselens.analyses.engine.batching import MEMORY, fit
from sparselens.analyses.engine.resume import batch_log
from sparselens.analyses.patching.activation_patching import Patched
from sparselens.analyses.patching.patch_runs import Question, Recorded, asking, measure, record, with_mean
from sparselens.analyses.patching.patch_sites import find_site, replacing
from sparselens.prompts.intervals import Interval, ratio_interval
from sparselens.prompts.metrics import Metric, logit_difference
from sparselens.prompts.tokenized import TokenizedPairs


@dataclass(frozen=True)
class Kept:
    """The metric of every prompt when only its first components act.

    Raises:
        ValueError: counts do not rise.
    """

    counts: tuple[int, ...]  # components that act
    per_prompt: bool  # were they chosen for every prompt anew?
    values: Float[Tensor, "batch count"]
    clean: Float[Tensor, " batch"]
    corrupted: Float[Tensor, " batch"]
    ablated: Float[Tensor, " batch"]  # of nothing: the corrupted run, or all components at the means or zeros

    def __post_init__(self) -> None:
        if list(self.counts) != sorted(set(self.counts)):
            raise ValueError(f"counts must rise, not {list(self.counts)}")

    @property
    def shares(self) -> Float[Tensor, " count"]:
        """Mean(value - ablated) / mean(clean - ablated) for every count."""
        return (self.values.mean(0) - self.ablated.mean()) / (self.clean - self.ablated).mean()

    def interval(self, count: int, level: float = 0.95) -> Interval:
        """The share at one count, and how sure it is.

        Raises:
            ValueError: that count was not asked for, or the clean and the ablated run have the same mean.
        """
        if count not in self.counts:
            raise ValueError(f"count = {count}: want one of {', '.join(map(str, self.counts))}")
        values = self.values[:, self.counts.index(count)]
        return ratio_interval(values - self.ablated, self.clean - self.ablated, level)

    def smallest(self, share: float = 0.9) -> int | None:
        """The smallest count from which on the share stays at `share` or above; None if it never does."""
        reached = self.shares >= share
        stays = reached.flip(0).cumprod(0).flip(0).bool()
        return self.counts[int(stays.nonzero()[0])] if stays.any() else None


def keep_top(
    model: Any,
    pairs: TokenizedPairs,
    scores: Sequence[Patched],
    metric: Metric = logit_difference,
    *,
    counts: Sequence[int] | None = None,
    per_prompt: bool = True,
    source: str = "corrupted",
    memory: int = MEMORY,
    progress: bool = True,
    out: str | Path | None = None,
) -> Kept:
    """The metric when only the top components act, and all others give what they give in `source`.

    >>> heads = patch_heads(model, pairs)
    >>> keep_top(model, pairs, [heads]).shares  # of 0, 1, 2, ... heads; MLPs act
    >>> keep_top(model, pairs, [heads, patch_activations(model, pairs, site="mlps")])  # heads and MLPs in one order

    Args:
        scores: of the same pairs, over all positions, for `heads`, `mlps` or both. Ranked by |effect|: our choice.
        counts: how many components act, in any order; default: 0 to all of them
        per_prompt: choose them for every prompt anew (Fig. 3a), or once, by the |mean effect| (Fig. 3b)
        source: "corrupted", "mean" (of the corrupted prompts) or "zero"
        out: file that keeps finished batches. The same call goes on from there after an interruption.

    Raises:
        ValueError: see `patch_runs`; or scores are of other prompts, by position, incomplete, or of other sites;
            or `out` answers another question.
    """
    _refuse_scores(scores, len(pairs))
    order = _order(scores, per_prompt)
    n_components = order.shape[1]
    counts = tuple(range(n_components + 1)) if counts is None else tuple(sorted(set(counts)))
    wrong = [count for count in counts if not 0 <= count <= n_components]
    if wrong:
        raise ValueError(f"count = {wrong[0]}: there are {n_components} components")
    tried = counts if source == "corrupted" else tuple(sorted({0, *counts}))
    dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
    values, baselines = torch.zeros(len(pairs), len(tried), dtype=dtype), torch.zeros(2, len(pairs), dtype=dtype)
    sites = [find_site(model, score.site) for score in scores]
    described = {"sites": [site.name for site in sites], "order": order, "counts": tried, "source": source}
    with (
        asking(model, pairs, metric, sites, "clean", source) as question,
        tqdm(total=values.numel(), disable=not progress, unit="run", dynamic_ncols=True) as bar,
    ):
        log = batch_log(out, model, pairs, metric, **described)
        for prompts, batch, recorded, at_once in _groups(question, pairs, memory):
            baselines[:, prompts] = torch.stack([recorded.clean, recorded.corrupted]).to(baselines)
            cells = torch.cartesian_prod(torch.arange(len(prompts)), torch.arange(len(tried)))
            for rows, numbers in (part.T for part in cells.split(at_once)):
                acting, where = order[prompts[rows]] < torch.tensor(tried)[numbers, None], (prompts[rows], numbers)
                (found,) = log.once(where, lambda: (_ablated(question, prompts, batch, recorded, rows, acting),))  # noqa: B023
                values[where] = found.to(values)
                bar.update(len(rows))
    clean, corrupted = baselines
    ablated = corrupted if source == "corrupted" else values[:, 0]
    return Kept(counts, per_prompt, values[:, [tried.index(count) for count in counts]], clean, corrupted, ablated)


def _refuse_scores(scores: Sequence[Patched], n_prompts: int) -> None:
    if not scores:
        raise ValueError("there are no scores to rank by: pass those of patch_heads")
    for score in scores:
        if score.site not in ("heads", "mlps") or "pos" in score.axes:
            raise ValueError(f"scores of {score.site} along {score.axes}: want heads or mlps over all positions")
        if len(score.values) != n_prompts:
            raise ValueError(f"scores of {len(score.values)} prompts for {n_prompts}: want those of the same prompts")
        if score.values.isnan().any():
            raise ValueError(f"some {score.site} have no score")


def _order(scores: Sequence[Patched], per_prompt: bool) -> Int[Tensor, "batch component"]:
    """Every component's place, 0 for the one with the largest effect; layer by layer within a site, site after site."""
    effects = torch.cat([score.effects.flatten(1) for score in scores], 1)
    if not per_prompt:
        effects = effects.mean(0, keepdim=True).expand_as(effects)
    return effects.abs().argsort(dim=-1, descending=True, stable=True).argsort(-1)


def _groups(
    question: Question, pairs: TokenizedPairs, memory: int
) -> Iterator[tuple[Int[Tensor, " batch"], TokenizedPairs, Recorded, int]]:
    trial = replace(question, base="clean", source="corrupted")
    one_row, nothing = torch.zeros(1, dtype=torch.long), torch.zeros(1, _n_components(question), dtype=torch.bool)
    for prompts, batch in pairs.to(next(question.model.parameters()).device).batches(len(pairs)):
        (n_prompts, at_once), _ = fit(
            memory,
            lambda _: record(trial, prompts[:1], batch[:1]),  # noqa: B023 - called at once
            lambda recorded: _ablated(trial, prompts[:1], batch[:1], recorded, one_row, nothing),  # noqa: B023
        )
        ready = with_mean(question, prompts, batch, n_prompts) if question.source == "mean" else question
        for some in torch.arange(len(prompts)).split(n_prompts):
            yield prompts[some], batch[some], record(ready, prompts[some], batch[some]), at_once


def _n_components(question: Question) -> int:
    config = question.model.cfg
    return sum(config.n_layers * (config.n_heads if site.cell else 1) for site in question.sites)


def _ablated(
    question: Question,
    prompts: Int[Tensor, " batch"],
    batch: TokenizedPairs,
    recorded: Recorded,
    rows: Int[Tensor, " row"],
    acting: Bool[Tensor, "row component"],
) -> Float[Tensor, " row"]:
    """The metric when only `acting` components act, one choice a row."""
    config = question.model.cfg
    sizes = [(config.n_heads,) if site.cell else () for site in question.sites for _ in range(config.n_layers)]
    masks = (~acting).split([*(size[0] if size else 1 for size in sizes)], 1)
    places = [site for site in question.sites for _ in range(config.n_layers)]
    hooks = [
        (name, replacing(site, mask.reshape(len(rows), *size), recorded.source[name][rows]))
        for name, site, mask, size in zip(question.names, places, masks, sizes, strict=True)
    ]
    return measure(question, prompts[rows], batch[rows], hooks)
