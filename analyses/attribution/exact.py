"""Exact edge patching: the model runs on with one edge at a time carrying its source's write from the corrupted run.

1. score(u -> v) = metric(clean) - metric(clean, but v reads x - (clean - corrupted write of u) instead of x).
2. Many edges into one layer run at once, as rows of a batch that starts at that layer from the clean residual stream.
3. Attribution patching approximates this (activation patching of edges, Hanna et al. 2024; path patching along one
   direct path, Wang et al. 2022).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.engine.batching import longest
from sparselens.analyses.engine.edge_products import Writes, differences
from sparselens.analyses.engine.gradients import written
from sparselens.analyses.engine.partial_runs import Hook, Projections, holding, keeping_projections, starting_at
from sparselens.analyses.engine.processes import mine, summed
from sparselens.analyses.engine.request import Request, Run, open_request
from sparselens.analyses.engine.residual_stream import Layer, Reading
from sparselens.analyses.engine.resume import batch_log
from sparselens.bars import progress_bar
from sparselens.circuits.graph import RECEIVERS
from sparselens.models.hooked_model import HookedModel
from sparselens.prompts.metrics import Metric, logit_difference
from sparselens.prompts.tokenized import TokenizedPairs

Edges = Int[Tensor, "edge 2"]  # source, destination


def patch_edges(
    model: HookedModel,
    pairs: TokenizedPairs,
    metric: Metric | str = logit_difference,
    edges: Sequence[str] | Bool[Tensor, "source destination"] | None = None,
    *,
    memory: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
    out: str | Path | None = None,
) -> EdgeScores:
    """Exact scores of the named edges (default: all); the others score NaN.

    >>> patch_edges(model, pairs, edges=["a0.h1->m0"]).interval("a0.h1->m0")

    Sign convention: positive where corrupting the edge lowers the metric, in the metric's unit.

    Scope: one edge at a time while all others stay clean; edges that back each other up each score low.

    Args:
        memory, batch_size, out: as in `attribute_edges`; rows of a run are edges times prompts

    Raises:
        ValueError: there is no such edge, prompts of a pair differ in length, the metric is not one finite number per
            prompt, the memory is too small, the model's residual stream cannot be read, or `out` belongs to another
            call.
    """
    with open_request(model, pairs, metric, memory=memory, batch_size=batch_size, progress=progress) as request:
        return exact_scores(request, edges, out)


def exact_scores(
    request: Request, edges: Sequence[str] | Bool[Tensor, "source destination"] | None, out: str | Path | None
) -> EdgeScores:
    """As `patch_edges`, of an open request."""
    reading, n = request.reading, len(request)
    exists, chosen = reading.graph.exists, _chosen(reading, edges)
    scores, metrics = torch.zeros(n, *exists.shape), torch.zeros(2, n)
    log = batch_log(out, request, method="exact", edges=chosen)
    with progress_bar(int(chosen.sum()) * n, "exact", "edge", request.progress) as bar:
        for batch, rows in mine(_batches(request)):
            base, corrupted = _base(batch)
            metrics[:, batch.prompts] = torch.stack([base.clean.metric, corrupted]).float().cpu()
            for some in _runs(base, chosen, max(1, rows // len(batch))):
                where = [batch.prompts, some]
                (values,) = log.once(where, lambda: (base.clean.metric - _patched(base, some),))  # noqa: B023
                scores[batch.prompts[:, None], some[:, 0], some[:, 1]] = values.T.float().cpu()
                bar.update(values.numel())
    scores, metrics = summed(scores).masked_fill_(exists & ~chosen, torch.nan), summed(metrics)
    return EdgeScores(reading.graph, "exact", scores.mean(0), scores, metrics[0], metrics[1])


@dataclass(frozen=True, eq=False)
class _Base:
    """The clean run of some prompts, from which every patch starts, and the writes that patches replace."""

    batch: Request
    clean: Run  # residual streams recorded, too
    projections: Sequence[Projections]  # of the clean run, by layer
    writes: Writes  # clean - corrupted


def _chosen(
    reading: Reading, edges: Sequence[str] | Bool[Tensor, "source destination"] | None
) -> Bool[Tensor, "source destination"]:
    graph = reading.graph
    if edges is None:
        return graph.exists
    if not isinstance(edges, Tensor):
        return graph.matrix(edges)
    if edges.shape != graph.exists.shape or bool((edges.cpu() & ~graph.exists).any()):
        raise ValueError(
            f"edges {list(edges.shape)} are not among those of this model {list(graph.exists.shape)}: another model's?"
        )
    return edges.cpu()


def _batches(request: Request) -> Iterator[tuple[Request, int]]:
    """Prompts in batches, and how many rows (an edge on a prompt) run at once. Each step gets half of the memory."""
    one, any_edge = request.batch(longest(request.pairs)), torch.zeros(1, 2, dtype=torch.long)
    (n_prompts, rows), _ = one.sizes(lambda _: _base(one)[0], lambda base: _patched(base, any_edge))
    for some in request.pairs.rows(min(rows, n_prompts)):
        yield request.batch(some), rows


def _base(batch: Request) -> tuple[_Base, Float[Tensor, " batch"]]:
    """The clean run, and the metric of the corrupted one."""
    reading = batch.reading
    with keeping_projections(batch.model) as projections:
        clean = batch.record([*reading.recorded_names(), reading.end])
    corrupted = written(batch, corrupted=True)
    return _Base(batch, clean, projections, differences(reading, clean.recorded, corrupted.recorded)), corrupted.metric


def _runs(base: _Base, chosen: Bool[Tensor, "source destination"], size: int) -> Iterator[Edges]:
    """Edges that run at once: into the heads of one layer, into one MLP, or into the logits.

    Edges of sources that write the same in both runs are left out: they score zero.
    """
    graph = base.batch.reading.graph
    differs = base.writes.flatten(1).any(1).cpu()
    bounds = [0]
    for layer, block in enumerate(graph.blocks):
        end = graph.head_destinations(layer).stop
        bounds += [end, end + 1] if block.mlp else [end]
    for start, end in zip(bounds, [*bounds[1:], len(graph.destinations)], strict=True):
        edges = (chosen[:, start:end] & differs[:, None]).nonzero() + torch.tensor([0, start])
        yield from edges.split(size) if len(edges) else ()


def _patched(base: _Base, edges: Edges) -> Float[Tensor, "edge batch"]:
    """The metric with each edge patched. All go into one layer's heads, one MLP, or the logits."""
    reading, count = base.batch.reading, len(edges)
    name = reading.graph.destinations[int(edges[0, 1])]
    if name == "logits":
        start, stream, hooks = len(reading.layers), reading.end, []
    else:
        start = int(name[1:].partition(".")[0])
        layer = reading.layers[start]
        stream = layer.at("hook_resid_pre")
        hooks = _into_mlp(base, layer, edges) if name.startswith("m") else _into_heads(base, layer, edges)
    residual = base.clean.recorded[stream].expand(count, -1, -1, -1)
    if name == "logits":
        residual = _without(base, residual, edges).to(residual.dtype)
    rows = torch.arange(len(base.batch)).repeat(count)
    projections = base.projections[start] if start < len(reading.layers) else {}
    residual, as_tuple = residual.flatten(0, 1), base.batch.opened.as_tuple
    with starting_at(reading.model, start, residual, as_tuple), holding(projections, rows):
        into_last_mlp = start == len(reading.layers) - 1 and name.startswith("m")
        return base.batch.repeated(count).measure(hooks, trim_mlp=not into_last_mlp).unflatten(0, (count, -1))


