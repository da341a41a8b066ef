"""Runs a model in which only a circuit's edges carry this run's writes; all other edges carry the ablation's.

Several circuits run at once, as rows of a batch.

1. v reads x_ablated + sum over kept edges u -> v of (write of u in this run - its ablated write).
2. Sources run in the model's own modules, in order; only their inputs are replaced, so that every head reads its
   queries, keys and values through edges of its own.
3. Where query heads share keys and values, attention runs on as many copies of a prompt as heads share one, and copy r
   keeps the r-th head of every group.
4. What no kept edge touches costs little: heads that read nothing of the circuit share one projection of the ablated
   stream, and blocks that write nothing to it are skipped.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparselens.analyses.engine.edge_products import Writes, exact_dtype
from sparselens.analyses.engine.norms import Norm
from sparselens.analyses.engine.partial_runs import Activations, Hook, silent_projections, skipping
from sparselens.analyses.engine.request import PerPrompt, Request
from sparselens.analyses.engine.residual_stream import Layer, Reading
from sparselens.circuits.graph import RECEIVERS


@dataclass(frozen=True, eq=False)
class Ablated:
    """The writes that edges outside the circuit carry, and the residual streams that they add up to."""

    writes: Writes
    streams: Activations  # by the hook point at which they are read
    metric: PerPrompt  # of the run in which no edge is kept


def ablated_by(batch: Request, writes: Writes | None = None) -> Ablated:
    """Ablation by the corrupted run, or by these writes of all sources. Biases stay.

    Streams are summed from the writes instead of changed by the difference: zeros must leave exactly nothing, since
    at a gate bias of 0 the sign of a rounding error would open gates.
    """
    reading = batch.reading
    names = [*reading.recorded_names(), reading.end]
    run = batch.record(names, corrupted=True)
    own = writes_of(reading, run.recorded)
    if writes is None:
        return Ablated(own, {name: run.recorded[name].to(own.dtype) for name in names}, run.metric)
    writes = writes.to(own).expand_as(own).contiguous()
    ablated = Ablated(writes, _streams(reading, writes, run.recorded), run.metric)
    nothing = torch.zeros_like(reading.graph.exists)[None]
    return replace(ablated, metric=run_circuits(batch, nothing, ablated, writes[0])[0])


def writes_of(reading: Reading, recorded: Activations) -> Writes:
    """The writes of every source in a recorded run."""
    start = recorded[reading.layers[0].at("hook_resid_pre")]
    writes = start.new_empty(len(reading.graph.sources), *start.shape, dtype=exact_dtype(start.dtype))
    writes[0] = start
    for layer in reading.layers:
        heads = reading.graph.head_sources(layer.number)
        writes[heads] = reading.head_writes(layer.number, recorded[layer.at("attn.hook_z")]).to(writes)
        if layer.block.mlp:
            writes[heads.stop] = recorded[layer.at("hook_mlp_out")].to(writes)
    return writes


def _streams(reading: Reading, writes: Writes, recorded: Activations) -> Activations:
    """The residual streams that these writes add up to, by the hook point at which they are read."""
    streams, stream = dict[str, Tensor](), writes[0]
    for layer in reading.layers:
        heads = reading.graph.head_sources(layer.number)
        streams[layer.at("hook_resid_pre")] = stream.to(recorded[layer.at("hook_resid_pre")].device)
        stream = stream + writes[heads].sum(0)
        biases = reading.unowned(layer.number, recorded[layer.at("attn.hook_z")])
        stream = stream if biases is None else stream + biases.to(stream)
        if layer.block.mlp:
            if not layer.block.parallel:
                streams[layer.mid] = stream.to(recorded[layer.mid].device)
            stream = stream + writes[heads.stop]
    return streams | {reading.end: stream.to(recorded[reading.end].device)}


def run_circuits(
    batch: Request,
    kept: Bool[Tensor, "circuit source destination"],
    ablated: Ablated,
    start: Float[Tensor, "batch pos d_model"],
) -> Float[Tensor, "circuit batch"]:
    """The metric of the clean prompts when only a circuit's edges carry what the run makes, for several at once.

    Args:
        start: what the input writes in the clean run
    """
    reading, circuits = batch.reading, len(kept)
    copies = max(block.n_heads // (block.n_kv_heads or block.n_heads) for block in reading.graph.blocks)
    sources, _, *size = ablated.writes.shape
    changes = ablated.writes.new_zeros(sources, circuits, len(batch), *size)
    changes[0] = start.to(ablated.writes) - ablated.writes[0]
    run = _CircuitsRun(reading, kept.to(ablated.writes), ablated, changes, copies)
    with skipping(batch.model, run.needless(), batch.opened.as_tuple), silent_projections(batch.model):
        found = batch.repeated(copies * circuits).measure(run.hooks())
    return found[: circuits * len(batch)].unflatten(0, (circuits, -1))


@dataclass(frozen=True, eq=False)
class _CircuitsRun:
    """One run, whose rows are circuits times prompts, `copies` times over.

    `changes` fills up with each source's write minus its ablated write.
    """

    reading: Reading
    kept: Float[Tensor, "circuit source destination"]
    ablated: Ablated
    changes: Float[Tensor, "source circuit batch pos d_model"]
    copies: int

    def hooks(self) -> list[Hook]:
        """The hooks that replace inputs and record writes."""
        hooks: list[Hook] = []
        for layer in self.reading.layers:
            for number, receiver in enumerate(RECEIVERS):
                hooks.append((layer.at(f"attn.hook_{receiver}"), partial(self._into_heads, layer, number)))
            hooks.append((layer.at("attn.hook_z"), partial(self._heads_write, layer)))
            if layer.block.mlp:
                hooks.append((layer.mlp_in, partial(self._into_mlp, layer)))
                hooks.append((layer.at("hook_mlp_out"), partial(self._mlp_writes, layer)))
        return [*hooks, (self.reading.end, self._into_logits)]

    def needless(self) -> dict[int, Callable[[], Tensor]]:
        """The blocks whose writes no kept edge carries, with what they return: that of the last one is read."""
        found: dict[int, Callable[[], Tensor]] = {}
        for layer in self.reading.layers:
            heads = self.reading.graph.head_sources(layer.number)
            if not self.kept[:, heads.start : heads.stop + layer.block.mlp].any():
                found[layer.number] = partial(self._skipped, layer)
        return found

    def _skipped(self, layer: Layer) -> Tensor:
        like = next(self.reading.model.blocks[layer.number].parameters())
        if layer is self.reading.layers[-1]:
            return self._into_logits(like)
        stream = self.ablated.streams[layer.at("hook_resid_pre")]  # of the right shape; nothing reads it
        return stream.repeat(self.copies * len(self.kept), 1, 1).to(like)

    def _reads(
        self, stream: str, written: int, columns: Int[Tensor, " reader"]
    ) -> Float[Tensor, "reader row pos d_model"]:
        """The inputs of these destinations, circuit by circuit."""
        kept, changes = self.kept[:, :written, columns], self.changes[:written]
        sources = kept.any(2).any(0).nonzero()[:, 0]
        if 2 * len(sources) < written:  # to copy some costs as much as to multiply all
            kept, changes = kept[:, sources], changes.index_select(0, sources)
        base = self.ablated.streams[stream]
        numbers = rearrange(changes, "source circuit batch pos d_model -> circuit source (batch pos d_model)")
        read = (kept.mT @ numbers).unflatten(2, changes.shape[2:]).to(base) + base
        return rearrange(read, "circuit reader batch pos d_model -> reader (circuit batch) pos d_model")

    def _into_heads(self, layer: Layer, number: int, activation: Tensor) -> Tensor:
        block, graph = layer.block, self.reading.graph
        start = graph.head_destinations(layer.number).start + number * block.n_heads
        columns = slice(start, start + block.n_heads)
        name, written = layer.at("hook_resid_pre"), graph.head_sources(layer.number).start
        receiver = RECEIVERS[number]
        weight, bias = self.reading.weight(layer.number, receiver), self.reading.bias(layer.number, receiver)
        base = self.ablated.streams[name]
        own = self.kept[:, :written, columns].any(1).any(0).to(weight.device)  # heads that read something of a circuit
        found = base.new_empty(len(self.kept) * len(base), base.shape[1], *weight.shape[::2])
        if not own.all():
            alike = torch.einsum("btm,hme->bthe", _normed(layer.norm, base), weight[~own])
            found[:, :, ~own] = alike.repeat(len(self.kept), 1, 1, 1)
        if own.any():
            stream = self._reads(name, written, start + own.nonzero()[:, 0].to(self.kept.device))
            found[:, :, own] = torch.einsum("hbtm,hme->bthe", _normed(layer.norm, stream), weight[own])
        found = found if bias is None else found + bias
        shared = block.n_heads // activation.shape[2]
        parts = [found[:, :, copy % shared :: shared] for copy in range(self.copies)]
        return torch.cat(parts).to(activation.dtype)

    def _heads_write(self, layer: Layer, z: Tensor) -> None:
        shared = layer.block.n_heads // (layer.block.n_kv_heads or layer.block.n_heads)
        copies = rearrange(z, "(copy row) pos head d_head -> copy row pos head d_head", copy=self.copies)
        own = torch.arange(layer.block.n_heads, device=z.device) % shared  # the copy that holds a head's key and value
        z = torch.stack([copies[int(copy), :, :, head] for head, copy in enumerate(own)], 2)
        heads = self.reading.graph.head_sources(layer.number)
        self._write(heads, self.reading.head_writes(layer.number, z))

    def _into_mlp(self, layer: Layer, activation: Tensor) -> Tensor:
        """One copy is enough: an MLP reads the same whichever head of a group a copy keeps."""
        place = self.reading.graph.head_destinations(layer.number).stop
        written = int(self.reading.graph.reads[place])
        stream = self._reads(layer.mid, written, torch.tensor([place], device=self.kept.device))[0]
        return _normed(layer.mlp_norm, stream).to(activation.dtype)

    def _mlp_writes(self, layer: Layer, activation: Tensor) -> Tensor:
        place = self.reading.graph.head_sources(layer.number).stop
        self._write(slice(place, place + 1), activation[None])
        return activation.repeat(self.copies, 1, 1)

    def _write(self, sources: slice, writes: Float[Tensor, "source row pos d_model"]) -> None:
        own = rearrange(
            writes.to(self.changes), "source (circuit batch) ... -> source circuit batch ...", circuit=len(self.kept)
        )
        self.changes[sources] = own - self.ablated.writes[sources, None]

    def _into_logits(self, activation: Tensor) -> Tensor:
        last = torch.tensor([self.kept.shape[2] - 1], device=self.kept.device)
        stream = self._reads(self.reading.end, len(self.changes), last)[0]
        return stream.repeat(self.copies, 1, 1).to(activation.dtype)


def _normed(norm: Norm | None, stream: Tensor) -> Tensor:
    return stream if norm is None else norm(stream)
