"""Runs a model in which only a circuit's edges carry what the run makes; over all others comes what an ablation says.

    v reads   x_ablated + sum over kept edges u -> v of (write of u in this run - its ablated write)
Sources run in the model's own modules, in order; only what they read is replaced. So every head reads its queries, keys
and values through edges of its own. Where query heads share keys and values the batch holds as many copies of a prompt
as heads share one, and copy r keeps the r-th head of every group.
"""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparselens.analyses.engine.edge_products import Writes, exact_dtype
from sparselens.analyses.engine.gradients import PerPrompt, Question, ask, repeated
from sparselens.analyses.engine.norms import Norm
from sparselens.analyses.engine.residual_stream import Activations, Hook, Layer, Reading, keep
from sparselens.graph import RECEIVERS


@dataclass(frozen=True, eq=False)
class Ablated:
    """What comes over the edges outside of the circuit, and the residual streams that it adds up to."""

    writes: Writes
    streams: Activations  # by the hook point at which they are read
    metric: PerPrompt  # of the run in which no edge is kept


def ablated_by(question: Question, writes: Writes | None = None) -> Ablated:
    """Ablation by the corrupted run, or by these writes of all sources. Biases stay.

    Streams are added up from the writes, and not changed by the difference: of zeros nothing may be left, since at a
    gate bias of 0 the sign of what rounding leaves would open gates.
    """
    reading, recorded = question.reading, dict[str, Tensor]()
    names = [*reading.recorded_names(), reading.end]
    metric = ask(question, keep(recorded, names), corrupted=True)
    own = writes_of(reading, recorded)
    if writes is None:
        return Ablated(own, {name: recorded[name].to(own.dtype) for name in names}, metric)
    writes = writes.to(own).expand_as(own).contiguous()
    streams = _streams(reading, writes, recorded)
    ablated = Ablated(writes, streams, metric)
    none = torch.zeros_like(reading.graph.exists)
    return Ablated(ablated.writes, streams, run_circuit(question, none, ablated))


def writes_of(reading: Reading, recorded: Activations) -> Writes:
    """What every source writes in a run."""
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
    """The residual streams that are read, as these writes add up to them, by the hook point at which they are read."""
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


def run_circuit(question: Question, kept: Bool[Tensor, "source destination"], ablated: Ablated) -> PerPrompt:
    """The metric of the clean prompts when only the kept edges carry what the run makes."""
    copies = max(block.n_heads // (block.n_kv_heads or block.n_heads) for block in question.reading.graph.blocks)
    run = _CircuitRun(question.reading, kept.to(ablated.writes), ablated, torch.zeros_like(ablated.writes), copies)
    with torch.no_grad():
        return ask(repeated(question, copies), run.hooks())[: len(question.pairs)]


@dataclass(frozen=True, eq=False)
class _CircuitRun:
    """One run: `changes` fills up with what each source writes, less what it writes when ablated."""

    reading: Reading
    kept: Float[Tensor, "source destination"]
    ablated: Ablated
    changes: Writes
    copies: int

    def hooks(self) -> list[Hook]:
        """All that is replaced and recorded."""
        hooks: list[Hook] = [(self.reading.layers[0].at("hook_resid_pre"), partial(self._writes, slice(0, 1)))]
        for layer in self.reading.layers:
            for number, receiver in enumerate(RECEIVERS):
                hooks.append((layer.at(f"attn.hook_{receiver}"), partial(self._into_heads, layer, number)))
            hooks.append((layer.at("attn.hook_z"), partial(self._heads_write, layer)))
            if layer.block.mlp:
                place = self.reading.graph.head_sources(layer.number).stop
                hooks.append((layer.mlp_in, partial(self._into_mlp, layer)))
                hooks.append((layer.at("hook_mlp_out"), partial(self._writes, slice(place, place + 1))))
        return [*hooks, (self.reading.end, self._into_logits)]

    def _reads(self, stream: str, written: int, columns: slice) -> Float[Tensor, "reader batch pos d_model"]:
        """What these destinations read."""
        carried = self.kept[:written, columns].T @ self.changes[:written].flatten(1)
        base = self.ablated.streams[stream]
        return carried.unflatten(1, self.changes.shape[1:]).to(base) + base

    def _into_heads(self, layer: Layer, number: int, activation: Tensor) -> Tensor:
        block, graph = layer.block, self.reading.graph
        start = graph.head_destinations(layer.number).start + number * block.n_heads
        columns = slice(start, start + block.n_heads)
        stream = self._reads(layer.at("hook_resid_pre"), graph.head_sources(layer.number).start, columns)
        receiver = RECEIVERS[number]
        weight, bias = self.reading.weight(layer.number, receiver), self.reading.bias(layer.number, receiver)
        found = torch.einsum("hbtm,hme->bthe", _normed(layer.norm, stream), weight)
        found = found if bias is None else found + bias
        shared = block.n_heads // activation.shape[2]
        parts = [found[:, :, copy % shared :: shared] for copy in range(self.copies)]
        return torch.cat(parts).to(activation.dtype)

    def _heads_write(self, layer: Layer, z: Tensor) -> None:
        shared = layer.block.n_heads // (layer.block.n_kv_heads or layer.block.n_heads)
        copies = z.unflatten(0, (self.copies, -1))
        own = torch.arange(layer.block.n_heads, device=z.device) % shared  # the copy that holds a head's key and value
        z = torch.stack([copies[int(copy), :, :, head] for head, copy in enumerate(own)], 2)
        heads = self.reading.graph.head_sources(layer.number)
        self.changes[heads] = self.reading.head_writes(layer.number, z).to(self.changes) - self.ablated.writes[heads]

    def _into_mlp(self, layer: Layer, activation: Tensor) -> Tensor:
        place = self.reading.graph.head_destinations(layer.number).stop
        written = int(self.reading.graph.reads[place])
        stream = self._reads(layer.mid, written, slice(place, place + 1))[0]
        return _normed(layer.mlp_norm, stream).repeat(self.copies, 1, 1).to(activation.dtype)

    def _into_logits(self, activation: Tensor) -> Tensor:
        stream = self._reads(self.reading.end, len(self.changes), slice(-1, None))[0]
        return stream.repeat(self.copies, 1, 1).to(activation.dtype)

    def _writes(self, place: slice, activation: Tensor) -> None:
        own = activation[: self.changes.shape[1]].to(self.changes)
        self.changes[place] = own - self.ablated.writes[place]


def _normed(norm: Norm | None, stream: Tensor) -> Tensor:
    return stream if norm is None else norm(stream)
