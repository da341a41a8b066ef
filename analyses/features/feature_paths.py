"""The influence of everything that was written on what a target reads, by all paths: exact, and a sum over heads.

1. A target reads the stream along a direction: a feature along its encoder, behind the norm; logits along theirs.
2. Going back layer by layer, the direction splits into branches: `direct`, which no head has touched, and one for each
   head, that of paths whose last head it is. Behind their last head paths are direct; before it they may pass others.
3. A source's influence by a branch = what it wrote . the branch's direction there. Sources are features, errors,
   inputs and biases, so all influences add up to what the target read. Restricted to one head for a path, those by
   paths through several heads are missing from the sum.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sparselens.analyses.engine.norms import read_norm
from sparselens.analyses.engine.request import OpenModel
from sparselens.analyses.engine.residual_stream import TOLERANCE
from sparselens.analyses.features.frozen_run import Directions, FrozenRun, Linear
from sparselens.analyses.features.transcoders import Transcoders

NUMBERS = 2**25  # in what the directions of targets become at once


class Feature(NamedTuple):
    """One feature at one position."""

    layer: int
    number: int
    pos: int

    def __str__(self) -> str:
        return f"f{self.layer}.{self.number}@{self.pos}"


@dataclass(frozen=True, eq=False)
class Sources:
    """Everything that was written in a run, in the order of influences: features, errors, inputs, biases."""

    features: tuple[Feature, ...]
    names: tuple[str, ...]


def sources_of(frozen: FrozenRun) -> Sources:
    """All active features, then an error for each layer and position, an input for each position, and the biases."""
    features = [
        Feature(number, index, pos)
        for number, layer in enumerate(frozen.layers)
        for pos, index in layer.activations.nonzero().tolist()
    ]
    n_pos = len(frozen.start)
    errors = [f"error{layer}@{pos}" for layer in range(len(frozen.layers)) for pos in range(n_pos)]
    inputs = [f"input@{pos}" for pos in range(n_pos)]
    return Sources(tuple(features), (*map(str, features), *errors, *inputs, "biases"))


@dataclass(frozen=True, eq=False)
class Target:
    """Something that reads the stream: behind the attention of a layer, or at the end (no layer), at one position."""

    name: str
    layer: int | None
    pos: int
    direction: Float[Tensor, " d_model"]  # in the stream, the norm's root held
    constant: float  # what it adds itself: its bias, and the norm's
    value: float  # what it was in the run


def feature_target(frozen: FrozenRun, transcoders: Transcoders, feature: Feature) -> Target:
    """A feature's pre-activation."""
    layer = frozen.layers[feature.layer]
    encoder = transcoders.encoder[feature.layer, feature.number].to(frozen.start)
    bias = float(transcoders.encoder_bias[feature.layer, feature.number])
    held = Linear(layer.read_norm.norm, layer.read_norm.inverse[feature.pos : feature.pos + 1])
    constant = bias + float((encoder * held.bias).sum())
    value = float(encoder @ layer.x[feature.pos]) + bias
    return Target(str(feature), feature.layer, feature.pos, held.back(encoder[None])[0], constant, value)


def logit_target(
    opened: OpenModel, frozen: FrozenRun, pos: int, answer: int | None = None, wrong: int | None = None
) -> Target:
    """The logit of a token, by default the likeliest, less that of another, by default the mean; before any soft-cap.

    Raises:
        ValueError: the logits are not the unembedding of the stream behind one norm.
    """
    model, stream = opened.model, frozen.end[pos : pos + 1]
    final = model._modules.get("ln_final")
    norm = None if final is None else read_norm(final, model.cfg.d_model)
    weight, bias = model.W_U.detach().to(stream), model.b_U.detach().to(stream)
    logits = ((stream if norm is None else norm(stream)) @ weight + bias)[0]
    cap = getattr(model.cfg, "output_logits_soft_cap", None) or -1.0
    seen, shown = frozen.logits[pos].to(logits), cap * (logits / cap).tanh() if cap > 0 else logits
    off = float((shown - seen).abs().max() / seen.abs().max().clamp_min(1e-3))
    if not off <= TOLERANCE.get(opened.dtype, 1e-5):
        raise ValueError(f"cannot attribute logits: they are not the unembedding of a normed stream (off by {off:.2g})")
    answer = int(logits.argmax()) if answer is None else answer
    less = weight.mean(1) if wrong is None else weight[:, wrong]
    direction = weight[:, answer] - less
    held = Linear.at(norm, stream)
    constant = float(bias[answer] - (bias.mean() if wrong is None else bias[wrong]) + (direction * held.bias).sum())
    value = float(logits[answer] - (logits.mean() if wrong is None else logits[wrong]))
    return Target("logits", None, pos, held.back(direction[None])[0], constant, value)


