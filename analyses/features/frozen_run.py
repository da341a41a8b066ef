"""One prompt's run with attention patterns, norms and features frozen, which makes the rest of the model linear.

1. A head writes pattern[q, k] * W_O W_V norm(stream[k]). With the norms' denominators frozen at their values in the
   run, that is linear in the stream, except for a constant (biases of the values and of the norm).
2. MLPs act only through features with frozen activations: an MLP's output is a sum of features, an error and biases.
   The only linear path through an MLP is a transcoder's skip connection.
3. Whatever reads the stream reads along a direction; `back_heads` and `back_skip` take directions back through a layer.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselens.analyses.engine.norms import Norm
from sparselens.analyses.engine.partial_runs import recording, run
from sparselens.analyses.engine.request import OpenModel
from sparselens.analyses.engine.residual_stream import TOLERANCE, Layer, Reading
from sparselens.analyses.features.transcoders import Transcoders

Directions = Float[Tensor, "target branch pos d_model"]


@dataclass(frozen=True, eq=False)
class Linear:
    """A norm with a frozen denominator: x -> gain * centre(x) * inverse, plus its bias."""

    norm: Norm | None
    inverse: Float[Tensor, "pos 1"]

    @classmethod
    def at(cls, norm: Norm | None, x: Float[Tensor, "pos d_model"]) -> "Linear":
        """The norm, frozen at what it does to x."""
        return cls(norm, torch.ones_like(x[:, :1]) if norm is None else norm.standardise(x)[1])

    def back(self, direction: Float[Tensor, "*axes pos d_model"]) -> Float[Tensor, "*axes pos d_model"]:
        """The direction before the norm that corresponds to `direction` after it."""
        if self.norm is None:
            return direction
        return self.norm.centre(self.norm.gain.to(direction) * direction) * self.inverse

    @property
    def bias(self) -> Float[Tensor, " d_model"] | float:
        """The norm's bias."""
        return 0.0 if self.norm is None else self.norm.bias


@dataclass(frozen=True, eq=False)
class FrozenLayer:
    """A layer's recorded values and weights."""

    layer: Layer
    pattern: Float[Tensor, "head query_pos key_pos"]
    attention_norm: Linear
    post_norm: Linear
    read_norm: Linear  # between the stream and the layer's features
    w_v: Float[Tensor, "head d_model d_head"]
    w_o: Float[Tensor, "head d_head d_model"]
    value_bias: Float[Tensor, "head d_head"]  # biases of the values and of the norm before them
    unowned: Float[Tensor, "pos d_model"]  # biases that attention writes in addition to its heads
    x: Float[Tensor, "pos d_model"]  # what features read
    activations: Float[Tensor, "pos feature"]
    error: Float[Tensor, "pos d_model"]  # the MLP's output minus its reconstruction

    def back_heads(
        self, direction: Float[Tensor, "*axes pos d_model"]
    ) -> tuple[Float[Tensor, "*axes head pos d_model"], Float[Tensor, "*axes head"]]:
        """For each head, the direction before the layer that it maps to `direction` after it, and its bias's share."""
        value, constant = self._at_values(direction)
        return self.attention_norm.back(torch.einsum("...hke,hme->...hkm", value, self.w_v)), constant

    def back_attention(
        self, direction: Float[Tensor, "*axes pos d_model"]
    ) -> tuple[Float[Tensor, "*axes pos d_model"], Float[Tensor, "*axes"]]:
        """The sum of `back_heads`."""
        value, constant = self._at_values(direction)
        moved = torch.einsum("...hke,hme->...km", value, self.w_v)
        return self.attention_norm.back(moved), constant.sum(-1)

    def _at_values(self, direction: Tensor) -> tuple[Tensor, Tensor]:
        """The direction along which each head's values are read at each key position, and their biases' share."""
        z = torch.einsum("...qm,hem->...hqe", self.post_norm.back(direction), self.w_o)
        value = torch.einsum("hqk,...hqe->...hke", self.pattern, z)
        return value, torch.einsum("...hke,he->...h", value, self.value_bias)

    def back_skip(
        self, direction: Float[Tensor, "*axes pos d_model"], skip: Float[Tensor, "d_model d_model"]
    ) -> tuple[Float[Tensor, "*axes pos d_model"], Float[Tensor, "*axes"]]:
        """The direction before the MLP that its skip connection maps to `direction` after it, and its constant."""
        read = direction @ skip.T
        constant = (read * self.read_norm.bias).sum((-2, -1))
        return self.read_norm.back(read), constant


