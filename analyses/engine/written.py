"""What each source wrote to the residual stream at one position, before a layer reads it: the terms of that sum.

1. `input`, or `token` and `position` where block 0 reads the sum of two embeddings.
2. Every earlier head and MLP, by name. Optionally, heads are split into their attention edges: `a0.h1:3->7` is what
   head 1 of layer 0 moved from position 3 to 7.
3. `b_O`: the output and post-norm biases of attention, which belong to no head.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from sparselens.analyses.engine.norms import widened
from sparselens.analyses.engine.partial_runs import Activations
from sparselens.analyses.engine.residual_stream import TOLERANCE, Layer, Reading
from sparselens.circuits.graph import INPUT

EMBEDDINGS = ("hook_embed", "hook_pos_embed")


def written_names(reading: Reading, n_layers: int, by_position: bool) -> list[str]:
    """The hook points to record for everything written before layer `n_layers` reads."""
    points = reading.model.hook_dict
    names = [name for name in EMBEDDINGS if name in points] + [reading.layers[0].at("hook_resid_pre")]
    for layer in reading.layers[:n_layers]:
        names += [layer.at("attn.hook_z")] + [layer.at("hook_mlp_out")] * layer.block.mlp
        names += [layer.at("attn.hook_pattern"), layer.at("attn.hook_v")] * by_position
    return names


def written_at(
    reading: Reading, n_layers: int, pos: int, recorded: Activations, by_position: bool
) -> tuple[list[str], Float[Tensor, "source batch d_model"]]:
    """Names and values of everything written at a position before layer `n_layers` reads."""
    names, writes = _embeddings(recorded, recorded[reading.layers[0].at("hook_resid_pre")][:, pos], pos)
    biases: list[Tensor] = []
    for layer in reading.layers[:n_layers]:
        split = _by_position if by_position else _by_head
        for name, write in split(reading, layer, pos, recorded):
            names.append(name)
            writes.append(write)
        bias = reading.unowned(layer.number, recorded[layer.at("attn.hook_z")][:, pos : pos + 1])
        biases += [] if bias is None else [bias.reshape(-1, bias.shape[-1]).expand_as(writes[0])]
        if layer.block.mlp:
            names.append(f"m{layer.number}")
            writes.append(recorded[layer.at("hook_mlp_out")][:, pos])
    if any(bias.any() for bias in biases):
        names.append("b_O")
        writes.append(torch.stack([bias.to(writes[0]) for bias in biases]).sum(0))
    return names, torch.stack([write.to(writes[0]) for write in writes])


def _embeddings(
    recorded: Activations, start: Float[Tensor, "batch d_model"], pos: int
) -> tuple[list[str], list[Tensor]]:
    """What block 0 reads: token and position embeddings if it is their sum, otherwise one input."""
    start = widened(start)
    found = [recorded[name].to(start) for name in EMBEDDINGS if name in recorded]
    if len(found) == 2 and all(values.ndim == 3 for values in found):
        token, position = (values[:, pos].expand_as(start) for values in found)
        if torch.allclose(token + position, start, rtol=1e-3, atol=1e-6):
            return ["token", "position"], [token, start - token]
    return [INPUT], [start]


def _by_head(reading: Reading, layer: Layer, pos: int, recorded: Activations) -> Iterator[tuple[str, Tensor]]:
    z = recorded[layer.at("attn.hook_z")][:, pos : pos + 1]
    for head, write in enumerate(reading.head_writes(layer.number, z)[:, :, 0]):
        yield f"a{layer.number}.h{head}", write


def _by_position(reading: Reading, layer: Layer, pos: int, recorded: Activations) -> Iterator[tuple[str, Tensor]]:
    """Heads split by key position; a head stays whole if a hook changed its output, as cutting it does."""
    z = recorded[layer.at("attn.hook_z")][:, pos : pos + 1]
    value = recorded[layer.at("attn.hook_v")]
    value = value.repeat_interleave(z.shape[2] // value.shape[2], 2)
    moved = recorded[layer.at("attn.hook_pattern")][:, :, pos].mT[..., None] * value  # batch key_pos head d_head
    off = (moved.sum(1, keepdim=True) - z).abs().amax((0, 1, 3))
    adds_up = off <= TOLERANCE.get(z.dtype, 1e-5) * z.abs().amax((0, 1, 3))
    whole, split = reading.head_writes(layer.number, z), reading.head_writes(layer.number, moved, z)
    for head in range(z.shape[2]):
        name = f"a{layer.number}.h{head}"
        if not adds_up[head]:
            yield name, whole[head, :, 0]
        else:
            for key_pos in range(moved.shape[1]):
                yield f"{name}:{key_pos}->{pos}", split[head, :, key_pos]
