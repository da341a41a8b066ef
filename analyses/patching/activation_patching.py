"""Activation patching: replace one activation of a run, and measure the metric.

1. value = metric(base run with one activation replaced), where the base is the clean (noising) or the corrupted prompt
   (denoising), and the replacement comes from the other prompt, the mean over corrupted prompts, or zero.
2. Both prompts of every pair run once; the activations at the site and the inputs of all blocks in the base run are
   kept.
3. A patch whose activation is the same in both runs changes nothing: its value is the base run's.
4. All others run in batches, one row per (prompt, patch), starting at the patched block. If patches cover all positions
   and come from the other prompt, runs also skip the tokens that both prompts share at the start (`engine.prefixes`).
Source: Vig et al. 2020; Meng et al. 2022; Heimersheim and Nanda 2024 for noising and denoising.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparselens.analyses.engine.partial_runs import holding, starting_at
from sparselens.analyses.engine.renamed import renamed_argument
from sparselens.analyses.engine.request import Request, open_request
from sparselens.analyses.engine.resume import batch_log
from sparselens.analyses.patching.patch_runs import Patching, Recorded, groups, patching
from sparselens.analyses.patching.patch_sites import find_site, replacing
from sparselens.analyses.patching.patching_result import PatchingResult, refuse_cell
from sparselens.bars import progress_bar
from sparselens.models.hooked_model import HookedModel
from sparselens.prompts.metrics import Metric, logit_difference
from sparselens.prompts.tokenized import TokenizedPairs


@renamed_argument("source", "ablation")
def patch_heads(
    model: HookedModel, pairs: TokenizedPairs, metric: Metric | str = logit_difference, **options: Any
) -> PatchingResult:
    """Patch the output of every attention head, at all positions together or one by one.

    >>> result = patch_heads(model, pairs, "logit_difference", by_position=True)
    >>> result.values.shape, result.effects.mean(0)  # [batch layer head pos], Float["layer head pos"]

    Options, sign convention and scope are those of `patch_activations`, which also patches other sites.
    """
    return patch_activations(model, pairs, metric, "heads", **options)


@renamed_argument("source", "ablation")
def patch_activations(
    model: HookedModel,
    pairs: TokenizedPairs,
    metric: Metric | str = logit_difference,
    site: str = "heads",
    *,
    base: str = "clean",
    ablation: str = "corrupted",
    by_position: bool = False,
    only: Sequence[Sequence[int]] | None = None,
    memory: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
    out: str | Path | None = None,
) -> PatchingResult:
    """Replace one activation at a time, and measure the metric of every prompt under each patch.

    >>> patch_activations(model, pairs, site="mlps").values.shape  # [batch layer]
    >>> patch_activations(model, pairs, site="residual", by_position=True).values.shape  # [batch layer pos]

    Sign convention: `PatchingResult.effects` is the metric under the patch minus that of the base run. Noising a
    component that matters gives a negative effect, denoising it a positive one.

    Scope: one component at a time, while all others stay as in the base run. Components that back each other up each
    have a small effect.

    Args:
        model: dense or sparse; runs in evaluation mode
        metric: function of (logits, pairs), or name in `sparselens.prompts.metrics`
        site: `heads` (a head's output, before W_O), `mlps`, `attention` (the output of a layer's heads together),
            `residual` (the input of a block), or `attention_edges` (one weight of one head, query and key)
        base: the run to patch: "clean" (noising) or "corrupted" (denoising)
        ablation: what replaces the activation: that of the other prompt ("corrupted" or "clean"), "zero", or the "mean"
            over corrupted prompts at each position
        by_position: one patch per position instead of one for all positions
        only: the patches to run, each indexed by layer and the rest of `PatchingResult.axes`; default: all
        memory: bytes to use in addition to the model; one prompt is measured to find the batch size. Default: 64 rows
            at a time for small models, otherwise 1 GiB
        batch_size: rows (one patch on one prompt) per run, instead of a memory budget
        progress: show a progress bar
        out: file for finished batches; after an interruption the same call resumes from it

    Raises:
        ValueError: a patch, site, base or ablation is unknown, prompts of a pair differ in length, the metric is not
            one finite number per prompt, or `out` belongs to another call.
    """
    with open_request(model, pairs, metric, memory=memory, batch_size=batch_size, progress=progress) as request:
        place, model, n = find_site(request.model, site, by_position), request.model, len(request)
        axes = ("batch", "layer", *place.cell)
        dtype = torch.promote_types(request.opened.dtype, torch.float32)
        shape = (n, model.cfg.n_layers, *place.sizes(model, request.pairs.clean.shape[1]))
        values, baselines = torch.full(shape, torch.nan, dtype=dtype), torch.zeros(2, n, dtype=dtype)
        chosen = _chosen(only, axes[1:], shape[1:])
        log = batch_log(out, request, site=site, axes=axes, base=base, ablation=ablation, only=chosen)
        per_prompt = int(chosen.sum())

        def one_row(trial: Patching, batch: Request, recorded: Recorded) -> Tensor:
            return _patched(trial, _group(trial, batch, recorded), 0, torch.zeros(1, len(axes) - 1, dtype=torch.long))

        with (
            patching(request, [place], base, ablation) as setup,
            progress_bar(n * per_prompt, site, "patch", request.progress) as bar,
        ):
            for batch, recorded, at_once in groups(setup, one_row):
                prompts, group = batch.prompts, _group(setup, batch, recorded)
                baselines[:, prompts] = torch.stack([recorded.clean, recorded.corrupted]).to(baselines)
                todo = _settle(setup, group, values, chosen)
                bar.update(len(prompts) * per_prompt - int(todo.sum()))
                for layer, cells in _batches(todo, at_once):
                    where = (prompts[cells[:, 0]], torch.full_like(cells[:, 0], layer), *cells.T[1:])
                    (found,) = log.once(where, lambda: (_patched(setup, group, layer, cells),))  # noqa: B023
                    values[where] = found.to(values)
                    bar.update(len(cells))
        clean, corrupted = baselines
        labels, clean_prompt = request.pairs.labels, request.pairs.clean_prompt
        return PatchingResult(site, axes, base, ablation, values, clean, corrupted, labels, clean_prompt)


def _chosen(only: Sequence[Sequence[int]] | None, axes: Sequence[str], shape: Sequence[int]) -> Bool[Tensor, "*cell"]:
    chosen = torch.full(tuple(shape), only is None)
    for cell in only or ():
        refuse_cell(cell, axes, shape)
        chosen[tuple(cell)] = True
    return chosen


@dataclass(frozen=True)
class _Group:
    """Prompts of one length that are recorded together."""

    batch: Request
    recorded: Recorded
    window: tuple[slice, ...]  # the part of every axis of a cell that they use


def _group(setup: Patching, batch: Request, recorded: Recorded) -> _Group:
    request, (site,) = setup.request, setup.sites
    return _Group(batch, recorded, _window(request.pairs, batch.prompts, site.cell, request.model.cfg.n_heads))


def _window(pairs: TokenizedPairs, prompts: Tensor, cell: Sequence[str], n_heads: int) -> tuple[slice, ...]:
    """The part of every axis of a cell that these prompts use: positions without their padding."""
    columns = slice(0, pairs.clean.shape[1])
    if pairs.attention_mask is not None:
        used = pairs.attention_mask[prompts.to(pairs.attention_mask.device)].any(0).nonzero()
        columns = slice(int(used[0]), int(used[-1]) + 1)
    return tuple(slice(0, n_heads) if axis == "head" else columns for axis in cell)


def _settle(setup: Patching, group: _Group, values: Tensor, chosen: Tensor) -> Bool[Tensor, "batch layer *cell"]:
    """Fill in the values of patches that change nothing; returns the patches left to run."""
    (site,), recorded, prompts = setup.sites, group.recorded, group.batch.prompts
    todo = torch.zeros(len(prompts), *values.shape[1:], dtype=torch.bool)
    for layer, name in enumerate(setup.names):
        todo[(slice(None), layer, *group.window)] = site.differs(recorded.base[name], recorded.replacement[name]).cpu()
    unpatched = (recorded.clean if setup.base == "clean" else recorded.corrupted).to(values)
    unpatched = unpatched.reshape(-1, *(1 for _ in values.shape[1:]))
    values[prompts] = torch.where(chosen & ~todo, unpatched, torch.nan)
    return todo & chosen


def _batches(todo: Tensor, size: int) -> Iterator[tuple[int, Int[Tensor, "row axis"]]]:
    """Layer by layer, the prompt's row in the group and the cell of every patch to run, `size` of them at a time."""
    for layer in range(todo.shape[1]):
        for cells in todo[:, layer].nonzero().split(size):
            if len(cells):
                yield layer, cells


def _patched(setup: Patching, group: _Group, layer: int, cells: Int[Tensor, "row axis"]) -> Float[Tensor, " row"]:
    """The metric under patches of one layer, one per row."""
    (site,), recorded = setup.sites, group.recorded
    name, rows = site.hook_name(layer), cells[:, 0]  # on the CPU, since layers may be on several devices
    sizes = [window.stop - window.start for window in group.window]
    inside = [axis - window.start for axis, window in zip(cells.T[1:], group.window, strict=True)]
    mask = torch.zeros(len(cells), *sizes, dtype=torch.bool)
    mask[(torch.arange(len(cells)), *inside)] = True
    hook = replacing(site, mask, recorded.replacement[name][rows])
    unchanged = {} if site.name == "residual" else recorded.projections[layer]
    model, as_tuple = group.batch.model, group.batch.opened.as_tuple
    with starting_at(model, layer, recorded.residual(layer)[rows], as_tuple), holding(unchanged, rows):
        return setup.measure(group.batch.rows(rows), [(name, hook)], setup.base == "corrupted")