@dataclass(frozen=True, eq=False)
class FrozenRun:
    """All layers of one prompt's run, the input of block 0, and the stream and logits at the end."""

    layers: tuple[FrozenLayer, ...]
    start: Float[Tensor, "pos d_model"]
    end: Float[Tensor, "pos d_model"]
    logits: Float[Tensor, "pos d_vocab"]


def freeze(opened: OpenModel, transcoders: Transcoders, tokens: Int[Tensor, " pos"]) -> FrozenRun:
    """Run one prompt and record what is to be frozen.

    Raises:
        ValueError: some head's output is not its attention pattern times its values.
    """
    reading, recorded = opened.reading, dict[str, Tensor]()
    points = ("hook_resid_pre", "attn.hook_pattern", "attn.hook_z", "hook_mlp_out")
    names = [name for layer in reading.layers for name in (*map(layer.at, points), layer.mid)]
    logits = run(opened.model, tokens[None].to(opened.device), recording(recorded, [*names, reading.end]))
    dtype = torch.promote_types(logits.dtype, torch.float32)
    kept = {name: values[0].to(dtype) for name, values in recorded.items()}
    layers: list[FrozenLayer] = []
    for layer in reading.layers:
        stream, z = kept[layer.at("hook_resid_pre")], kept[layer.at("attn.hook_z")]
        layers.append(_frozen_layer(opened, transcoders, layer, kept, [made.activations for made in layers]))
        _refuse_other_heads(opened, layers[-1], stream, z)
    return FrozenRun(tuple(layers), kept[reading.layers[0].at("hook_resid_pre")], kept[reading.end], logits[0])


def _frozen_layer(
    opened: OpenModel, transcoders: Transcoders, layer: Layer, kept: dict[str, Tensor], before: list[Tensor]
) -> FrozenLayer:
    reading, attn = opened.reading, opened.model.blocks[layer.number].attn
    stream, z, mid = kept[layer.at("hook_resid_pre")], kept[layer.at("attn.hook_z")], kept[layer.mid]
    attention_norm = Linear.at(layer.norm, stream)
    w_v, bias = reading.weight(layer.number, "v").to(stream), reading.bias(layer.number, "v")
    value_bias = torch.zeros_like(w_v[:, 0]) if bias is None else bias.to(stream)
    if layer.norm is not None:
        value_bias = value_bias + torch.einsum("m,hme->he", layer.norm.bias.to(stream), w_v)
    unowned = reading.unowned(layer.number, z[None])
    norm = transcoders.norm(layer)
    x = mid if norm is None else norm(mid)
    activations = transcoders.encode(layer.number, x)
    rebuilt = transcoders.reconstruct(layer.number, [*before, activations], x)
    return FrozenLayer(
        layer,
        kept[layer.at("attn.hook_pattern")],
        attention_norm,
        Linear.at(layer.post_norm, _attention_out(reading, layer, z)),
        Linear.at(norm, mid),
        w_v,
        attn.W_O.detach().to(stream),
        value_bias,
        torch.zeros_like(stream) if unowned is None else unowned.to(stream).expand(1, *stream.shape)[0],
        x,
        activations,
        kept[layer.at("hook_mlp_out")] - rebuilt,
    )


def _attention_out(reading: Reading, layer: Layer, z: Float[Tensor, "pos head d_head"]) -> Float[Tensor, "pos d_model"]:
    """The output of attention, as a norm after it reads it."""
    attn = reading.model.blocks[layer.number].attn
    found, bias = torch.einsum("qhe,hem->qm", z, attn.W_O.detach().to(z)), getattr(attn, "b_O", None)
    return found if bias is None else found + bias.detach().to(z)


def _refuse_other_heads(opened: OpenModel, frozen: FrozenLayer, stream: Tensor, z: Tensor) -> None:
    norm = frozen.layer.norm
    standard = stream if norm is None else norm.standardise(stream)[0] * norm.gain.to(stream)
    values = torch.einsum("km,hme->hke", standard, frozen.w_v) + frozen.value_bias[:, None]
    off = (torch.einsum("hqk,hke->qhe", frozen.pattern, values) - z).abs().max() / z.abs().max().clamp_min(1e-30)
    if not off <= TOLERANCE.get(opened.dtype, 1e-5):
        raise ValueError(
            f"cannot attribute through the heads of layer {frozen.layer.number}: their outputs are not "
            f"pattern times values (relative error {float(off):.2g})"
        )
