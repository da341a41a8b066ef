"""Exact edge patching: the model runs with one edge at a time carrying its source's write from the corrupted run.

1. score(u -> v) = metric(clean) - metric(clean, but v reads x - (clean - corrupted write of u) instead of x).
2. Many edges into one layer run at once, as rows of a batch that starts at that layer from the clean residual stream.
3. Attribution patching approximates this (activation patching of edges, Hanna et al. 2024; path patching along one
   direct path, Wang et al. 2022).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
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
    """Exact scores of the named edges (default: all); the others are NaN, and never chosen for a circuit.

    >>> patch_edges(model, pairs, edges=["a0.h1->m0"]).interval("a0.h1->m0")

    Sign convention: positive where corrupting the edge lowers the metric, in the metric's unit.

    Scope: one edge at a time, while all others stay clean. Edges that back each other up each score low.

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
    """As `patch_edges`, for an open request."""
    request = request.sharing()
    reading, n, any_edge = request.reading, len(request), torch.zeros(1, 2, dtype=torch.long)
    exists, chosen = reading.graph.exists, _chosen(reading, edges)
    scores, metrics = torch.zeros(n, *exists.shape), torch.zeros(2, n)
    log = batch_log(out, request, method="exact", edges=chosen)
    with progress_bar(int(chosen.sum()) * n, "exact", "edge", request.progress) as bar:
        for batch, at_once in mine(batches(request, lambda base: patched(base, any_edge))):
            base, corrupted = clean_base(batch)
            metrics[:, batch.prompts] = torch.stack([base.clean.metric, corrupted]).float().cpu()
            for some in _runs(base, chosen, max(1, at_once // len(batch))):
                where = [batch.prompts, some]
                (values,) = log.once(where, lambda: (base.clean.metric - patched(base, some),))  # noqa: B023
                scores[batch.prompts[:, None], some[:, 0], some[:, 1]] = values.T.float().cpu()
                bar.update(values.numel())
    scores, metrics = summed(scores).masked_fill_(exists & ~chosen, torch.nan), summed(metrics)
    clean_prompt = request.pairs.clean_prompt
    return EdgeScores(reading.graph, "exact", scores.mean(0), scores, metrics[0], metrics[1], clean_prompt=clean_prompt)


@dataclass(frozen=True, eq=False)
class Base:
    """The clean run of some prompts, from which every patch starts, and the writes that patches replace."""

    batch: Request
    clean: Run  # with its residual streams
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
            f"edges of shape {list(edges.shape)} are not all among this model's, of shape {list(graph.exists.shape)}: "
            "are they another model's?"
        )
    return edges.cpu()


def batches(request: Request, one_row: Callable[[Base], Tensor]) -> Iterator[tuple[Request, int]]:
    """Batches of prompts, and how many patched rows (a patch on a prompt) run at once.

    Args:
        one_row: makes a patched run of one row; it and the clean run get half of the memory each
    """
    one = request.batch(longest(request))
    (n_prompts, at_once), _ = one.sizes(lambda _: clean_base(one)[0], one_row)
    for rows in request.pairs.rows(min(at_once, n_prompts)):
        yield request.batch(rows), at_once


def clean_base(batch: Request) -> tuple[Base, Float[Tensor, " batch"]]:
    """The clean run, and the metric of the corrupted run."""
    reading = batch.reading
    with keeping_projections(batch.model) as projections:
        clean = batch.record([*reading.recorded_names(), reading.end])
    corrupted = written(batch, corrupted=True)
    return Base(batch, clean, projections, differences(reading, clean.recorded, corrupted.recorded)), corrupted.metric


def _runs(base: Base, chosen: Bool[Tensor, "source destination"], size: int) -> Iterator[Edges]:
    """Groups of edges that run at once: into the heads of one layer, into one MLP, or into the logits.

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


def patched(base: Base, edges: Edges, rows: Int[Tensor, " edge"] | None = None) -> Float[Tensor, "row batch"]:
    """The metric with each edge patched; or, if `rows` gives the row of each edge, with all edges of a row patched.

    Without `rows`, the edges go into the heads of one layer, one MLP, or the logits. With `rows`, the edges of a row
    have different destinations, and each destination reads what it would if only its own edge were patched.
    """
    reading, rows = base.batch.reading, torch.arange(len(edges)) if rows is None else rows
    graph, count, n_layers = reading.graph, int(rows.max()) + 1, len(reading.layers)
    layers = [n_layers if name == "logits" else int(name[1:].partition(".")[0]) for name in graph.destinations]
    start, last_mlp = min(layers[number] for number in edges[:, 1]), -1
    if start == n_layers:
        residual, hooks = _without(base, base.clean.recorded[reading.end], edges), list[Hook]()
    else:
        residual = base.clean.recorded[reading.layers[start].at("hook_resid_pre")].expand(count, -1, -1, -1)
        hooks = [hook for layer in reading.layers[start:] for hook in _into_layer(base, layer, edges, rows)]
        last_mlp = len(graph.destinations) - 2 if reading.layers[-1].block.mlp else -1
    residual = residual.to(base.clean.recorded[reading.end].dtype).flatten(0, 1)
    prompts = torch.arange(len(base.batch)).repeat(count)
    projections = base.projections[start] if start < n_layers else {}
    with starting_at(reading.model, start, residual, base.batch.opened.as_tuple), holding(projections, prompts):
        trim_mlp = not bool((edges[:, 1] == last_mlp).any())
        return base.batch.repeated(count).measure(hooks, trim_mlp=trim_mlp).unflatten(0, (count, -1))


def _into_layer(base: Base, layer: Layer, edges: Edges, rows: Int[Tensor, " edge"]) -> list[Hook]:
    """Replace what the edges' destinations in this layer read."""
    columns = base.batch.reading.graph.head_destinations(layer.number)
    heads = (columns.start <= edges[:, 1]) & (edges[:, 1] < columns.stop)
    mlp = (edges[:, 1] == columns.stop) & layer.block.mlp
    hooks = _into_heads(base, layer, edges[heads], rows[heads], int(rows.max()) + 1) if heads.any() else []
    return hooks + (_into_mlp(base, layer, edges[mlp], rows[mlp]) if mlp.any() else [])


def _without(base: Base, stream: Float[Tensor, "*edge batch pos d_model"], edges: Edges) -> Tensor:
    """The residual stream with each edge's source writing as in the corrupted run."""
    return stream - base.writes[edges[:, 0].to(base.writes.device)].to(stream.device)


def _into_mlp(base: Base, layer: Layer, edges: Edges, rows: Int[Tensor, " edge"]) -> list[Hook]:
    stream = _without(base, base.clean.recorded[layer.mid], edges)
    read = stream if layer.mlp_norm is None else layer.mlp_norm(stream)
    return [(layer.mlp_in, partial(_put, (rows,), read))]


def _into_heads(base: Base, layer: Layer, edges: Edges, rows: Int[Tensor, " edge"], count: int) -> list[Hook]:
    """Replace the query, key or value of a head for each edge, in its row."""
    reading, block = base.batch.reading, layer.block
    stream = _without(base, base.clean.recorded[layer.at("hook_resid_pre")], edges)
    normed = stream if layer.norm is None else layer.norm(stream)
    places = edges[:, 1] - reading.graph.head_destinations(layer.number).start
    receivers, heads = places // block.n_heads, places % block.n_heads
    hooks: list[Hook] = []
    for number, receiver in enumerate(RECEIVERS):
        some = (receivers == number).nonzero()[:, 0]
        if len(some):
            values = _project(reading, layer, receiver, normed[some.to(normed.device)], heads[some])
            slots = heads[some] if receiver == "q" else heads[some] * block.n_kv_heads // block.n_heads
            where = (rows[some], slice(None), slice(None), slots)
            hooks.append((layer.at(f"attn.hook_{receiver}"), partial(_put, where, values)))
    if block.n_kv_heads < block.n_heads:
        clean, shared = base.clean.recorded[layer.at("attn.hook_z")], block.n_heads // block.n_kv_heads
        alone, every = receivers[:, None] == 0, torch.arange(block.n_heads)
        own = torch.where(alone, every == heads[:, None], every % shared == heads[:, None] % shared)
        sees, keyed = (torch.zeros(count, x.shape[1]).index_add(0, rows, x.float()) > 0 for x in (own, ~alone))
        hooks.append((layer.at("attn.hook_z"), partial(_only_heads, sees | ~keyed, clean)))
    return hooks


def _project(
    reading: Reading, layer: Layer, receiver: str, normed: Float[Tensor, "edge batch pos d_model"], heads: Tensor
) -> Float[Tensor, "edge batch pos d_head"]:
    """Query, key or value of one head in each row."""
    weight, bias = reading.weight(layer.number, receiver), reading.bias(layer.number, receiver)
    heads = heads.to(weight.device)
    found = torch.bmm(rearrange(normed, "edge batch pos d_model -> edge (batch pos) d_model"), weight[heads])
    found = found if bias is None else found + bias[heads][:, None]
    return rearrange(found, "edge (batch pos) d_head -> edge batch pos d_head", batch=normed.shape[1])


def _put(where: tuple[Any, ...], values: Float[Tensor, "edge batch pos *rest"], activation: Tensor) -> Tensor:
    changed = rearrange(activation, "(row batch) ... -> row batch ...", batch=values.shape[1]).clone()
    changed[where] = values.to(changed)
    return rearrange(changed, "row batch ... -> (row batch) ...")


def _only_heads(sees: Bool[Tensor, "edge head"], clean: Tensor, activation: Tensor) -> Tensor:
    """The heads' outputs of the clean run, except for heads that use the patched key or value.

    One head of every group does, since a norm over the keys may couple the groups (OLMo 2).
    """
    found = rearrange(activation, "(row batch) pos head d_head -> row batch pos head d_head", row=len(sees))
    found = torch.where(sees.to(clean.device)[:, None, None, :, None], found, clean)
    return rearrange(found, "row batch pos head d_head -> (row batch) pos head d_head")
