"""The sites at which a model can be patched: a hook point per block, and the part of it that one patch replaces."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparselens.names import unknown


@dataclass(frozen=True)
class Site:
    """A hook point of every block. A patch replaces one cell of its activation: all entries at one index of `cell`."""

    name: str
    hook: str  # after `blocks.{layer}.`
    layout: tuple[str, ...]  # axes of the activation, after batch
    cell: tuple[str, ...]  # the axes that index the patches of a layer, in the order of `layout`

    def by_position(self) -> "Site":
        """The same site with one patch per position."""
        return replace(self, cell=tuple(axis for axis in self.layout if axis in (*self.cell, "pos")))

    def hook_name(self, layer: int) -> str:
        """The full name of the hook point in a layer."""
        return f"blocks.{layer}.{self.hook}"

    def sizes(self, model: Any, n_pos: int) -> tuple[int, ...]:
        """Number of cells along every axis of `cell`."""
        return tuple(model.cfg.n_heads if axis == "head" else n_pos for axis in self.cell)

    def differs(self, one: Tensor, other: Tensor) -> Bool[Tensor, "batch *cell"]:
        """The cells in which two activations differ at all: only there does a patch change anything."""
        inside = [axis + 1 for axis, name in enumerate(self.layout) if name not in self.cell]
        different = one != other
        return different.any(inside) if inside else different

    def spread(self, mask: Bool[Tensor, "batch *cell"]) -> Bool[Tensor, "batch *layout"]:
        """A mask over cells, broadcast to the activation."""
        sizes = iter(mask.shape[1:])
        return mask.reshape(len(mask), *(next(sizes) if axis in self.cell else 1 for axis in self.layout))


_STREAM = ("pos", "d_model")
SITES = {
    site.name: site
    for site in (
        Site("heads", "attn.hook_z", ("pos", "head", "d_head"), ("head",)),
        Site("mlps", "hook_mlp_out", _STREAM, ()),
        Site("attention", "hook_attn_out", _STREAM, ()),
        Site("residual", "hook_resid_pre", _STREAM, ()),
        Site(
            "attention_edges", "attn.hook_pattern", ("head", "query_pos", "key_pos"), ("head", "query_pos", "key_pos")
        ),
    )
}


def find_site(model: Any, name: str, by_position: bool = False) -> Site:
    """The site of this name, which every block of the model must have.

    Raises:
        ValueError: there is no such site, or the model has no such hook point.
    """
    if name not in SITES:
        raise unknown("site", name, SITES)
    site = SITES[name]
    points = model.hook_dict
    missing = [site.hook_name(layer) for layer in range(model.cfg.n_layers) if site.hook_name(layer) not in points]
    if missing:
        raise ValueError(f"this {type(model).__name__} has no {missing[0]} to patch")
    return site.by_position() if by_position else site


def replacing(
    site: Site, mask: Bool[Tensor, "batch *cell"], replacement: Float[Tensor, "batch *layout"]
) -> Callable[[Tensor], Tensor]:
    """A hook that replaces the masked cells of the activation."""
    mask = site.spread(mask)
    return lambda activation: torch.where(mask.to(activation.device), replacement.to(activation), activation)