def _without(base: _Base, stream: Float[Tensor, "*edge batch pos d_model"], edges: Edges) -> Tensor:
    """The residual stream with the edges' sources as in the corrupted run."""
    return stream - base.writes[edges[:, 0].to(base.writes.device)].to(stream.device)


def _into_mlp(base: _Base, layer: Layer, edges: Edges) -> list[Hook]:
    stream = _without(base, base.clean.recorded[layer.mid], edges)
    read = (stream if layer.mlp_norm is None else layer.mlp_norm(stream)).flatten(0, 1)
    return [(layer.mlp_in, lambda activation: read.to(activation.dtype))]


def _into_heads(base: _Base, layer: Layer, edges: Edges) -> list[Hook]:
    """Replace the query, key or value of one head in each row."""
    reading, block = base.batch.reading, layer.block
    stream = _without(base, base.clean.recorded[layer.at("hook_resid_pre")], edges)
    normed = stream if layer.norm is None else layer.norm(stream)
    places = edges[:, 1] - reading.graph.head_destinations(layer.number).start
    receivers, heads = places // block.n_heads, places % block.n_heads
    hooks: list[Hook] = []
    for number, receiver in enumerate(RECEIVERS):
        rows = (receivers == number).nonzero()[:, 0]
        if len(rows):
            values = _project(reading, layer, receiver, normed[rows.to(normed.device)], heads[rows])
            slots = heads[rows] if receiver == "q" else heads[rows] * block.n_kv_heads // block.n_heads
            hooks.append((layer.at(f"attn.hook_{receiver}"), partial(_put, rows, slots, values)))
    if block.n_kv_heads < block.n_heads:
        clean, shared = base.clean.recorded[layer.at("attn.hook_z")], block.n_heads // block.n_kv_heads
        sees = (torch.arange(block.n_heads) % shared == heads[:, None] % shared) | (receivers[:, None] == 0)
        hooks.append((layer.at("attn.hook_z"), partial(_only_heads, sees, clean)))
    return hooks


def _project(
    reading: Reading, layer: Layer, receiver: str, normed: Float[Tensor, "edge batch pos d_model"], heads: Tensor
) -> Float[Tensor, "edge batch pos d_head"]:
    """Query, key or value of one head in each row."""
    weight, bias = reading.weight(layer.number, receiver), reading.bias(layer.number, receiver)
    heads = heads.to(weight.device)
    found = torch.bmm(normed.flatten(1, 2), weight[heads])
    return (found if bias is None else found + bias[heads][:, None]).unflatten(1, normed.shape[1:3])


def _put(rows: Tensor, slots: Tensor, values: Tensor, activation: Tensor) -> Tensor:
    changed = activation.unflatten(0, (-1, values.shape[1])).clone()
    changed[rows.to(changed.device), :, :, slots.to(changed.device)] = values.to(changed.dtype)
    return changed.flatten(0, 1)


def _only_heads(sees: Bool[Tensor, "edge head"], clean: Tensor, activation: Tensor) -> Tensor:
    """The heads' outputs of the clean run, except for heads that use the patched key or value.

    One of every group does, since a norm over the keys may couple the groups (OLMo 2).
    """
    found = activation.unflatten(0, (len(sees), -1))
    return torch.where(sees.to(clean.device)[:, None, None, :, None], found, clean).flatten(0, 1)
