"""Runs for attribution: what every source writes, and the metric's gradient at what every destination reads.

1. The gradient is taken where only one destination reads: after W_Q, W_K and W_V for heads, after the norm for MLPs, at
   the last residual stream for the logits.
2. Formulas take it from there back to the residual stream (`norms`, `edge_products`), since all heads of a layer read
   the same numbers.
3. Where query heads share keys and values, each head's part of the gradient is separated by one backward pass, from the
   attention scores and the heads' outputs, for every head of a group.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparselens.analyses.engine.partial_runs import Activations, Hook, recording
from sparselens.analyses.engine.request import Request, Run
from sparselens.analyses.engine.residual_stream import Layer, Reading
from sparselens.circuits.graph import RECEIVERS


@dataclass(frozen=True, eq=False)
class Gradients(Run):
    """A run with its residual streams, queries, keys and values, and the metric's gradient."""

    at: Activations  # gradients by hook point; for keys and values, one for each query head


def written(request: Request, corrupted: bool = False) -> Run:
    """Run forward, and record the activations from which the sources' writes are computed."""
    return request.record([*request.reading.written_names(), *request.also], corrupted=corrupted)


def gradients(request: Request, corrupted: bool = False, edits: Sequence[Hook] = ()) -> Gradients:
    """Run forward and backward, for the gradient at everything that destinations read; `edits` act before recording.

    Raises:
        ValueError: the metric has no gradient.
    """
    reading = request.reading
    grouped = any(layer.block.n_kv_heads < layer.block.n_heads for layer in reading.layers)
    found, watched = _back(request, corrupted, edits, reading.recorded_names(), _read_at(reading, grouped), grouped)
    if grouped:
        for layer in reading.layers:
            _separate(layer, watched, found.at)
    return found


def gradients_at(request: Request, corrupted: bool, edits: Sequence[Hook], at: Sequence[str]) -> Gradients:
    """Run forward and backward, for the gradient at these hook points."""
    return _back(request, corrupted, edits, request.reading.written_names(), at, False)[0]


def _back(
    request: Request,
    corrupted: bool,
    edits: Sequence[Hook],
    recorded_names: Sequence[str],
    at: Sequence[str],
    retain_graph: bool,
) -> tuple[Gradients, Activations]:
    """One run, and the activations at which the gradient was taken."""
    reading, watched, recorded = request.reading, dict[str, Tensor](), dict[str, Tensor]()
    hooks = [
        *edits,
        (reading.layers[0].at("hook_resid_pre"), _start),
        *recording(recorded, [*recorded_names, *request.also]),
    ]
    hooks += [(name, partial(_watch, watched, name)) for name in at]
    with frozen(reading.model), torch.enable_grad():
        values = request.measure(hooks, corrupted)
        if not values.requires_grad:
            raise ValueError("the metric has no gradient: attribution needs one that changes smoothly with the logits")
        found = torch.autograd.grad(
            values.sum(), list(watched.values()), retain_graph=retain_graph, materialize_grads=True
        )
    recorded |= {name: activation.detach() for name, activation in watched.items()}
    return Gradients(values.detach(), recorded, dict(zip(watched, found, strict=True))), watched


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """Inside, no parameter requires a gradient, so none is stored."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _start(stream: Tensor) -> Tensor:
    """End the backward pass at this activation."""
    return stream.detach().requires_grad_()


def _watch(watched: Activations, name: str, activation: Tensor) -> Tensor:
    """Pass on a view, whose gradient is that of this destination alone."""
    watched[name] = activation.view_as(activation)
    return watched[name]


def _read_at(reading: Reading, grouped: bool) -> list[str]:
    names = [reading.end]
    for layer in reading.layers:
        names += [layer.at(f"attn.hook_{receiver}") for receiver in RECEIVERS] + [layer.mlp_in] * layer.block.mlp
        names += [layer.at("attn.hook_attn_scores"), layer.at("attn.hook_z")] * grouped
    return names


def _separate(layer: Layer, watched: Activations, at: Activations) -> None:
    """Replace the gradients of shared keys and values by one for each query head that uses them."""
    shared = layer.block.n_heads // layer.block.n_kv_heads
    for receiver, seen in (("k", "attn.hook_attn_scores"), ("v", "attn.hook_z")):
        name, outcome = layer.at(f"attn.hook_{receiver}"), layer.at(seen)
        heads = 1 if receiver == "k" else 2  # the axis of heads in the outcome
        parts = [
            torch.autograd.grad(
                watched[outcome],
                watched[name],
                _only_every(at[outcome], heads, first, shared),
                retain_graph=True,
                materialize_grads=True,
            )[0]
            for first in range(shared)
        ]
        at[name] = torch.stack(parts, 3).flatten(2, 3)


def _only_every(gradient: Tensor, axis: int, first: int, step: int) -> Tensor:
    """The gradient of every `step`-th head starting at `first`; zero elsewhere."""
    kept = torch.zeros_like(gradient)
    places = torch.arange(first, gradient.shape[axis], step, device=gradient.device)
    return kept.index_copy(axis, places, gradient.index_select(axis, places))
