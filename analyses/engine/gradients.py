"""Runs that show what attribution needs: what every source writes, and the metric's gradient wherever something reads.

The gradient is taken where each destination alone reads: after W_Q, W_K, W_V for the heads, behind the norm for MLPs,
at the last residual stream for the logits. How it gets from there to the residual stream is a formula (`norms`,
`edge_products`), since all heads of a layer read the same numbers. Where query heads share keys and values, what
reaches them through each head is told apart by going back from the scores and the heads' outputs once for every head of
a group.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselens.analyses.engine.partial_runs import only_at
from sparselens.analyses.engine.residual_stream import Activations, Hook, Layer, Reading, keep
from sparselens.circuits.graph import RECEIVERS
from sparselens.prompts.metrics import METRICS, Metric
from sparselens.prompts.tokenized import TokenizedPairs

PerPrompt = Float[Tensor, " batch"]


@dataclass(frozen=True, eq=False)
class Question:
    """A model, what is asked of its logits, and some prompts of one length."""

    reading: Reading
    metric: Metric
    prompts: Int[Tensor, " batch"]  # their numbers, for messages
    pairs: TokenizedPairs
    also: tuple[str, ...] = ()  # hook points to record in every run, beside what sources write


@dataclass(frozen=True, eq=False)
class Run:
    """The metric of a run, and what was recorded in it: the activations that tell what every source writes."""

    metric: PerPrompt
    recorded: Activations


@dataclass(frozen=True, eq=False)
class Gradients(Run):
    """A run of which residual streams, queries, keys and values were recorded, too, and the metric's gradient."""

    at: Activations  # gradients; those of keys and values once for every query head


def ask(question: Question, hooks: Sequence[Hook] = (), corrupted: bool = False, trim_mlp: bool = False) -> PerPrompt:
    """The metric of a run under hooks.

    The metrics of `sl.metrics` read the answer's position alone, so no other logits are made for them: they are
    shown these at every position. A metric of your own gets all logits.

    Args:
        trim_mlp: let the last MLP, too, see the answer's position alone. Not while it is recorded or edited.

    Raises:
        ValueError: the metric does not give one finite number a prompt.
    """
    reading, pairs = question.reading, question.pairs
    tokens = pairs.corrupted if corrupted else pairs.clean
    if question.metric in METRICS.values():
        with only_at(reading.model, pairs.end, tokens.shape[1], trim_mlp):
            logits = reading.run(tokens, hooks).expand(-1, tokens.shape[1], -1)
    else:
        logits = reading.run(tokens, hooks)
    values = question.metric(logits, pairs)
    if values.shape != question.prompts.shape:
        raise ValueError(
            f"the metric gave shape {list(values.shape)} for {len(pairs)} prompts: want one value for each prompt"
        )
    refuse_unless_finite("the metric", values, question.prompts)
    return values


def repeated(question: Question, count: int) -> Question:
    """The same prompts `count` times over."""
    rows = torch.arange(len(question.pairs)).repeat(count)
    return replace(question, prompts=question.prompts[rows], pairs=question.pairs[rows])


def refuse_unless_finite(what: str, values: Float[Tensor, "batch *axes"], prompts: Int[Tensor, " batch"]) -> None:
    """Raise a ValueError that names the first prompt with a value that is not finite."""
    bad = (~values.isfinite()).flatten(1).any(1) if values.ndim > 1 else ~values.isfinite()
    if bad.any():
        raise ValueError(f"{what} of prompt {int(prompts[int(bad.nonzero()[0])])} is not finite")


def written(question: Question, corrupted: bool = False) -> Run:
    """Run forward, and record what tells what every source writes."""
    recorded: Activations = {}
    with torch.no_grad():
        return Run(
            ask(question, keep(recorded, [*question.reading.written_names(), *question.also]), corrupted), recorded
        )


def gradients(question: Question, corrupted: bool = False, edits: Sequence[Hook] = ()) -> Gradients:
    """Run forward and back, for the gradient at all that destinations read. `edits` act before anything is recorded.

    Raises:
        ValueError: the metric has no gradient.
    """
    reading = question.reading
    grouped = any(layer.block.n_kv_heads < layer.block.n_heads for layer in reading.layers)
    found, watched = _back(question, corrupted, edits, reading.recorded_names(), _read_at(reading, grouped), grouped)
    if grouped:
        for layer in reading.layers:
            _tell_apart(layer, watched, found.at)
    return found


def gradients_at(question: Question, corrupted: bool, edits: Sequence[Hook], at: Sequence[str]) -> Gradients:
    """Run forward and back, for the gradient at these hook points."""
    return _back(question, corrupted, edits, question.reading.written_names(), at, False)[0]


def _back(
    question: Question,
    corrupted: bool,
    edits: Sequence[Hook],
    recorded_names: Sequence[str],
    at: Sequence[str],
    again: bool,
) -> tuple[Gradients, Activations]:
    """One run, and the activations at which the gradient was taken, fit to go back from `again`."""
    reading, watched, recorded = question.reading, dict[str, Tensor](), dict[str, Tensor]()
    hooks = [
        *edits,
        (reading.layers[0].at("hook_resid_pre"), _start),
        *keep(recorded, [*recorded_names, *question.also]),
    ]
    hooks += [(name, partial(_watch, watched, name)) for name in at]
    with frozen(reading.model), torch.enable_grad():
        values = ask(question, hooks, corrupted)
        if not values.requires_grad:
            raise ValueError("the metric has no gradient: attribution needs one that changes smoothly with the logits")
        found = torch.autograd.grad(values.sum(), list(watched.values()), retain_graph=again, materialize_grads=True)
    recorded |= {name: activation.detach() for name, activation in watched.items()}
    return Gradients(values.detach(), recorded, dict(zip(watched, found, strict=True))), watched


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """Inside, no parameter asks for a gradient, so that nothing is kept for one."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def _start(stream: Tensor) -> Tensor:
    """The gradient goes back to here."""
    return stream.detach().requires_grad_()


def _watch(watched: Activations, name: str, activation: Tensor) -> Tensor:
    """Hand on a view of its own, so that the gradient there is that of this reader alone."""
    watched[name] = activation.view_as(activation)
    return watched[name]


def _read_at(reading: Reading, grouped: bool) -> list[str]:
    names = [reading.end]
    for layer in reading.layers:
        names += [layer.at(f"attn.hook_{receiver}") for receiver in RECEIVERS] + [layer.mlp_in] * layer.block.mlp
        names += [layer.at("attn.hook_attn_scores"), layer.at("attn.hook_z")] * grouped
    return names


def _tell_apart(layer: Layer, watched: Activations, at: Activations) -> None:
    """Replace the gradients of shared keys and values by one for every query head that sees them."""
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
    """The gradient of every `step`-th head from `first` on; zero elsewhere."""
    kept = torch.zeros_like(gradient)
    places = torch.arange(first, gradient.shape[axis], step, device=gradient.device)
    return kept.index_copy(axis, places, gradient.index_select(axis, places))
