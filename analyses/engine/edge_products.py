"""Edge scores from sources' writes and destinations' gradients, computed as a few large matrix products.

1. score(u -> v) = sum over positions and d_model of (clean - corrupted write of u) * (dmetric / d input of v).
2. dmetric / d input of v = J^T W g, with g the gradient at a head's query, key or value, and J the Jacobian of the
   layer's norm.
3. J^T W g = (W' g - x_hat (x_hat . W' g) / d_model) / root, with W' = gain * W, centred for a LayerNorm.
4. All heads of a layer read the same x, and x_hat . W' g = (query - its bias terms) . g, so the norm costs one pass
   over the gradients. A layer's destinations read a prefix of the sources, so every layer is one product.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from sparselens.analyses.engine.gradients import Gradients
from sparselens.analyses.engine.norms import widened
from sparselens.analyses.engine.partial_runs import Activations
from sparselens.analyses.engine.residual_stream import Layer, Reading
from sparselens.circuits.graph import RECEIVERS

Writes = Float[Tensor, "source batch pos d_model"]


def differences(reading: Reading, clean: Activations, corrupted: Activations) -> Writes:
    """Every source's write in the clean run minus its write in the corrupted run."""

    def difference(name: str) -> Tensor:
        return widened(clean[name]) - widened(corrupted[name])

    def head_writes(layer: Layer) -> Tensor:
        z = layer.at("attn.hook_z")
        if layer.post_norm is None:  # then writes are linear in z
            return reading.head_writes(layer.number, difference(z))
        return torch.sub(*(reading.head_writes(layer.number, run[z]) for run in (clean, corrupted)))

    return _collected(reading, difference, head_writes)


def writes_of(reading: Reading, recorded: Activations) -> Writes:
    """The write of every source in a recorded run."""
    return _collected(
        reading,
        lambda name: widened(recorded[name]),
        lambda layer: reading.head_writes(layer.number, recorded[layer.at("attn.hook_z")]),
    )


def _collected(reading: Reading, write: Callable[[str], Tensor], head_writes: Callable[[Layer], Tensor]) -> Writes:
    """The writes of all sources: `write` gives those of the input and MLPs by hook point."""
    start = write(reading.layers[0].at("hook_resid_pre"))
    writes = start.new_empty(len(reading.graph.sources), *start.shape)
    writes[0] = start
    for layer in reading.layers:
        heads = reading.graph.head_sources(layer.number)
        writes[heads] = head_writes(layer).to(writes)
        if layer.block.mlp:
            writes[heads.stop] = write(layer.at("hook_mlp_out")).to(writes)
    return writes


def edge_products(
    reading: Reading, writes: Writes, gradients: Gradients, by_position: bool = False
) -> Float[Tensor, "batch source destination"] | Float[Tensor, "batch source destination pos"]:
    """Scores of every prompt: the product of each destination's gradient and every write before it."""
    graph = reading.graph
    sizes = [writes.shape[1], len(graph.sources), len(graph.destinations), *[writes.shape[2]] * by_position]
    scores = writes.new_zeros(sizes)
    for layer in reading.layers:
        columns = graph.head_destinations(layer.number)
        written = graph.head_sources(layer.number).start
        read = head_gradients(reading, layer, gradients).to(writes.device)
        _multiply(writes[:written], read, scores[:, :written, columns])
        if layer.block.mlp:
            written = int(graph.reads[columns.stop])
            read = mlp_gradient(layer, gradients)[None].to(writes.device)
            _multiply(writes[:written], read, scores[:, :written, columns.stop : columns.stop + 1])
    _multiply(writes, gradients.at[reading.end].to(writes)[None], scores[:, :, -1:])
    return scores


def _multiply(writes: Writes, read: Float[Tensor, "reader batch pos d_model"], out: Tensor) -> None:
    """Products of all sources and destinations, prompt by prompt; summed over positions unless `out` has that axis."""
    for row in range(writes.shape[1]):
        if out.ndim == 3:
            torch.mm(writes[:, row].flatten(1), read[:, row].flatten(1).T, out=out[row])
        else:
            out[row] = torch.einsum("stm,rtm->srt", writes[:, row], read[:, row])


def head_gradients(reading: Reading, layer: Layer, gradients: Gradients) -> Float[Tensor, "reader batch pos d_model"]:
    """The metric's gradient at the inputs of the queries, keys and values of every head."""
    stream = gradients.recorded[layer.at("hook_resid_pre")]
    batch, pos, d_model = stream.shape
    dtype = torch.promote_types(stream.dtype, torch.float32)
    read = stream.new_empty(3, layer.block.n_heads, batch * pos, d_model, dtype=dtype)
    x_hat = inverse = None
    if layer.norm is not None:
        x_hat, inverse = (values.flatten(0, 1) for values in layer.norm.standardise(stream))
    for number, receiver in enumerate(RECEIVERS):
        heads = _heads(reading, layer, gradients, receiver)
        if layer.norm is None or x_hat is None or inverse is None:
            torch.bmm(heads.gradient, heads.weight.transpose(1, 2), out=read[number])
            continue
        along = (heads.gradient * heads.value).sum(-1, keepdim=True) / d_model
        torch.bmm(heads.gradient * inverse, heads.weight.transpose(1, 2), out=read[number])
        read[number].addcmul_(x_hat, along * inverse, value=-1)
    return read.view(-1, batch, pos, d_model)


class _Heads(NamedTuple):
    """Queries, keys or values of all heads in a layer; `value` is x_hat times the weight, without bias terms."""

    gradient: Float[Tensor, "head row d_head"]
    value: Float[Tensor, "head row d_head"]
    weight: Float[Tensor, "head d_model d_head"]  # with the norm's gain, and centred


def _heads(reading: Reading, layer: Layer, gradients: Gradients, receiver: str) -> _Heads:
    name, weight = layer.at(f"attn.hook_{receiver}"), reading.weight(layer.number, receiver)
    gradient, value = (_by_head(values[name]).to(weight) for values in (gradients.at, gradients.recorded))
    value = value.repeat_interleave(len(weight) // len(value), 0)
    if layer.norm is None:
        return _Heads(gradient, value, weight)
    constant = torch.einsum("m,hme->he", layer.norm.bias.to(weight), weight)
    bias = reading.bias(layer.number, receiver)
    value = value - (constant if bias is None else constant + bias)[:, None]
    weight = weight * layer.norm.gain.to(weight)[:, None]
    return _Heads(gradient, value, weight - weight.mean(1, keepdim=True) if layer.norm.centred else weight)


def mlp_gradient(layer: Layer, gradients: Gradients) -> Float[Tensor, "batch pos d_model"]:
    """The metric's gradient at the input of a layer's MLP."""
    gradient = widened(gradients.at[layer.mlp_in])
    return gradient if layer.mlp_norm is None else layer.mlp_norm.pull_back(gradient, gradients.recorded[layer.mid])


def _by_head(values: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "head row d_head"]:
    return rearrange(values, "batch pos head d_head -> head (batch pos) d_head")
