"""The result of activation patching: the metric of every prompt under every patch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselens.circuits.graph import head_of
from sparselens.names import unknown
from sparselens.prompts.intervals import Interval, mean_interval, ratio_interval
from sparselens.results import Result


@dataclass(frozen=True, repr=False)
class PatchingResult(Result):
    """The metric of every prompt under every patch.

    >>> heads = patch_heads(model, pairs)
    >>> heads["a0.h1"], heads.effects.mean(0)[0, 1], heads.normalised_interval(0, 1)  # the mean effect, twice

    Sign convention: `values` is the metric itself. `effects` is what the patch adds to the base run's metric: negative
    for noising a component that matters. `normalised` is 1 for the clean run's metric and 0 for the corrupted run's.
    """

    site: str
    axes: tuple[str, ...]  # of `values`: batch, layer, then those that index the patches of a layer
    base: str
    ablation: str
    values: Float[Tensor, "batch layer *cell"]  # NaN for patches that were left out
    clean: Float[Tensor, " batch"]  # the metric without a patch
    corrupted: Float[Tensor, " batch"]
    positions: tuple[str, ...] = ()  # `TokenizedPairs.labels`
    clean_prompt: Int[Tensor, " batch"] | None = None  # its index; pairs with the same one count as one observation

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
        """Mean effect of patching a head (`a0.h1`) or an MLP (`m0`), by position if positions were patched separately.

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
        """The mean effects as a plotly heat map, with tokens on the axes if positions were patched separately.

        Args:
            head: for attention edges, the head to show; default: the head with the largest effect
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
        return heat_map(by_head, title, rows=rows, upward=True, columns=columns)

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
        """(value - corrupted) / (clean - corrupted): 1 for the clean run's metric, 0 for the corrupted run's.

        NaN for prompts whose clean and corrupted metric are equal.
        """
        gap = self._along_batch(self.clean - self.corrupted)
        return (self.values - self._along_batch(self.corrupted)) / gap.masked_fill(gap == 0, torch.nan)

    def interval(self, *cell: int, level: float = 0.95) -> Interval:
        """Mean metric under one patch, indexed by `axes` after batch, with its interval over clean prompts."""
        return mean_interval(self._cell(cell), level, clusters=self.clean_prompt)

    def normalised_interval(self, *cell: int, level: float = 0.95) -> Interval:
        """As `interval`, for mean(value - corrupted) / mean(clean - corrupted).

        Raises:
            ValueError: there is no such patch, or clean and corrupted prompts have the same mean.
        """
        gain, gap = self._cell(cell) - self.corrupted, self.clean - self.corrupted
        return ratio_interval(gain, gap, level, clusters=self.clean_prompt)

    def _cell(self, cell: Sequence[int]) -> Float[Tensor, " batch"]:
        refuse_cell(cell, self.axes[1:], self.values.shape[1:])
        return self.values[(slice(None), *cell)]

    def _along_batch(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *(1 for _ in self.axes[1:]))


def refuse_cell(cell: Sequence[int], axes: Sequence[str], shape: Sequence[int]) -> None:
    """Raise a ValueError if no patch has these indices."""
    if len(cell) != len(shape) or not all(0 <= number < size for number, size in zip(cell, shape, strict=True)):
        known = ", ".join(f"{axis} 0 to {size - 1}" for axis, size in zip(axes, shape, strict=True))
        raise ValueError(f"no such patch: {tuple(cell)} (want {known})")
