"""The influence of everything written to the residual stream on what a target reads from it: exact, split by head.

1. A target reads the stream along a direction: a feature along its encoder, after the norm; logits along unembeddings.
2. Going back layer by layer, the direction splits into branches: `direct`, for paths without a head, and one for each
   head, for the paths whose last head it is; earlier on, such paths may pass through other heads.
3. A source's influence along a branch = what it wrote . the branch's direction at that point. Sources are features,
   errors, inputs and biases, so all influences add up to what the target read. With one head per path, the influence
   of paths through several heads is missing from the sum.
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

NUMBERS = 2**25  # most numbers in the directions of the targets that are traced back together


class Feature(NamedTuple):
    """One feature at one position."""

    layer: int
    number: int
    pos: int

    def __str__(self) -> str:
        return f"f{self.layer}.{self.number}@{self.pos}"


@dataclass(frozen=True, eq=False)
class Sources:
    """Everything written to the stream in a run, in the order of influences: features, errors, inputs, biases."""

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
    """Something that reads the stream at one position: after the attention of a layer, or at the end (no layer)."""

    name: str
    layer: int | None
    pos: int
    direction: Float[Tensor, " d_model"]  # in the stream, with the norm's denominator frozen
    constant: float  # the contribution of its own bias and of the norm's
    value: float  # in the run


def feature_target(frozen: FrozenRun, transcoders: Transcoders, feature: Feature) -> Target:
    """The target that is a feature's pre-activation."""
    layer = frozen.layers[feature.layer]
    encoder = transcoders.encoder[feature.layer, feature.number].to(frozen.start)
    bias = float(transcoders.encoder_bias[feature.layer, feature.number])
    norm = Linear(layer.read_norm.norm, layer.read_norm.inverse[feature.pos : feature.pos + 1])
    constant = bias + float((encoder * norm.bias).sum())
    value = float(encoder @ layer.x[feature.pos]) + bias
    return Target(str(feature), feature.layer, feature.pos, norm.back(encoder[None])[0], constant, value)


def logit_target(
    opened: OpenModel, frozen: FrozenRun, pos: int, answer: int | None = None, wrong: int | None = None
) -> Target:
    """The target that is a token's logit minus another's, before any soft-cap.

    Args:
        answer: default: the most likely token
        wrong: default: the mean over all tokens

    Raises:
        ValueError: the logits are not an unembedding of the stream after a single norm.
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
        raise ValueError(
            "cannot attribute logits: they are not an unembedding of the normalised residual stream (relative error "
            f"{off:.2g})"
        )
    answer = int(logits.argmax()) if answer is None else answer
    less = weight.mean(1) if wrong is None else weight[:, wrong]
    direction = weight[:, answer] - less
    frozen_norm = Linear.at(norm, stream)
    own_bias = bias[answer] - (bias.mean() if wrong is None else bias[wrong])
    constant = float(own_bias + (direction * frozen_norm.bias).sum())
    value = float(logits[answer] - (logits.mean() if wrong is None else logits[wrong]))
    return Target("logits", None, pos, frozen_norm.back(direction[None])[0], constant, value)


def influences(
    frozen: FrozenRun, transcoders: Transcoders, targets: Sequence[Target], one_head: bool = False
) -> Iterator[tuple[Target, Float[Tensor, "source branch"]]]:
    """The influence of every source on each target along every branch: direct, then the model's heads in order."""
    n_branches = 1 + sum(len(layer.w_v) for layer in frozen.layers)
    most_heads = max(len(layer.w_v) for layer in frozen.layers)
    at_once = max(1, NUMBERS // (n_branches * most_heads * frozen.start.numel()))
    for layer in dict.fromkeys(target.layer for target in targets):
        same_layer = [target for target in targets if target.layer == layer]
        for first in range(0, len(same_layer), at_once):
            some = same_layer[first : first + at_once]
            yield from zip(some, _BackwardPass(frozen, transcoders, some, one_head).influences(), strict=True)


class _BackwardPass:
    """Traces the directions of targets that read after the same layer back to the input."""

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

    def influences(self) -> Float[Tensor, "target source branch"]:
        """All influences, by going back from the targets to the input."""
        for number, target in enumerate(self._targets):
            self._directions[number, 0, target.pos] = target.direction
            self._biases[number, 0] = target.constant
        last = self._targets[0].layer
        if last is not None and not self._frozen.layers[last].layer.block.parallel:
            self._pass_attention(last)
        for number in reversed(range(len(self._frozen.layers) if last is None else last)):
            self._pass(number)
        inputs = self._written(self._frozen.start)
        parts = [*self._features, self._errors.flatten(2), inputs, self._biases[..., None]]
        return torch.cat(parts, -1).mT

    def _written(self, vectors: Float[Tensor, "pos d_model"]) -> Float[Tensor, "target branch pos"]:
        return torch.einsum("tbpm,pm->tbp", self._directions, vectors)

    def _pass(self, number: int) -> None:
        """Go back from after a layer to before it."""
        layer, skip = self._frozen.layers[number], self._transcoders.skip
        for source, decoder in self._transcoders.writers(number):
            self._features[source] += self._read_features(source, decoder.to(self._directions))
        self._errors[:, :, number] = self._written(layer.error)
        self._biases += self._directions.sum(-2) @ self._transcoders.decoder_bias[number].to(self._directions)
        skipped = 0.0
        if skip is not None:
            skipped, constant = layer.back_skip(self._directions, skip[number].to(self._directions))
            self._biases += constant
        parallel = layer.layer.block.parallel  # the MLP reads the same stream as attention
        self._directions += 0.0 if parallel else skipped
        self._pass_attention(number)
        self._directions += skipped if parallel else 0.0

    def _read_features(
        self, source: int, decoder: Float[Tensor, "feature d_model"]
    ) -> Float[Tensor, "target branch active"]:
        """Influence of a layer's active features through what they write with this decoder."""
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
