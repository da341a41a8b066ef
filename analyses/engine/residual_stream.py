"""How components write to the residual stream and read from it: found in the model's modules, verified by a short run.

1. Head h of layer l writes z_h W_O[h]; b_O belongs to no head. In post-norm models it writes its share of the norm:
   gain * centre(z_h W_O[h]) / root, where root is what the norm divides by in this run.
2. Its queries, keys and values are W norm(x) + b, where x is the residual stream before the layer.
3. An MLP reads norm(x), with a norm of its own, that of the attention (GPT-J, Falcon, Phi) or none (OLMo 2).
4. `input` writes what block 0 reads: token and position embeddings, after whatever the model does to them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from sparselens.analyses.engine.norms import Norm, read_norm, widened
from sparselens.analyses.engine.partial_runs import Activations, recording, run
from sparselens.circuits.graph import RECEIVERS, Block, Graph
from sparselens.gates.probe import refuse_broken_weights

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


@dataclass(frozen=True, eq=False)
class Layer:
    """How one block reads and writes; a norm that it does not have is None."""

    number: int
    norm: Norm | None  # between the residual stream and queries, keys, values
    post_norm: Norm | None  # between the heads and the residual stream
    mlp_norm: Norm | None
    block: Block
    mid: str  # hook point of the residual stream that the MLP reads
    mlp_in: str  # hook point or module whose input is the normalised stream

    def at(self, name: str) -> str:
        """The full name of a hook point of this block."""
        return f"blocks.{self.number}.{name}"


@dataclass(frozen=True, eq=False)
class Reading:
    """A model and how each of its blocks reads and writes."""

    model: Any
    graph: Graph
    layers: tuple[Layer, ...]

    @property
    def end(self) -> str:
        """The hook point of the last residual stream, before the final norm."""
        return self.layers[-1].at("hook_resid_post")

    def weight(self, layer: int, receiver: str) -> Float[Tensor, "head d_model d_head"]:
        """W_Q, W_K or W_V of every query head."""
        block = self.layers[layer].block
        found = getattr(self.model.blocks[layer].attn, f"W_{receiver.upper()}").detach()
        return widened(_per_head(found, block))

    def bias(self, layer: int, receiver: str) -> Float[Tensor, "head d_head"] | None:
        """b_Q, b_K or b_V of every query head; None where there is none."""
        found = getattr(self.model.blocks[layer].attn, f"b_{receiver.upper()}", None)
        return None if found is None else widened(_per_head(found.detach(), self.layers[layer].block))

    def head_writes(
        self,
        layer: int,
        z: Float[Tensor, "batch pos head d_head"],
        whole: Float[Tensor, "batch _whole_pos head d_head"] | None = None,
    ) -> Float[Tensor, "head batch pos d_model"]:
        """What the heads of a layer write to the residual stream.

        Args:
            whole: the complete outputs of the heads if `z` is a part of them: a post-norm divides by the root of their
                sum
        """
        attn, post_norm = self.model.blocks[layer].attn, self.layers[layer].post_norm
        weight = widened(attn.W_O.detach())
        flat = rearrange(widened(z), "batch pos head d_head -> head (batch pos) d_head")
        writes = rearrange(torch.bmm(flat, weight), "head (batch pos) d_model -> head batch pos d_model", batch=len(z))
        if post_norm is None:
            return writes
        bias = getattr(attn, "b_O", None)
        total = writes.sum(0) if whole is None else torch.einsum("bthe,hem->btm", widened(whole), weight)
        _, inverse = post_norm.standardise(total + (0 if bias is None else widened(bias.detach())))
        return post_norm.centre(writes) * inverse * post_norm.gain

    def unowned(
        self, layer: int, z: Float[Tensor, "batch pos head d_head"]
    ) -> Float[Tensor, "*_batch_pos d_model"] | None:
        """What attention writes in addition to its heads, from its biases; None if it has none."""
        attn, post_norm = self.model.blocks[layer].attn, self.layers[layer].post_norm
        bias = getattr(attn, "b_O", None)
        bias = None if bias is None else widened(bias.detach())
        if post_norm is None:
            return bias
        found = post_norm.bias
        if bias is not None and bias.any():
            flat = torch.einsum("bthe,hem->btm", widened(z), widened(attn.W_O.detach()))
            found = found + post_norm.centre(bias) * post_norm.standardise(flat + bias)[1] * post_norm.gain
        return found

    def written_names(self) -> list[str]:
        """The hook points from which every source's write is computed."""
        names = [self.layers[0].at("hook_resid_pre")]
        for layer in self.layers:
            names += [layer.at("attn.hook_z")] + [layer.at("hook_mlp_out")] * layer.block.mlp
        return names

    def stream_names(self) -> list[str]:
        """The hook points of the residual streams that heads and MLPs read."""
        names = [layer.at("hook_resid_pre") for layer in self.layers]
        return names + [layer.mid for layer in self.layers if layer.block.mlp]

    def recorded_names(self) -> list[str]:
        """The hook points of the streams and of the writes."""
        return self.stream_names() + self.written_names()