def influences(
    frozen: FrozenRun, transcoders: Transcoders, targets: Sequence[Target], one_head: bool = False
) -> Iterator[tuple[Target, Float[Tensor, "source branch"]]]:
    """The influence of every source on each target by every branch: direct, then the heads of the model in order."""
    n_branches = 1 + sum(len(layer.w_v) for layer in frozen.layers)
    most_heads = max(len(layer.w_v) for layer in frozen.layers)
    at_once = max(1, NUMBERS // (n_branches * most_heads * frozen.start.numel()))
    for layer in dict.fromkeys(target.layer for target in targets):
        alike = [target for target in targets if target.layer == layer]
        for first in range(0, len(alike), at_once):
            some = alike[first : first + at_once]
            yield from zip(some, _Back(frozen, transcoders, some, one_head).found(), strict=True)


class _Back:
    """Targets that read behind one layer, and their directions on the way back to the input."""

    def __init__(self, frozen: FrozenRun, transcoders: Transcoders, targets: Sequence[Target], one_head: bool) -> None:
        self._frozen, self._transcoders, self._targets, self._one_head = frozen, transcoders, targets, one_head
        heads = [len(layer.w_v) for layer in frozen.layers]
        self._branches = [slice(1 + sum(heads[:n]), 1 + sum(heads[: n + 1])) for n in range(len(heads))]
        sizes = len(targets), 1 + sum(heads), *frozen.start.shape
        self._directions: Directions = frozen.start.new_zeros(sizes)
        self._active = [layer.activations.nonzero(as_tuple=True) for layer in frozen.layers]
        self._features = [frozen.start.new_zeros(*sizes[:2], len(pos)) for pos, _ in self._active]
        self._errors = frozen.start.new_zeros(*sizes[:2], len(heads), sizes[2])
        self._biases = frozen.start.new_zeros(sizes[:2])

    def found(self) -> Float[Tensor, "target source branch"]:
        """All influences."""
        for number, target in enumerate(self._targets):
            self._directions[number, 0, target.pos] = target.direction
            self._biases[number, 0] = target.constant
        behind = self._targets[0].layer
        if behind is not None and not self._frozen.layers[behind].layer.block.parallel:
            self._pass_attention(behind)
        for number in reversed(range(len(self._frozen.layers) if behind is None else behind)):
            self._pass(number)
        inputs = self._written(self._frozen.start)
        parts = [*self._features, self._errors.flatten(2), inputs, self._biases[..., None]]
        return torch.cat(parts, -1).mT

    def _written(self, vectors: Float[Tensor, "pos d_model"]) -> Float[Tensor, "target branch pos"]:
        return torch.einsum("tbpm,pm->tbp", self._directions, vectors)

    def _pass(self, number: int) -> None:
        """From behind a layer to before it."""
        layer, skip = self._frozen.layers[number], self._transcoders.skip
        for source, decoder in self._transcoders.writers(number):
            self._features[source] += self._read_features(source, decoder.to(self._directions))
        self._errors[:, :, number] = self._written(layer.error)
        self._biases += self._directions.sum(-2) @ self._transcoders.decoder_bias[number].to(self._directions)
        skipped = 0.0
        if skip is not None:
            skipped, constant = layer.back_skip(self._directions, skip[number].to(self._directions))
            self._biases += constant
        parallel = layer.layer.block.parallel  # then the MLP reads what attention reads
        self._directions += 0.0 if parallel else skipped
        self._pass_attention(number)
        self._directions += skipped if parallel else 0.0

    def _read_features(
        self, source: int, decoder: Float[Tensor, "feature d_model"]
    ) -> Float[Tensor, "target branch active"]:
        """Active features of a layer, by what they write with this decoder."""
        pos, index = self._active[source]
        written = self._frozen.layers[source].activations[pos, index][:, None] * decoder[index]
        here = written.split(torch.bincount(pos, minlength=self._directions.shape[2]).tolist())
        return torch.cat([self._directions[:, :, at] @ some.T for at, some in enumerate(here)], -1)

    def _pass_attention(self, number: int) -> None:
        layer, own = self._frozen.layers[number], self._branches[number]
        self._biases += torch.einsum("tbpm,pm->tb", self._directions, layer.unowned)
        first, constant = layer.back_heads(self._directions[:, 0])
        if not self._one_head:
            moved, more = layer.back_attention(self._directions[:, own.stop :])
            self._directions[:, own.stop :] += moved
            self._biases[:, own.stop :] += more
        self._directions[:, own] = first
        self._biases[:, own] += constant
