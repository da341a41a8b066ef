"""The runs of all patching: prompts run once to record them, then rows of prompts run with parts replaced.

1. The base run is clean (noising) or corrupted (denoising); patched runs start from its residual streams.
2. The ablation is what replaces a part of it: the other prompt's activation, the mean over corrupted prompts, or zero.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselens.analyses.engine.hidden_attention import showing_attention
from sparselens.analyses.engine.partial_runs import Activations, Hook, Projections, keeping_projections
from sparselens.analyses.engine.request import Request, refuse_several_lengths
from sparselens.analyses.patching.patch_sites import Site
from sparselens.names import unknown

BASES = ("clean", "corrupted")
ABLATIONS = ("corrupted", "clean", "mean", "zero")

_RESIDUAL = "blocks.{}.hook_resid_pre"


@dataclass(frozen=True)
class Patching:
    """Where a request's runs are patched, and with what."""

    request: Request
    sites: tuple[Site, ...]
    base: str  # the run to patch
    ablation: str  # what replaces parts of it
    means: Activations | None = None  # over the corrupted prompts, for the ablation "mean"

    @property
    def names(self) -> list[str]:
        """The hook points of all sites."""
        return [site.hook_name(layer) for site in self.sites for layer in range(self.request.model.cfg.n_layers)]

    @property
    def trim_mlp(self) -> bool:
        """Whether the last MLP may run at the answer's position only."""
        return not any(site.name == "mlps" for site in self.sites)

    def measure(self, batch: Request, hooks: Sequence[Hook], corrupted: bool = False) -> Float[Tensor, " batch"]:
        """The metric of a run under hooks."""
        return batch.measure(hooks, corrupted, self.trim_mlp)


@dataclass(frozen=True)
class Recorded:
    """The two runs of some prompts, and what replaces parts of the base run."""

    clean: Float[Tensor, " batch"]  # the metric
    corrupted: Float[Tensor, " batch"]
    base: Activations
    replacement: Activations
    projections: Sequence[Projections]  # of the base run, by layer

    def residual(self, layer: int) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream before block `layer` in the base run."""
        return self.base[_RESIDUAL.format(layer)]


@contextmanager
def patching(request: Request, sites: Sequence[Site], base: str, ablation: str) -> Iterator[Patching]:
    """Inside, a request's runs can be patched at these sites.

    Raises:
        ValueError: base or ablation are unknown or the same, or a mean is wanted over prompts of several lengths.
    """
    for name, value, known in (("base", base, BASES), ("ablation", ablation, ABLATIONS)):
        if value not in known:
            raise unknown(name, value, known)
    if base == ablation:
        (other,) = {*BASES} - {base}
        raise ValueError(f"base and ablation are both {base!r}: nothing would change (want ablation={other!r} with it)")
    if ablation == "mean":
        refuse_several_lengths(request.pairs, "means at each position")
    of_edges = any(site.name == "attention_edges" for site in sites)
    with showing_attention(request.model) if of_edges else nullcontext():
        if ablation in BASES and not any({"pos", "key_pos"} & {*site.cell} for site in sites):
            request = request.sharing()
        yield Patching(request, tuple(sites), base, ablation)


def record(setup: Patching, batch: Request) -> Recorded:
    """Run clean and corrupted prompts, and keep what patches need from them.

    Raises:
        ValueError: an activation is not finite, or a hook point is not reached.
    """
    residuals = [_RESIDUAL.format(layer) for layer in range(batch.model.cfg.n_layers)]
    wanted: dict[str, list[str]] = {"clean": [], "corrupted": []}
    wanted[setup.base] = [*setup.names, *residuals]
    if setup.ablation in wanted:
        wanted[setup.ablation] = setup.names
    trim = setup.trim_mlp
    with keeping_projections(batch.model) as projections:
        runs = {setup.base: batch.record(wanted[setup.base], corrupted=setup.base == "corrupted", trim_mlp=trim)}
    (other,) = wanted.keys() - runs.keys()
    runs[other] = batch.record(wanted[other], corrupted=other == "corrupted", trim_mlp=trim)
    base = runs[setup.base].recorded
    replacement = runs[setup.ablation].recorded if setup.ablation in runs else _constant(setup, base)
    return Recorded(runs["clean"].metric, runs["corrupted"].metric, base, replacement, projections)


def _constant(setup: Patching, base: Activations) -> Activations:
    if setup.ablation == "mean":
        assert setup.means is not None
        return {name: setup.means[name].expand_as(base[name]) for name in setup.names}
    return {name: torch.zeros_like(base[name][:1]).expand_as(base[name]) for name in setup.names}


def groups(
    setup: Patching, one_row: Callable[[Patching, Request, Recorded], Any]
) -> Iterator[tuple[Request, Recorded, int]]:
    """Batches of prompts of one length, what was recorded on them, and how many patched rows can run at once.

    Args:
        one_row: makes a patched run of one row, whose memory is measured
    """
    request, trial = setup.request, replace(setup, base="clean", ablation="corrupted")
    for rows in request.pairs.rows(len(request)):
        one = request.batch(rows[:1])
        (n_prompts, at_once), _ = one.sizes(
            lambda _: record(trial, one),  # noqa: B023 - called at once
            lambda recorded: one_row(trial, one, recorded),  # noqa: B023
        )
        ready = with_means(setup, rows, n_prompts) if setup.ablation == "mean" else setup
        for some in rows.split(n_prompts):
            batch = request.batch(some)
            yield batch, record(ready, batch), at_once


def with_means(setup: Patching, rows: Int[Tensor, " batch"], size: int) -> Patching:
    """The same patches with the mean activations over the corrupted prompts in `rows`, which run `size` at a time."""
    sums, dtypes = Activations(), dict[str, torch.dtype]()
    source: Any = replace(setup, base="clean", ablation="corrupted")
    for some in rows.split(size):
        for name, values in record(source, setup.request.batch(some)).replacement.items():
            wide = torch.promote_types(values.dtype, torch.float32)  # in bfloat16, small terms would be lost
            sums[name] = sums.get(name, 0) + values.sum(0, keepdim=True, dtype=wide) / len(rows)
            dtypes[name] = values.dtype
    return replace(setup, means={name: total.to(dtypes[name]) for name, total in sums.items()})
