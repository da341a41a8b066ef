"""What made a feature active, by source and head: exact, with patterns, norms and features frozen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselens.analyses.engine.prompt_tokens import Position, place_of, prompt_tokens
from sparselens.analyses.engine.request import OpenModel
from sparselens.analyses.engine.residual_stream import TOLERANCE
from sparselens.analyses.features.feature_paths import (
    Feature,
    Target,
    feature_target,
    influences,
    logit_target,
    sources_of,
)
from sparselens.analyses.features.frozen_run import FrozenRun, freeze
from sparselens.analyses.features.transcoders import Transcoders
from sparselens.gates.modes import evaluating
from sparselens.models.hooked_model import HookedModel
from sparselens.names import unknown
from sparselens.prompts.fitting import text_of
from sparselens.results import Result

LOGITS = "logits"


@dataclass(frozen=True, eq=False, repr=False)
class FeatureAttribution(Result):
    """The influence of every source on one feature, or on the logits, directly and through each head.

    >>> found = analyses.attribute_feature(model, transcoders, "Lily saw a big dog. She was", "f3.17")
    >>> found.through.shape, found.heads_needed(0.8), found.top(3)  # Float["source head"]
    >>> found["f1.4@8", "a2.h3"]  # influence of one source through one head

    Sign convention: positive if the source raises the target, in the target's unit.
    """

    target: str
    sources: tuple[str, ...]  # active features `f1.4@8` (layer, number, position), then errors, inputs, biases
    heads: tuple[str, ...]
    direct: Float[Tensor, " source"]  # by paths without a head
    through: Float[Tensor, "source head"]  # by paths whose last head is this one
    n_features: int  # number of features; they are the first sources
    value: float  # the target's value in the run: a feature's pre-activation, or a difference of logits
    tokens: tuple[str, ...]

    _largest = "influence"

    @property
    def missing(self) -> float:
        """The target's value minus all influences: with `one_head`, that of paths through several heads; else zero."""
        return self.value - float(self.direct.double().sum() + self.through.double().sum())

    def heads_needed(self, share: float = 0.8) -> int:
        """The fewest heads that carry this share of the features' |influence| through heads.

        Raises:
            ValueError: the share is not above 0 and at most 1.
        """
        return int(heads_needed(self.by_head, share))

    @property
    def by_head(self) -> Float[Tensor, " head"]:
        """The features' |influence| through each head, summed over features."""
        return self.through[: self.n_features].abs().sum(0)

    def top(self, n: int) -> list[tuple[str, str, float]]:
        """The `n` (feature, head, influence) triples with the largest |influence|, largest first."""
        values = self.through[: self.n_features]
        order = values.abs().flatten().argsort(descending=True, stable=True)[:n].tolist()
        pairs = [divmod(number, len(self.heads)) for number in order]
        return [(self.sources[source], self.heads[head], float(values[source, head])) for source, head in pairs]

    def __getitem__(self, pair: tuple[str, str]) -> float:
        for what, name, known in zip(("source", "head"), pair, (self.sources, self.heads), strict=True):
            if name not in known:
                raise unknown(what, name, known)
        return float(self.through[self.sources.index(pair[0]), self.heads.index(pair[1])])

    def _line(self) -> str:
        best = "".join(f"; largest {source} through {head} {value:+.2g}" for source, head, value in self.top(1))
        return (
            f"{self.target} {self.value:.3g}: {self.n_features:,} features, 80% through {self.heads_needed()} of "
            f"{len(self.heads)} heads{best}"
        )

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        every = torch.cat([self.direct[:, None], self.through], 1)
        source, by = every.nonzero(as_tuple=True)
        names = ("direct", *self.heads)
        return {
            "source": [self.sources[number] for number in source.tolist()],
            "by": [names[number] for number in by.tolist()],
            "influence": every[source, by].tolist(),
        }

    def plot(self, most: int = 12) -> Any:
        """A plotly heat map of the features and heads with the largest |influence|."""
        from sparselens.analyses.figures.heat_maps import heat_map

        values = self.through[: self.n_features]
        if not values.numel() or not values.any():
            raise ValueError(f"no feature influences {self.target} through a head: there is nothing to draw")
        rows = values.abs().sum(1).argsort(descending=True, stable=True)[:most]
        columns = self.by_head.argsort(descending=True, stable=True)[:most].sort().values
        names = [self.sources[row] for row in rows.tolist()], [self.heads[column] for column in columns.tolist()]
        title = f"Influence of features on {self.target}, by head"
        return heat_map(values[rows][:, columns], title, rows=names[0], columns=names[1], value_label="influence")


