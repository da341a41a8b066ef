"""Activation patching: replace one activation of a run, and measure what becomes of the metric.

1. value = metric(base run with one activation replaced), where the base is the clean (noising) or the corrupted prompt
   (denoising), and the replacement comes from the other prompt, the mean over corrupted prompts, or zero.
2. Both prompts of every pair run once; the activations at the site and what every block of the base run reads are kept.
3. A patch whose activation is the same in both runs changes nothing: its value is the base run's.
4. All others run in batches, one row per (prompt, patch), from the patched block on.
Source: Vig et al. 2020; Meng et al. 2022; Heimersheim and Nanda 2024 for noising and denoising.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparselens.analyses.engine.partial_runs import holding, starting_at
from sparselens.analyses.engine.renamed import renamed_argument
from sparselens.analyses.engine.request import Request, open_request
from sparselens.analyses.engine.resume import batch_log
from sparselens.analyses.patching.patch_runs import Patching, Recorded, patching, record, with_means
from sparselens.analyses.patching.patch_sites import find_site, replacing
from sparselens.bars import progress_bar
from sparselens.circuits.graph import head_of
from sparselens.models.hooked_model import HookedModel
from sparselens.names import unknown
from sparselens.prompts.intervals import Interval, mean_interval, ratio_interval
from sparselens.prompts.metrics import Metric, logit_difference
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.results import Result


@dataclass(frozen=True, repr=False)
class PatchingResult(Result):
    """The metric of every prompt under every patch.

    >>> heads = patch_heads(model, pairs)
    >>> heads["a0.h1"], heads.effects.mean(0)[0, 1], heads.normalised_interval(0, 1)  # the mean effect, twice

    Sign convention: `values` is the metric itself. `effects` is what the patch adds to the base run's metric: negative
    where noising a component that matters. `normalised` is 1 as in the clean run and 0 as in the corrupted one.
    """

    site: str
    axes: tuple[str, ...]  # of `values`: batch, layer, then those that number the patches of a layer
    base: str
    ablation: str
    values: Float[Tensor, "batch layer *cell"]  # NaN for patches that were left out
    clean: Float[Tensor, " batch"]  # the metric without a patch
    corrupted: Float[Tensor, " batch"]
    positions: tuple[str, ...] = ()  # `TokenizedPairs.labels`

    _largest = "effect"

    def _line(self) -> str:
        effects = self.effects.mean(0).nan_to_num()
        cell = torch.unravel_index(effects.abs().argmax(), effects.shape)
        where = ", ".join(f"{axis} {int(at)}" for axis, at in zip(self.axes[1:], cell, strict=True))
        gap = f"metric {float(self.clean.mean()):.3g}, corrupted {float(self.corrupted.mean()):.3g}"
        how = f"{self.site}, {self.ablation} into {self.base}, {len(self.values)} prompts"
        return f"{how}: {gap}, largest effect {float(effects[cell]):+.3g} at {where}"

    def _columns(self) -> dict[str, list[Any]]:
        effects = self.effects.mean(0)
        places = effects.isfinite().nonzero()
        known = {axis: places[:, number].tolist() for number, axis in enumerate(self.axes[1:])}
        cell = tuple(places.T)
        return known | {"metric": self.mean[cell].tolist(), "effect": effects[cell].tolist()}

    def __getitem__(self, node: str) -> Float[Tensor, "*place"]:
        """Mean effect of patching a head (`a0.h1`) or an MLP (`m0`), of every position where these were patched apart.

        Raises:
            ValueError: nothing of that name was patched.
        """
        effects = self.effects.mean(0)
        if "head" in self.axes:
            return effects.movedim(self.axes.index("head") - 1, 1)[head_of(node, self._heads)]
        known = {"mlps": "m", "attention": "a", "residual": "r"}[self.site]
        names = [f"{known}{layer}" for layer in range(len(effects))]
        if node not in names:
            raise unknown("patch", node, names)
        return effects[names.index(node)]

    def plot(self, head: str | None = None) -> Any:
        """The mean effects as a plotly heat map, with tokens on the axes where positions were patched apart.

        Args:
            head: of attention edges, those of one head; default: the head with the largest effect
        """
        from sparselens.analyses.figures.heat_maps import heat_map, pattern_map

        effects, cell = self.effects.mean(0), self.axes[2:]
        title = f"{self.site}: {self.ablation} into {self.base}"
        if "query_pos" in cell:
            return pattern_map(effects, head, self.positions)
        if cell == ("head",):
            return heat_map(effects, title)
        if not cell:
            return heat_map(effects[:, None], title, columns=[self.site])
        columns = self.positions or "pos"
        if "head" not in cell:
            return heat_map(effects, title, columns=columns)
        n_layers, n_heads = self._heads
        rows = [f"a{layer}.h{number}" for layer in range(n_layers) for number in range(n_heads)]
        by_head = effects.movedim(self.axes.index("head") - 1, 1).flatten(0, 1)
        return heat_map(by_head, title, rows=rows, columns=columns)

    @property
    def _heads(self) -> tuple[int, int]:
        return self.values.shape[1], self.values.shape[self.axes.index("head")]

    @property
    def mean(self) -> Float[Tensor, "layer *cell"]:
        """Mean over prompts."""
        return self.values.mean(0)

    @property
    def effects(self) -> Float[Tensor, "batch layer *cell"]:
        """Metric under every patch minus the metric of the base run."""
        return self.values - self._along_batch(self.clean if self.base == "clean" else self.corrupted)

    @property
    def normalised(self) -> Float[Tensor, "batch layer *cell"]:
        """(value - corrupted) / (clean - corrupted): 1 as in the clean run, 0 as in the corrupted one.

        NaN for prompts whose clean and corrupted metric are equal.
        """
        gap = self._along_batch(self.clean - self.corrupted)
        return (self.values - self._along_batch(self.corrupted)) / gap.masked_fill(gap == 0, torch.nan)

    def interval(self, *cell: int, level: float = 0.95) -> Interval:
        """Mean metric under one patch, indexed as `axes` after batch, with its bootstrap confidence interval."""
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


@renamed_argument("source", "ablation")
def patch_heads(
    model: HookedModel, pairs: TokenizedPairs, metric: Metric | str = logit_difference, **options: Any
) -> PatchingResult:
    """Patch the output of every attention head, at all positions together or one by one.

    >>> result = patch_heads(model, pairs, "logit_difference", by_position=True)
    >>> result.values.shape, result.effects.mean(0)  # [batch layer head pos], Float["layer head pos"]

    Options, sign convention and scope are those of `patch_activations`, which patches other sites, too.
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
    """The metric of every prompt under every patch of one kind.

    >>> patch_activations(model, pairs, site="mlps").values.shape  # [batch layer]
    >>> patch_activations(model, pairs, site="residual", by_position=True).values.shape  # [batch layer pos]

    Sign convention: `PatchingResult.effects` is the metric under the patch minus that of the base run; noising a
    component that matters gives a negative effect, denoising it a positive one.

    Scope: one component at a time while all others stay as in the base run. Components that back each other up each
    have a small effect.

    Args:
        model: dense or sparse; runs in evaluation mode
        metric: function of (logits, pairs), or name in `sparselens.prompts.metrics`
        site: `heads` (a head's output, before W_O), `mlps`, `attention` (the output of a layer's heads together),
            `residual` (the input of a block), or `attention_edges` (one weight of one head, query and key)
        base: the run that is changed: "clean" (noising) or "corrupted" (denoising)
        ablation: what replaces the activation: that of the other prompt ("corrupted" or "clean"), "zero", or the "mean"
            over corrupted prompts at each position
        by_position: one patch per position instead of one for all positions
        only: the patches to run, each indexed by layer and the rest of `PatchingResult.axes`; default: all
        memory: bytes to work in beside the model, by measuring one prompt. Default: 64 rows at a time for small models,
            else 1 GiB
        batch_size: rows (a patch on a prompt) per run, instead of a budget
        progress: show a bar with the time left
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
        with (
            patching(request, [place], base, ablation) as setup,
            progress_bar(n * per_prompt, site, "patch", request.progress) as bar,
        ):
            for group in _groups(setup):
                prompts = group.batch.prompts
                baselines[:, prompts] = torch.stack([group.recorded.clean, group.recorded.corrupted]).to(baselines)
                todo = _settle(setup, group, values, chosen)
                bar.update(len(prompts) * per_prompt - int(todo.sum()))
                for layer, cells in _batches(todo, group.at_once):
                    where = (prompts[cells[:, 0]], torch.full_like(cells[:, 0], layer), *cells.T[1:])
                    (found,) = log.once(where, lambda: (_patched(setup, group, layer, cells),))  # noqa: B023
                    values[where] = found.to(values)
                    bar.update(len(cells))
        return PatchingResult(site, axes, base, ablation, values, *baselines, positions=request.pairs.labels)


def _chosen(only: Sequence[Sequence[int]] | None, axes: Sequence[str], shape: Sequence[int]) -> Bool[Tensor, "*cell"]:
    chosen = torch.full(tuple(shape), only is None)
    for cell in only or ():
        _refuse_cell(cell, axes, shape)
        chosen[tuple(cell)] = True
    return chosen


def _refuse_cell(cell: Sequence[int], axes: Sequence[str], shape: Sequence[int]) -> None:
    if len(cell) != len(shape) or not all(0 <= number < size for number, size in zip(cell, shape, strict=True)):
        known = ", ".join(f"{axis} 0 to {size - 1}" for axis, size in zip(axes, shape, strict=True))
        raise ValueError(f"no such patch: {tuple(cell)} (want {known})")


@dataclass(frozen=True)
class _Group:
    """Prompts of one length that are recorded together."""

    batch: Request
    recorded: Recorded
    window: tuple[slice, ...]  # their columns along every axis of a cell
    at_once: int  # patches


def _groups(setup: Patching) -> Iterator[_Group]:
    request, (site,) = setup.request, setup.sites
    trial = replace(setup, base="clean", ablation="corrupted")
    first_cell = torch.zeros(1, 1 + len(site.cell), dtype=torch.long)
    for rows in request.pairs.rows(len(request)):
        window, one = _window(request.pairs, rows, site.cell, request.model.cfg.n_heads), request.batch(rows[:1])
        (n_prompts, at_once), _ = one.sizes(
            lambda _: record(trial, one),  # noqa: B023 - called at once
            lambda recorded: _patched(trial, _Group(one, recorded, window, 1), 0, first_cell),  # noqa: B023
        )
        ready = with_means(setup, rows, n_prompts) if setup.ablation == "mean" else setup
        for some in rows.split(n_prompts):
            batch = request.batch(some)
            yield _Group(batch, record(ready, batch), window, at_once)


def _window(pairs: TokenizedPairs, prompts: Tensor, cell: Sequence[str], n_heads: int) -> tuple[slice, ...]:
    """The columns of prompts without their padding, in tensors of all prompts."""
    columns = slice(0, pairs.clean.shape[1])
    if pairs.attention_mask is not None:
        used = pairs.attention_mask[prompts.to(pairs.attention_mask.device)].any(0).nonzero()
        columns = slice(int(used[0]), int(used[-1]) + 1)
    return tuple(slice(0, n_heads) if axis == "head" else columns for axis in cell)


def _settle(setup: Patching, group: _Group, values: Tensor, chosen: Tensor) -> Bool[Tensor, "batch layer *cell"]:
    """Fill in the patches that change nothing; returns those that are left to run."""
    (site,), recorded, prompts = setup.sites, group.recorded, group.batch.prompts
    todo = torch.zeros(len(prompts), *values.shape[1:], dtype=torch.bool)
    for layer, name in enumerate(setup.names):
        todo[(slice(None), layer, *group.window)] = site.differs(recorded.base[name], recorded.replacement[name]).cpu()
    unpatched = (recorded.clean if setup.base == "clean" else recorded.corrupted).to(values)
    unpatched = unpatched.reshape(-1, *(1 for _ in values.shape[1:]))
    values[prompts] = torch.where(chosen & ~todo, unpatched, torch.nan)
    return todo & chosen


def _batches(todo: Tensor, size: int) -> Iterator[tuple[int, Int[Tensor, "row axis"]]]:
    """Layer by layer, the row in the group and the cell of every patch to run, `size` of them at a time."""
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
