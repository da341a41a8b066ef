"""Runs a model in which only a circuit's edges carry the writes of this run; all other edges carry ablated writes.

Several circuits run at once, as rows of a batch.

1. v reads x_ablated + sum over kept edges u -> v of (write of u in this run - its ablated write).
2. Sources run in the model's own modules, in order; only their inputs are replaced, so that every head reads its
   queries, keys and values through edges of its own.
3. Where several query heads share keys and values, attention runs on one copy of a prompt for each of them, and copy r
   keeps the r-th head of every group.
4. What no kept edge touches costs little: heads that read nothing from the circuit share one projection of the ablated
   stream, and blocks that write nothing to the circuit are skipped.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparselens.analyses.circuits.mixing import Mixed
from sparselens.analyses.engine.edge_products import Writes
from sparselens.analyses.engine.gradients import frozen
from sparselens.analyses.engine.norms import Norm, widened
from sparselens.analyses.engine.partial_runs import Activations, Hook, silent_projections, skipping
from sparselens.analyses.engine.request import PerPrompt, Request
from sparselens.analyses.engine.residual_stream import Layer, Reading
from sparselens.circuits.graph import RECEIVERS


@dataclass(frozen=True, eq=False)
class Ablated:
    """What edges outside the circuit carry, and the residual streams that these writes add up to."""

    reading: Reading
    recorded: Activations  # of the run whose writes are carried; empty if they are `given`
    given: Writes | None
    streams: Activations  # by the hook point at which they are read
    metric: PerPrompt  # of the run in which no edge is kept

    @property
    def start(self) -> Float[Tensor, "batch pos d_model"]:
        """What the input writes."""
        return self._recorded(self.reading.layers[0].at("hook_resid_pre")) if self.given is None else self.given[0]

    def heads(self, layer: Layer) -> Float[Tensor, "head batch pos d_model"]:
        """What a layer's heads write, computed on demand from their outputs, which take far less memory."""
        if self.given is not None:
            return self.given[self.reading.graph.head_sources(layer.number)]
        return self.reading.head_writes(layer.number, self.recorded[layer.at("attn.hook_z")])

    def mlp(self, layer: Layer) -> Float[Tensor, "batch pos d_model"]:
        """What a layer's MLP writes."""
        if self.given is not None:
            return self.given[self.reading.graph.head_sources(layer.number).stop]
        return self._recorded(layer.at("hook_mlp_out"))

    def _recorded(self, name: str) -> Tensor:
        return widened(self.recorded[name])