def attribute_feature(
    model: HookedModel,
    transcoders: Transcoders,
    prompt: str | Int[Tensor, " pos"],
    target: str | tuple[int, int] = LOGITS,
    pos: Position = -1,
    *,
    one_head: bool = False,
) -> FeatureAttribution:
    """Attribute one feature, or the logits, to every active feature, directly and through each head's OV circuit.

    >>> found = analyses.attribute_feature(model, transcoders, "Lily saw a big dog. She was", "f3.17", -1)
    >>> found.direct.sum() + found.through.sum() == found.value  # the feature's pre-activation

    Frozen at their values in the run: attention patterns (after gating, in a sparse model), the denominators of all
    norms, and the activations of the features that replace the MLPs. The rest of the model is linear. The influence of
    a source with activation a and decoder d on a target with encoder e, by paths through head h alone, is
    a * pattern[q, k] * d . W_V W_O . e, times the scales of both norms. Paths through several heads count for the last
    one, which writes what the target reads. So all influences add up to the target's value; this is checked. The part
    of an MLP's output that features do not explain is a source of its own (`error2@5`), as are the input of block 0
    (`input@5`) and all biases together.

    Sign convention: positive if the source raises the target, in the target's unit.

    Args:
        target: a feature `f3.17` (layer, number), active or not; "logits": the most likely token's logit minus the
            mean logit; or two tokens: the first one's logit minus the second one's
        pos: the target's position
        one_head: leave out paths through several heads

    Raises:
        ValueError: there is no such feature or position, the transcoders belong to another model, or the model is one
            that `attribute_edges` refuses.
    """
    opened = OpenModel(model)
    rows = prompt_tokens(opened, prompt)
    if len(rows) != 1:
        raise ValueError(f"{len(rows)} prompts: want one, as text or Int[pos] tokens; feature_heads takes several")
    at = place_of(pos, rows.shape[1])
    transcoders.refuse_other_model(opened.reading)
    feature = None if isinstance(target, tuple) or target == LOGITS else _feature(transcoders, target, at)
    if isinstance(target, tuple) and not all(0 <= token < opened.model.cfg.d_vocab for token in target):
        raise ValueError(f"target = {target}: want two tokens, 0 to {opened.model.cfg.d_vocab - 1}")
    with evaluating(opened.model), torch.no_grad():
        frozen = freeze(opened, transcoders, rows[0])
        if feature is None:
            read = logit_target(opened, frozen, at, *(target if isinstance(target, tuple) else ()))
        else:
            read = feature_target(frozen, transcoders, feature)
        ((_, found),) = influences(frozen, transcoders, [read], one_head)
    refuse_other_sum(opened, read, found, one_head)
    sources = sources_of(frozen)
    return FeatureAttribution(
        read.name,
        sources.names,
        head_names(frozen),
        found[:, 0].cpu(),
        found[:, 1:].cpu(),
        len(sources.features),
        read.value,
        token_names(opened, rows[0]),
    )


def _feature(transcoders: Transcoders, name: str, pos: int) -> Feature:
    layer, _, index = name.removeprefix("f").partition(".")
    n_layers, n_features, _ = transcoders.encoder.shape
    if not (name.startswith("f") and layer.isdecimal() and index.isdecimal()):
        raise ValueError(f"no such target: {name!r} (want a feature such as 'f1.17', {LOGITS!r}, or two tokens)")
    if int(layer) >= n_layers or int(index) >= n_features:
        raise ValueError(f"no such feature: {name!r} (want f0.0 to f{n_layers - 1}.{n_features - 1})")
    return Feature(int(layer), int(index), pos)


def refuse_other_sum(opened: OpenModel, target: Target, found: Float[Tensor, "source branch"], one_head: bool) -> None:
    """Raise a ValueError if influences do not add up to the target's value."""
    off = abs(float(found.double().sum()) - target.value) / (abs(target.value) + float(found.abs().max()))
    if not one_head and not off <= TOLERANCE.get(opened.dtype, 1e-5):
        raise ValueError(
            f"in this {type(opened.model).__name__} influences on {target.name} do not add up to its value (relative "
            f"error {off:.2g})"
        )


def head_names(frozen: FrozenRun) -> tuple[str, ...]:
    """All heads, in the order of branches."""
    return tuple(f"a{number}.h{head}" for number, layer in enumerate(frozen.layers) for head in range(len(layer.w_v)))


def token_names(opened: OpenModel, tokens: Int[Tensor, " pos"]) -> tuple[str, ...]:
    """The text of each token, or its id if there is no tokenizer."""
    tokenizer = getattr(opened.model, "tokenizer", None)
    if tokenizer is None:
        return tuple(map(str, tokens.tolist()))
    return tuple(text_of(tokenizer, token) for token in tokens.tolist())


def heads_needed(weights: Float[Tensor, "*rows head"], share: float) -> Int[Tensor, "*rows"]:
    """The fewest heads that hold a share of each row's total weight; 0 if the row has no weight.

    Raises:
        ValueError: the share is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share = {share}: want above 0 and at most 1")
    summed = weights.double().sort(descending=True, dim=-1).values.cumsum(-1)
    enough = summed >= share * summed[..., -1:] * (1 - 1e-12)  # tolerance for rounding, which depends on the order
    return (enough.int().argmax(-1) + 1) * (summed[..., -1] > 0)
