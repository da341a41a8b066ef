"""Activation patching: replace one activation of a run by another's, and see what becomes of the answer.

    value = metric(run on the `base` prompt with one activation taken from `source`)

1. Run both prompts of every pair once and keep the activations at the site, and what every block of the base run read.
2. A patch whose activation is the same in both runs changes nothing: its value is the base run's.
3. All others go through the model in batches, a row for each (prompt, patch), from the patched block on.
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
from sparselens.analyses.engine.partial_runs import holding, starting_at
from sparselens.analyses.engine.resume import batch_log
from sparselens.analyses.patching.patch_runs import Question, Recorded, asking, measure, record, with_mean
from sparselens.analyses.patching.patch_sites import find_site, replacing
from sparselens.prompts.intervals import Interval, mean_interval, ratio_interval
from sparselens.prompts.metrics import Metric, logit_difference
from sparselens.prompts.tokenized import TokenizedPairs


@dataclass(frozen=True)
class Patched:
    """The metric of every prompt under every patch."""

    site: str
    axes: tuple[str, ...]  # of `values`: batch, layer, then those that number the patches of a layer
    base: str
    source: str
    values: Float[Tensor, "batch layer *cell"]  # NaN where a patch was not asked for
    clean: Float[Tensor, " batch"]  # the metric without a patch
    corrupted: Float[Tensor, " batch"]

    @property
    def mean(self) -> Float[Tensor, "layer *cell"]:
        """Mean over prompts."""
        return self.values.mean(0)

    @property
    def effects(self) -> Float[Tensor, "batch layer *cell"]:
        """What every patch adds to the metric of the base run."""
        return self.values - self._along_batch(self.clean if self.base == "clean" else self.corrupted)

    @property
    def normalised(self) -> Float[Tensor, "batch layer *cell"]:
        """(value - corrupted) / (clean - corrupted): 1 as in the clean run, 0 as in the corrupted one.

        NaN for prompts whose clean and corrupted metric are the same, where the share says nothing.
        """
        gap = self._along_batch(self.clean - self.corrupted)
        return (self.values - self._along_batch(self.corrupted)) / gap.masked_fill(gap == 0, torch.nan)

    def interval(self, *cell: int, level: float = 0.95) -> Interval:
        """The mean of one patch, numbered by layer and what follows it in `axes`, and how sure it is.

        Raises:
            ValueError: there is no such patch.
        """
        return mean_interval(self._cell(cell), level)

    def normalised_interval(self, *cell: int, level: float = 0.95) -> Interval:
        """As `interval`, for mean(value - corrupted) / mean(clean - corrupted).

        Raises:
            ValueError: there is no such patch, or clean and corrupted prompts have the same mean.
        """
        return ratio_interval(self._cell(cell) - self.corrupted, self.clean - self.corrupted, level)

    def _cell(self, cell: Sequence[int]) -> Float[Tensor, " batch"]:
        _refuse_cell(cell, self.axes[1:], self.values.shape[1:])
        return self.values[(slice(None), *cell)]

    def _along_batch(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *(1 for _ in self.axes[1:]))


def patch_heads(
    model: Any,
    pairs: TokenizedPairs,
    metric: Metric = logit_difference,
    *,
    base: str = "clean",
    source: str = "corrupted",
    by_position: bool = False,
    memory: int = MEMORY,
    progress: bool = True,
    out: str | Path | None = None,
) -> Patched:
    """What every attention head matters for: its output patched at all positions, or at one after the other.

    >>> patch_heads(model, pairs).mean  # Float["layer head"]

    `patch_activations` says what the options mean, and patches more than heads.
    """
    return patch_activations(
        model,
        pairs,
        metric,
        "heads",
        base=base,
        source=source,
        by_position=by_position,
        memory=memory,
        progress=progress,
        out=out,
    )


def patch_activations(
    model: Any,
    pairs: TokenizedPairs,
    metric: Metric = logit_difference,
    site: str = "heads",
    *,
    base: str = "clean",
    source: str = "corrupted",
    by_position: bool = False,
    only: Sequence[Sequence[int]] | None = None,
    memory: int = MEMORY,
    progress: bool = True,
    out: str | Path | None = None,
) -> Patched:
    """The metric of every prompt under every patch of one kind.

    Args:
        model: TransformerBridge or HookedTransformer, dense or sparse; runs in evaluation mode
        site: `heads` (the output of a head, before W_O), `mlps`, `attention` (the output of all heads of a layer),
            `residual` (what a block reads), or `attention_edges` (one weight of one head, query and key)
        base: the run that is changed: "clean" (noising) or "corrupted" (denoising)
        source: what is put into it: the activation of the other prompt, "zero", or the "mean" of the corrupted prompts
            at each position
        by_position: one patch for every position instead of one for all positions
        only: patches to make, each numbered by layer and what follows it in `Patched.axes`; default: all
        memory: bytes that tensors may take beyond the model, on all devices together
        progress: show a bar with the time left
        out: file that keeps finished batches. The same call goes on from there after an interruption.

    Raises:
        ValueError: see `patch_runs`; or a patch, site, base or source is unknown, or `out` answers another question.
    """
    place = find_site(model, site, by_position)
    axes = ("batch", "layer", *place.cell)
    dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
    shape = (len(pairs), model.cfg.n_layers, *place.sizes(model, pairs.clean.shape[1]))
    values, baselines = torch.full(shape, torch.nan, dtype=dtype), torch.zeros(2, len(pairs), dtype=dtype)
    asked = _asked(only, axes[1:], shape[1:])
    described = {"site": site, "axes": axes, "base": base, "source": source, "only": asked}
    with (
        asking(model, pairs, metric, [place], base, source) as question,
        tqdm(total=len(pairs) * int(asked.sum()), disable=not progress, unit="patch", dynamic_ncols=True) as bar,
    ):
        log = batch_log(out, model, pairs, metric, **described)
        for group in _groups(question, pairs, memory):
            baselines[:, group.prompts] = torch.stack([group.recorded.clean, group.recorded.corrupted]).to(baselines)
            todo = _settle(question, group, values, asked)
            bar.update(len(group.prompts) * int(asked.sum()) - int(todo.sum()))
            for layer, cells in _batches(todo, group.at_once):
                where = (group.prompts[cells[:, 0]], torch.full_like(cells[:, 0], layer), *cells.T[1:])
                (found,) = log.once(where, lambda: (_patched(question, group, layer, cells),))  # noqa: B023
                values[where] = found.to(values)
                bar.update(len(cells))
    return Patched(site, axes, base, source, values, *baselines)


def _asked(only: Sequence[Sequence[int]] | None, axes: Sequence[str], shape: Sequence[int]) -> Bool[Tensor, "*cell"]:
    asked = torch.full(tuple(shape), only is None)
    for cell in only or ():
        _refuse_cell(cell, axes, shape)
        asked[tuple(cell)] = True
    return asked


def _refuse_cell(cell: Sequence[int], axes: Sequence[str], shape: Sequence[int]) -> None:
    if len(cell) != len(shape) or not all(0 <= number < size for number, size in zip(cell, shape, strict=True)):
        known = ", ".join(f"{axis} 0 to {size - 1}" for axis, size in zip(axes, shape, strict=True))
        raise ValueError(f"no such patch: {tuple(cell)} (want {known})")


@dataclass(frozen=True)
class _Group:
    """Prompts of one length, as many as the budget lets be recorded at once."""

    prompts: Int[Tensor, " batch"]  # their numbers
    batch: TokenizedPairs
    recorded: Recorded
    window: tuple[slice, ...]  # their columns along every axis of a cell
    at_once: int  # patches


def _groups(question: Question, pairs: TokenizedPairs, memory: int) -> Iterator[_Group]:
    (site,) = question.sites
    trial = replace(question, base="clean", source="corrupted")
    first_cell = torch.zeros(1, 1 + len(site.cell), dtype=torch.long)
    for prompts, batch in pairs.to(next(question.model.parameters()).device).batches(len(pairs)):
        window = _window(pairs, prompts, site.cell, question.model.cfg.n_heads)
        (n_prompts, at_once), _ = fit(
            memory,
            lambda _: record(trial, prompts[:1], batch[:1]),  # noqa: B023 - called at once
            lambda recorded: _patched(trial, _Group(prompts[:1], batch[:1], recorded, window, 1), 0, first_cell),  # noqa: B023
        )
        ready = with_mean(question, prompts, batch, n_prompts) if question.source == "mean" else question
        for some in torch.arange(len(prompts)).split(n_prompts):
            recorded = record(ready, prompts[some], batch[some])
            yield _Group(prompts[some], batch[some], recorded, window, at_once)


def _window(pairs: TokenizedPairs, prompts: Tensor, cell: Sequence[str], n_heads: int) -> tuple[slice, ...]:
    """Where prompts without their padding are in what belongs to all prompts."""
    columns = slice(0, pairs.clean.shape[1])
    if pairs.attention_mask is not None:
        used = pairs.attention_mask[prompts.to(pairs.attention_mask.device)].any(0).nonzero()
        columns = slice(int(used[0]), int(used[-1]) + 1)
    return tuple(slice(0, n_heads) if axis == "head" else columns for axis in cell)


def _settle(question: Question, group: _Group, values: Tensor, asked: Tensor) -> Bool[Tensor, "batch layer *cell"]:
    """Fill in the patches that change nothing, and say which are left to be run."""
    (site,) = question.sites
    recorded = group.recorded
    todo = torch.zeros(len(group.prompts), *values.shape[1:], dtype=torch.bool)
    for layer, name in enumerate(question.names):
        todo[(slice(None), layer, *group.window)] = site.differs(recorded.base[name], recorded.source[name]).cpu()
    unpatched = (recorded.clean if question.base == "clean" else recorded.corrupted).to(values)
    unpatched = unpatched.reshape(-1, *(1 for _ in values.shape[1:]))
    values[group.prompts] = torch.where(asked & ~todo, unpatched, torch.nan)
    return todo & asked


def _batches(todo: Tensor, size: int) -> Iterator[tuple[int, Int[Tensor, "row axis"]]]:
    """Layer by layer, the prompt in the group and the cell of every patch to be run, `size` of them at a time."""
    for layer in range(todo.shape[1]):
        for cells in todo[:, layer].nonzero().split(size):
            if len(cells):
                yield layer, cells


def _patched(question: Question, group: _Group, layer: int, cells: Int[Tensor, "row axis"]) -> Float[Tensor, " row"]:
    """The metric under patches of one layer, one a row."""
    (site,) = question.sites
    name, rows = site.hook_name(layer), cells[:, 0]  # on the CPU, since layers may be on several devices
    sizes = [window.stop - window.start for window in group.window]
    inside = [axis - window.start for axis, window in zip(cells.T[1:], group.window, strict=True)]
    mask = torch.zeros(len(cells), *sizes, dtype=torch.bool)
    mask[(torch.arange(len(cells)), *inside)] = True
    hook = replacing(site, mask, group.recorded.source[name][rows])
    residual = group.recorded.residual(layer)[rows]
    unchanged = {} if site.name == "residual" else group.recorded.projections[layer]
    with starting_at(question.model, layer, residual, question.as_tuple), holding(unchanged, rows):
        return measure(question, group.prompts[rows], group.batch[rows], [(name, hook)], question.base == "corrupted")
