"""Transcoders as plain tensors: sparse features that replace a model's MLPs.

1. activations[l] = act(x[l] encoder[l]^T + encoder_bias[l]), where x[l] is the input of layer l's MLP, and act is ReLU,
   JumpReLU (zero up to a threshold) or top-k (ReLU, keeping the k largest activations at each position).
2. The output of MLP m is decoder_bias[m] + x[m] skip[m] + sum over l <= m of activations[l] decoder[l][:, m - l]. The
   features of a per-layer transcoder write only to m = l, those of a cross-layer one to all later layers as well.
Source: Dunefsky et al. 2024 (2406.11944); Ameisen et al. 2025, Circuit Tracing (cross-layer).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparselens.analyses.engine.norms import Norm
from sparselens.analyses.engine.residual_stream import Layer, Reading
from sparselens.names import unknown

READS = ("mlp.hook_in", "ln2.hook_normalized", "hook_resid_mid")  # what features can read; names of TransformerLens


@dataclass(frozen=True, eq=False, repr=False)
class Transcoders:
    """One transcoder for each layer, all of the same size; made by `train_transcoders` or `load_transcoders`.

    >>> transcoders = analyses.load_transcoders("folder")
    >>> transcoders.encoder.shape, transcoders.decoder[0].shape, transcoders.cross_layer
    """

    encoder: Float[Tensor, "layer feature d_model"]
    encoder_bias: Float[Tensor, "layer feature"]
    decoder: tuple[Float[Tensor, "feature _written d_model"], ...]  # per layer; written: its own layer, then later ones
    decoder_bias: Float[Tensor, "layer d_model"]
    threshold: Float[Tensor, "layer feature"] | None = None  # for JumpReLU
    top_k: int | None = None
    skip: Float[Tensor, "layer d_model d_model"] | None = None  # from input to output, x @ skip
    reads: str = READS[0]
    first_pos: int = 0  # no features before this position: many published ones were trained without the first token

    def __post_init__(self) -> None:
        for name, found, wanted in self._shapes():
            if tuple(found.shape) != wanted:
                raise ValueError(f"{name} has shape {list(found.shape)}, want {list(wanted)}")
        if self.reads not in READS:
            raise unknown("place for features to read", self.reads, READS)
        if self.threshold is not None and self.top_k is not None:
            raise ValueError("features have a threshold or a top_k, not both")
        if self.top_k is not None and not 1 <= self.top_k <= self.encoder.shape[1]:
            raise ValueError(f"top_k = {self.top_k}: want 1 to {self.encoder.shape[1]}, the number of features")

    def _shapes(self) -> Iterator[tuple[str, Tensor, tuple[int, ...]]]:
        """Every tensor with the shape that it should have, given the encoder's and the first decoder's."""
        if self.encoder.ndim != 3 or not len(self.encoder) == len(self.decoder) > 0 or self.decoder[0].ndim != 3:
            shapes = [list(values.shape) for values in (self.encoder, *self.decoder[:1])]
            raise ValueError(
                f"want an encoder [layer, feature, d_model] and for each layer a decoder [feature, written, d_model], "
                f"not {shapes[0]} and {len(self.decoder)} of {shapes[1:]}"
            )
        n_layers, n_features, d_model = self.encoder.shape
        yield "encoder_bias", self.encoder_bias, (n_layers, n_features)
        yield "decoder_bias", self.decoder_bias, (n_layers, d_model)
        for layer, decoder in enumerate(self.decoder):
            yield f"decoder[{layer}]", decoder, (n_features, n_layers - layer if self.cross_layer else 1, d_model)
        if self.threshold is not None:
            yield "threshold", self.threshold, (n_layers, n_features)
        if self.skip is not None:
            yield "skip", self.skip, (n_layers, d_model, d_model)

    @property
    def n_layers(self) -> int:
        """Number of layers; all layers of the model have a transcoder."""
        return len(self.encoder)

    @property
    def cross_layer(self) -> bool:
        """Whether features also write to layers after their own."""
        return self.decoder[0].shape[1] > 1

    def __repr__(self) -> str:
        n_layers, n_features, d_model = self.encoder.shape
        act = "JumpReLU" if self.threshold is not None else "ReLU" if self.top_k is None else f"top {self.top_k}"
        kind = "cross-layer" if self.cross_layer else "per-layer"
        return f"Transcoders({kind}, {n_layers} layers of {n_features:,} features, d_model {d_model}, {act})"

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> "Transcoders":
        """A copy on another device or with another dtype, as in `Tensor.to`."""
        moved: dict[str, Any] = {name: values for name, values in vars(self).items() if isinstance(values, Tensor)}
        moved = {name: values.to(device=device, dtype=dtype) for name, values in moved.items()}
        decoder = tuple(values.to(device=device, dtype=dtype) for values in self.decoder)
        return replace(self, decoder=decoder, **moved)

    # -- what they compute

    def pre_activations(
        self, layer: int, x: Float[Tensor, "*batch pos d_model"]
    ) -> Float[Tensor, "*batch pos feature"]:
        """The inputs of the activation function of a layer's features."""
        return x @ self.encoder[layer].T + self.encoder_bias[layer]

    def encode(self, layer: int, x: Float[Tensor, "*batch pos d_model"]) -> Float[Tensor, "*batch pos feature"]:
        """Activations of a layer's features, given what they read."""
        before = self.pre_activations(layer, x)
        found = before.relu()
        if self.threshold is not None:
            found = found * (before > self.threshold[layer])
        if self.top_k is not None:
            values, places = found.topk(self.top_k, -1, sorted=False)
            found = torch.zeros_like(found).scatter(-1, places, values)
        if self.first_pos:
            found = torch.cat([torch.zeros_like(found[..., : self.first_pos, :]), found[..., self.first_pos :, :]], -2)
        return found

    def writers(self, layer: int) -> Iterator[tuple[int, Float[Tensor, "feature d_model"]]]:
        """The layers whose features write to this layer's output, each with its decoder."""
        for source in range(layer + 1) if self.cross_layer else (layer,):
            yield source, self.decoder[source][:, layer - source]

    def reconstruct(
        self,
        layer: int,
        activations: Sequence[Float[Tensor, "*batch pos feature"]],
        x: Float[Tensor, "*batch pos d_model"],
    ) -> Float[Tensor, "*batch pos d_model"]:
        """The reconstructed output of a layer's MLP, from its input and the activations of all layers up to it."""
        found = self.decoder_bias[layer].expand(*x.shape[:-1], -1)
        for source, decoder in self.writers(layer):
            found = found + activations[source] @ decoder
        return found if self.skip is None else found + x @ self.skip[layer]

    # -- how they sit in a model

    def norm(self, layer: Layer) -> Norm | None:
        """The norm between the residual stream and the features of a layer, if there is one.

        TransformerLens' `ln2.hook_normalized` comes before the gain of an RMSNorm, but after that of a LayerNorm.
        """
        norm = layer.mlp_norm
        if norm is None or self.reads == "hook_resid_mid":
            return None
        if self.reads == "ln2.hook_normalized" and not norm.centred:
            return replace(norm, gain=torch.ones_like(norm.gain), bias=torch.zeros_like(norm.bias))
        return norm

    def refuse_other_model(self, reading: Reading) -> None:
        """Raise a ValueError unless these transcoders fit a model with these layers."""
        found = len(reading.layers), int(reading.model.cfg.d_model)
        wanted = self.n_layers, self.encoder.shape[2]
        if found != wanted:
            raise ValueError(
                "these transcoders belong to another model: they have {} layers and d_model {}, ".format(*wanted)
                + "this one {} layers and d_model {}".format(*found)
            )
        without = [layer.number for layer in reading.layers if not layer.block.mlp]
        if without:
            raise ValueError(f"layer {without[0]} of the model has no MLP that a transcoder could replace")