def _per_head(values: Tensor, block: Block) -> Tensor:
    """Repeat the weights of shared keys and values for every query head that uses them."""
    return values.repeat_interleave(block.n_heads // len(values), 0) if len(values) < block.n_heads else values


# -- reading a model


def read_model(model: Any) -> Reading:
    """Find out how a TransformerBridge or HookedTransformer reads and writes, and verify it on a few tokens.

    Raises:
        ValueError: it is another kind of model, its weights are not finite, or its residual stream is not the sum of
            what heads and MLPs write (BERT and others that normalise the sum). The message says where.
    """
    graph = Graph.of_model(model)
    device = next(model.parameters()).device
    length = min(4, model.cfg.n_ctx or 4)
    tokens = (torch.arange(2 * length, device=device) * 7 % model.cfg.d_vocab).view(2, length)
    layers = [_outline(model, number, block) for number, block in enumerate(graph.blocks)]
    recorded: Activations = {}
    with torch.no_grad():
        outline = Reading(model, graph, tuple(layers))
        names = [name for layer in layers for name in _names(layer)]
        run(model, tokens, recording(recorded, [*names, outline.end]))
        for name, activation in recorded.items():
            if not activation.isfinite().all():
                refuse_broken_weights(model)
                raise ValueError(f"{name} is not finite on tokens {tokens.tolist()}")
        return Reading(model, graph, tuple(_verified(outline, layer, recorded) for layer in layers))


def _outline(model: Any, number: int, block: Block) -> Layer:
    """What is known about a layer before its norms are found."""
    at = f"blocks.{number}.".__add__
    mlp_in = at("mlp.hook_in") if at("mlp.hook_in") in model.hook_dict else at("mlp")
    mid = at("hook_resid_pre" if block.parallel else "hook_resid_mid")
    return Layer(number, None, None, None, block, mid, mlp_in)


def _names(layer: Layer) -> list[str]:
    names = [layer.at(name) for name in ("hook_resid_pre", "hook_resid_post", "attn.hook_z")]
    names += [layer.at(f"attn.hook_{receiver}") for receiver in RECEIVERS]
    return [*names, *[layer.mid, layer.mlp_in, layer.at("hook_mlp_out")] * layer.block.mlp]


def _verified(outline: Reading, layer: Layer, recorded: Activations) -> Layer:
    """The layer with its norms, each chosen because it reproduces the recorded run.

    Raises:
        ValueError: none does.
    """
    before, after = (widened(recorded[layer.at(name)]) for name in ("hook_resid_pre", "hook_resid_post"))
    middle = after
    if layer.block.mlp:
        output = widened(recorded[layer.at("hook_mlp_out")])
        middle = after - output if layer.block.parallel else widened(recorded[layer.mid])
        _refuse(outline, layer, "its MLP does not add to the residual stream", _error(after - middle, output))
    norm = _find_norm(
        outline, layer, ("ln1",), "queries are not a function of the residual stream", partial(_queries_off, recorded)
    )
    layer = replace(layer, norm=norm)
    heads_off = partial(_heads_off, recorded, middle - before)
    post_norm = _find_norm(
        outline, layer, ("ln1_post",), "the residual stream is not the sum of what is written", heads_off
    )
    layer = replace(layer, post_norm=post_norm)
    if not layer.block.mlp:
        return layer
    mlp_off = partial(_mlp_off, recorded)
    norm = _find_norm(outline, layer, ("ln2", "ln1"), "its MLP reads something other than the residual stream", mlp_off)
    return replace(layer, mlp_norm=norm)


def _find_norm(
    outline: Reading, layer: Layer, names: tuple[str, ...], problem: str, off: Callable[[Reading, Layer, Any], float]
) -> Norm | None:
    """The norm of the block, or None for no norm, that reproduces the run best."""
    modules = outline.model.blocks[layer.number]._modules
    d_model = outline.model.cfg.d_model
    norms = [read_norm(modules[name], d_model) for name in names if modules.get(name) is not None] + [None]
    errors = [off(outline, layer, norm) for norm in norms]
    best = min(range(len(norms)), key=errors.__getitem__)
    _refuse(outline, layer, problem, errors[best])
    return norms[best]


def _queries_off(recorded: Activations, outline: Reading, layer: Layer, norm: Norm | None) -> float:
    stream = widened(recorded[layer.at("hook_resid_pre")])
    normed, errors = stream if norm is None else norm(stream), [0.0]
    for receiver in RECEIVERS:
        seen, bias = recorded[layer.at(f"attn.hook_{receiver}")], outline.bias(layer.number, receiver)
        found = torch.einsum("btd,hde->bthe", normed, outline.weight(layer.number, receiver))
        found = (found if bias is None else found + bias)[:, :, :: layer.block.n_heads // seen.shape[2]]
        errors.append(_error(found, seen))
    return max(errors)


def _heads_off(recorded: Activations, written: Tensor, outline: Reading, layer: Layer, norm: Norm | None) -> float:
    layers = list(outline.layers)
    layers[layer.number] = replace(layer, post_norm=norm)
    found = replace(outline, layers=tuple(layers)).head_writes(layer.number, recorded[layer.at("attn.hook_z")]).sum(0)
    rest = written - found  # b_O, the same everywhere
    return _error(rest, rest[:1, :1].expand_as(rest), recorded[layer.at("hook_resid_post")])


def _mlp_off(recorded: Activations, _outline: Reading, layer: Layer, norm: Norm | None) -> float:
    stream = widened(recorded[layer.mid])
    return _error(stream if norm is None else norm(stream), recorded[layer.mlp_in])


def _error(found: Tensor, seen: Tensor, scale: Tensor | None = None) -> float:
    return float((found - seen).abs().max() / (seen if scale is None else scale).abs().max().clamp_min(1e-30))


def _refuse(outline: Reading, layer: Layer, problem: str, error: float) -> None:
    dtype = next(outline.model.parameters()).dtype
    if not error <= TOLERANCE.get(dtype, 1e-5):
        raise ValueError(
            f"cannot read layer {layer.number} of this {_kind(outline.model)}: {problem} (off by {error:.2g}). "
            "Want heads and MLPs that add to the residual stream and read it through a LayerNorm, RMSNorm or no norm"
        )


def _kind(model: Any) -> str:
    return str(getattr(model.cfg, "architecture", None) or type(model).__name__)