def ablated_by(batch: Request, writes: Writes | None = None) -> Ablated:
    """Ablation by the corrupted run, or by these writes of all sources. Biases are kept.

    Streams are summed from the writes instead of corrected by a difference: zero writes must give exactly zero, since
    at a gate bias of 0 the sign of a rounding error would open gates.
    """
    reading = batch.reading
    names = [*reading.recorded_names(), reading.end]
    run = batch.record(names, corrupted=True)
    if writes is None:
        streams = {name: widened(run.recorded[name]) for name in [*reading.stream_names(), reading.end]}
        made = {name: run.recorded[name] for name in reading.written_names()}
        return Ablated(reading, made, None, streams, run.metric)
    start = widened(run.recorded[reading.layers[0].at("hook_resid_pre")])
    writes = writes.to(start).expand(-1, *start.shape)
    ablated = Ablated(reading, {}, writes, _streams(reading, writes, run.recorded), run.metric)
    nothing = torch.zeros_like(reading.graph.exists)[None]
    return replace(ablated, metric=run_circuits(batch, nothing, ablated, writes[0])[0])


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
    kept: Bool[Tensor, "circuit source destination"] | Float[Tensor, "circuit source destination"],
    ablated: Ablated,
    start: Float[Tensor, "batch pos d_model"],
) -> Float[Tensor, "circuit batch"]:
    """The metric of the clean prompts when only a circuit's edges carry this run's writes, for several circuits.

    Args:
        kept: which edges are in the circuit, or the share of this run's writes that each edge carries
        start: what the input writes in the clean run
    """
    reading, circuits = batch.reading, len(kept)
    copies = max(block.n_heads // (block.n_kv_heads or block.n_heads) for block in reading.graph.blocks)
    changes = ablated.start.new_zeros(len(reading.graph.sources), circuits, *ablated.start.shape)
    changes[0] = start.to(changes) - ablated.start
    run = _CircuitsRun(reading, kept.to(changes), ablated, changes, copies)
    with skipping(batch.model, run.skipped_blocks(), batch.opened.as_tuple), silent_projections(batch.model):
        found = batch.repeated(copies * circuits).measure(run.hooks())
    return found[: circuits * len(batch)].unflatten(0, (circuits, -1))


def edge_gradient(
    batch: Request,
    kept: Float[Tensor, "source destination"],
    ablated: Ablated,
    start: Float[Tensor, "batch pos d_model"],
) -> Float[Tensor, "source destination"]:
    """The derivative of the metric with respect to the share of this run's writes on each edge, summed over prompts.

    If all shares are 1, it is EAP of the clean run.

    Args:
        kept: the shares, from 0 to 1; if all edges of a source or into a head have share 0, their derivatives are not
            computed and stay zero

    Raises:
        ValueError: the metric has no gradient.
    """
    with frozen(batch.model), torch.enable_grad():
        share = kept[None].to(ablated.start).requires_grad_()
        values = run_circuits(batch, share, ablated, start)
        if not values.requires_grad:
            raise ValueError("the metric has no gradient: pruning needs one that changes smoothly with the logits")
        return torch.autograd.grad(values.sum(), share)[0][0]


@dataclass(frozen=True, eq=False)
class _CircuitsRun:
    """One run, whose rows are circuits times prompts, repeated `copies` times.

    The run fills `changes` with each source's write minus its ablated write.
    """

    reading: Reading
    kept: Float[Tensor, "circuit source destination"]
    ablated: Ablated
    changes: Float[Tensor, "source circuit batch pos d_model"]
    copies: int
    read: dict[int, Float[Tensor, "reader row pos d_model"]] = field(
        default_factory=dict[int, Tensor]
    )  # by heads, per layer
    traced: list[tuple[slice, Tensor]] = field(default_factory=list[tuple[slice, Tensor]])  # writes with gradients

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

    def skipped_blocks(self) -> dict[int, Callable[[], Tensor]]:
        """The blocks whose writes no kept edge carries, with what to return for them."""
        found: dict[int, Callable[[], Tensor]] = {}
        for layer in self.reading.layers:
            heads = self.reading.graph.head_sources(layer.number)
            if not self.kept[:, heads.start : heads.stop + layer.block.mlp].any():
                found[layer.number] = partial(self._instead_of, layer)
        return found

    def _instead_of(self, layer: Layer) -> Tensor:
        """What a skipped block returns; only the output of the last block is read."""
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
        if not kept.requires_grad and 2 * len(sources) < written:  # a copy of more costs as much as a product of all
            kept, changes = kept[:, sources], changes.index_select(0, sources)
        base = self.ablated.streams[stream]
        numbers = rearrange(changes, "source circuit batch pos d_model -> circuit source (batch pos d_model)")
        if kept.requires_grad:
            traced = [(places, write) for places, write in self.traced if places.stop <= written]
            places, writes = zip(*traced, strict=True) if traced else ((), ())
            mixed: Tensor = Mixed.apply(kept, numbers, places, *writes)  # pyright: ignore
        else:
            mixed = kept.mT @ numbers
        read = mixed.unflatten(2, changes.shape[2:]).to(base) + base
        return rearrange(read, "circuit reader batch pos d_model -> reader (circuit batch) pos d_model")

    def _into_heads(self, layer: Layer, number: int, activation: Tensor) -> Tensor:
        """Queries, keys or values; heads that read nothing from the circuit get those of the ablated stream."""
        receiver, base = RECEIVERS[number], self.ablated.streams[layer.at("hook_resid_pre")]
        weight, bias = self.reading.weight(layer.number, receiver), self.reading.bias(layer.number, receiver)
        own, stream = self._heads_read(layer, number)
        found = base.new_empty(len(weight), len(self.kept) * base[..., 0].numel(), weight.shape[2])
        if not own.all():
            alike = _through(layer.norm, base.flatten(0, 1).expand(int((~own).sum()), -1, -1), weight[~own])
            found[~own] = alike.repeat(1, len(self.kept), 1)
        if own.any():
            found[own] = _through(layer.norm, stream.flatten(1, 2), weight[own])
        found = found if bias is None else found + bias[:, None]
        shared = layer.block.n_heads // activation.shape[2]
        copies = [found[copy % shared :: shared] for copy in range(self.copies)]
        return rearrange(copies, "copy head (row pos) d_head -> (copy row) pos head d_head", pos=base.shape[1]).to(
            activation.dtype
        )

    def _heads_read(
        self, layer: Layer, number: int
    ) -> tuple[Bool[Tensor, " head"], Float[Tensor, "reader row pos d_model"]]:
        """Which heads read something from the circuit, and what; computed for queries, keys and values together."""
        graph = self.reading.graph
        columns, written = graph.head_destinations(layer.number), graph.head_sources(layer.number).start
        own = self.kept[:, :written, columns].any(1).any(0).view(len(RECEIVERS), -1)
        if layer.number not in self.read:
            self.read.clear()
            places = columns.start + own.flatten().nonzero()[:, 0]
            self.read[layer.number] = self._reads(layer.at("hook_resid_pre"), written, places)
        stream = self.read[layer.number]
        return own[number].to(stream.device), stream.split(own.sum(1).tolist())[number]

    def _heads_write(self, layer: Layer, z: Tensor) -> None:
        shared = layer.block.n_heads // (layer.block.n_kv_heads or layer.block.n_heads)
        copies = rearrange(z, "(copy row) pos head d_head -> copy row pos head d_head", copy=self.copies)
        own = torch.arange(layer.block.n_heads, device=z.device) % shared  # the copy that holds a head's key and value
        z = torch.stack([copies[int(copy), :, :, head] for head, copy in enumerate(own)], 2)
        heads = self.reading.graph.head_sources(layer.number)
        self._write(heads, self.reading.head_writes(layer.number, z), self.ablated.heads(layer))

    def _into_mlp(self, layer: Layer, activation: Tensor) -> Tensor:
        """The MLP's input on one copy: it is the same whichever head of a group a copy keeps."""
        place = self.reading.graph.head_destinations(layer.number).stop
        written = int(self.reading.graph.reads[place])
        stream = self._reads(layer.mid, written, torch.tensor([place], device=self.kept.device))[0]
        return (stream if layer.mlp_norm is None else layer.mlp_norm(stream)).to(activation.dtype)

    def _mlp_writes(self, layer: Layer, activation: Tensor) -> Tensor:
        place = self.reading.graph.head_sources(layer.number).stop
        self._write(slice(place, place + 1), activation[None], self.ablated.mlp(layer)[None])
        return activation.repeat(self.copies, 1, 1)

    def _write(
        self,
        sources: slice,
        writes: Float[Tensor, "source row pos d_model"],
        ablated: Float[Tensor, "source batch pos d_model"],
    ) -> None:
        own = rearrange(writes, "source (circuit batch) ... -> source circuit batch ...", circuit=len(self.kept))
        torch.sub(own.detach().to(self.changes), ablated.to(self.changes)[:, None], out=self.changes[sources])
        if own.requires_grad:
            self.traced.append((sources, own))

    def _into_logits(self, activation: Tensor) -> Tensor:
        last = torch.tensor([self.kept.shape[2] - 1], device=self.kept.device)
        stream = self._reads(self.reading.end, len(self.changes), last)[0]
        return stream.repeat(self.copies, 1, 1).to(activation.dtype)


def _through(
    norm: Norm | None, x: Float[Tensor, "reader row d_model"], weight: Float[Tensor, "reader d_model d_head"]
) -> Float[Tensor, "reader row d_head"]:
    return torch.bmm(x, weight) if norm is None else norm.into(x, weight)
