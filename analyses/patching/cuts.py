"""Cuts: parts of a model that are removed from a run. Pages, files and Python use the same names for them.

    a0.h1:3->7  an attention edge: in head 1 of layer 0, position 7 no longer reads position 3
    a0.h1, a0   a head, all heads of a layer: they write nothing
    m0          an MLP: it writes nothing
    p3          a token: no other position reads it, in any head
An edge is cut by closing its gate or, in a dense model, by setting its weight to zero; other weights do not change.
"""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparselens.analyses.attribution.attention_edges import AttentionEdges, edges_of, shows_edges
from sparselens.analyses.engine.hidden_attention import refuse_hidden_attention
from sparselens.analyses.patching.patch_sites import SITES
from sparselens.gates.surgery import is_sparse

EXAMPLES = "a0.h1:3->7, a0.h1, a0, m0 or p3"
_NUMBER = "(0|[1-9][0-9]{0,5})"
_AXES = {  # the axes along which the numbers in a name are indices
    re.compile(pattern.replace("N", _NUMBER)): axes
    for pattern, axes in {
        r"aN\.hN:N->N": ("layer", "head", "key_pos", "query_pos"),
        r"aN\.hN": ("layer", "head"),
        r"aN": ("layer",),
        r"mN": ("mlp",),
        r"pN": ("pos",),
    }.items()
}


class Shape(NamedTuple):
    """How many parts of each kind a model has on a prompt."""

    layer: int
    head: int
    mlp: int
    pos: int

    @classmethod
    def of(cls, model: Any, n_pos: int) -> "Shape":
        """The shape of a TransformerBridge or HookedTransformer on a prompt of `n_pos` tokens."""
        n_layers, points = model.cfg.n_layers, model.hook_dict
        has_mlps = all(SITES["mlps"].hook_name(layer) in points for layer in range(n_layers))
        return cls(n_layers, model.cfg.n_heads, n_layers * has_mlps, n_pos)

    def has(self, cut: "Cut") -> bool:
        """Whether there is such a part."""
        sizes = {**self._asdict(), "key_pos": self.pos, "query_pos": self.pos}
        return all(number < sizes[axis] for axis, number in cut.places)


class Cut(NamedTuple):
    """The name of a part, and the indices in it with their axes."""

    name: str
    places: tuple[tuple[str, int], ...]

    @property
    def at_position(self) -> bool:
        """Whether the name has a position, so that it means something else in another prompt."""
        return any(axis.endswith("pos") for axis, _ in self.places)


def read_cut(name: str) -> Cut:
    """Parse the name of a part.

    Raises:
        ValueError: it is not the name of a part.
    """
    for pattern, axes in _AXES.items():
        found = pattern.fullmatch(name)
        if found:
            return Cut(name, tuple(zip(axes, map(int, found.groups()), strict=True)))
    raise ValueError(f"no such part: {name!r} (want {EXAMPLES})")


def refuse_unknown(names: Iterable[str], shapes: Collection[Shape]) -> None:
    """Raise a ValueError if no model has a part of this name."""
    for name in names:
        cut = read_cut(name)
        if not any(shape.has(cut) for shape in shapes):
            there = "; ".join(", ".join(f"{axis} < {size}" for axis, size in s._asdict().items()) for s in set(shapes))
            raise ValueError(f"no such part: {name!r} (there are {there})")


@dataclass(frozen=True)
class Cuts:
    """Which parts are cut, as masks."""

    edges: Bool[Tensor, "layer head query_pos key_pos"]
    heads: Bool[Tensor, "layer head"]
    mlps: Bool[Tensor, " mlp"]

    @classmethod
    def of(cls, names: Iterable[str], shape: Shape) -> "Cuts":
        """The named parts; those that a model of this shape does not have are left out.

        Raises:
            ValueError: a name is not that of a part.
        """
        pairs = (shape.layer, shape.head, shape.pos, shape.pos)
        cuts = cls(*(torch.zeros(size, dtype=torch.bool) for size in (pairs, pairs[:2], (shape.mlp,))))
        for cut in map(read_cut, names):
            match cut.places if shape.has(cut) else ():
                case (("mlp", mlp),):
                    cuts.mlps[mlp] = True
                case (("pos", pos),):
                    cuts.edges[..., pos] |= torch.arange(shape.pos) != pos
                case (("layer", layer), ("head", head), (_, key_pos), (_, query_pos)):
                    cuts.edges[layer, head, query_pos, key_pos] = True
                case (("layer", layer), ("head", head)):
                    cuts.heads[layer, head] = True
                case (("layer", layer),):
                    cuts.heads[layer] = True
                case _:
                    pass
        return cuts

    def cover(self, edges: AttentionEdges) -> Bool[np.ndarray, " edge"]:
        """Which of the edges are cut, alone or with their head."""
        closed = (self.edges | self.heads[..., None, None]).numpy()
        return closed[edges.layer, edges.head, edges.query_pos, edges.key_pos]


def cut_hooks(model: Any, cuts: Cuts) -> list[tuple[str, Callable[..., Tensor]]]:
    """Hooks that remove the cut parts from a model's run.

    Raises:
        ValueError: the patterns of this dense model cannot be changed.
    """
    cut_layers = cuts.edges.any(-1).any(-1).any(-1)
    if cut_layers.any():
        refuse_hidden_attention(model, "its edges cannot be cut", "cut heads and MLPs")
    point = "hook_gate" if is_sparse(model) else "hook_pattern"
    close = [(f"blocks.{layer}.attn.{point}", partial(_close, cuts.edges[layer])) for layer in _where(cut_layers)]
    silence = [
        (SITES["heads"].hook_name(layer), partial(_close, cuts.heads[layer][:, None]))
        for layer in _where(cuts.heads.any(-1))
    ]
    omit = [(SITES["mlps"].hook_name(layer), partial(_close, torch.tensor(True))) for layer in _where(cuts.mlps)]
    return [*close, *silence, *omit]


def _where(mask: Bool[Tensor, " layer"]) -> list[int]:
    return mask.nonzero()[:, 0].tolist()


def _close(closed: Tensor, activation: Tensor, **_: Any) -> Tensor:
    return activation.masked_fill(closed.to(activation.device), 0)


@dataclass(frozen=True)
class CutRun:
    """The output and the attention edges of a model on one prompt, without the cut parts."""

    log_probs: Float[Tensor, "pos d_vocab"]
    edges: AttentionEdges


def run_with_cuts(model: Any, tokens: Int[Tensor, "1 pos"], cuts: Cuts) -> CutRun:
    """Run a model, dense or sparse, once without the cut parts.

    Raises:
        ValueError: the model is in training mode, its patterns cannot be changed, or its logits are NaN.
    """
    if model.training:
        raise ValueError("the model is in training mode, where gates are random: call model.eval() first")
    with torch.no_grad(), model.hooks(fwd_hooks=cut_hooks(model, cuts)):
        logits, cache = model.run_with_cache(tokens, names_filter=shows_edges)
    edges = edges_of(model, cache, tokens.shape[1])
    log_probs = logits[0].float().log_softmax(-1).cpu()
    if log_probs.isnan().any():
        raise ValueError("the model's logits are NaN on this prompt")
    return CutRun(log_probs, edges.take(~cuts.cover(edges)))
