"""Runs with attention patterns held: how much logits change when states are replaced or attention edges are cut.

1. One run records the patterns. In the next, hooks put them back, so that nothing can change where the model attends.
2. A state is the residual stream at one position before one block, or at the end. Hooks replace some of them.
3. The change is the largest one of a logit at the chosen positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparselens.analyses.attribution.attention_edges import PATTERN, AttentionEdges
from sparselens.analyses.engine.budget import BATCH_SIZE
from sparselens.analyses.engine.hidden_attention import hides_attention
from sparselens.analyses.engine.partial_runs import Activations, Hook, recording, run
from sparselens.gates.modes import evaluating
from sparselens.prompts.intervals import Interval, first_alike, proportion_interval
from sparselens.prompts.metrics import logit_difference
from sparselens.prompts.tokenized import TokenizedPairs

SIGMAS = 30.0  # standard deviation of the noise, in standard deviations of the states

Tokens = Int[Tensor, "batch pos"]
States = Bool[Tensor, "batch state pos"]


@dataclass(frozen=True, eq=False)
class OutsideEffect:
    """What strong noise in every state outside a cone does to the logits at the cone's positions."""

    held: Float[Tensor, " batch"]  # largest change of a logit with the patterns held; NaN if they cannot be held
    free_running: Float[Tensor, " batch"]  # the same in a fresh run, whose patterns and gates follow the noise
    # whether the logit difference keeps its sign in the fresh run (for token ids: whether the top tokens stay the same)
    survives: Bool[Tensor, " batch"]
    clean_prompt: Int[Tensor, " batch"] | None = None  # its index; pairs with the same one count as one observation

    @property
    def surviving(self) -> Interval:
        """Share of prompts whose answer survives in the fresh run, with Wilson's interval by clean prompt."""
        return proportion_interval(self.survives, clusters=self.clean_prompt)

    def __repr__(self) -> str:
        moved, share = float(self.free_running.mean()), self.surviving
        return (
            f"OutsideEffect(patterns held: logits move by at most {float(self.held.max()):.2g}; free-running: by "
            f"{moved:.2g} on average, and {share.mean:.0%} [{share.low:.0%}, {share.high:.0%}] of answers survive)"
        )


def noise_effect(
    model: Any, tokens: Tokens, positions: Bool[Tensor, "batch pos"], inside: States, pairs: TokenizedPairs | None
) -> OutsideEffect:
    """What noise in every state that is not `inside` does, with the patterns held and free-running.

    Args:
        pairs: whose answers may survive; None: the likeliest tokens at the positions
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    with evaluating(model), torch.no_grad():
        for rows in torch.arange(len(tokens)).split(BATCH_SIZE):
            own = None if pairs is None else pairs[rows]
            parts.append(_noisy(model, tokens[rows], positions[rows], inside[rows], own))
    held, free, survives = (torch.cat(values).cpu() for values in zip(*parts, strict=True))
    clean_prompt = torch.from_numpy(first_alike([tuple(row) for row in tokens.tolist()]))
    return OutsideEffect(held.float(), free.float(), survives, clean_prompt)


def _noisy(
    model: Any, tokens: Tokens, positions: Bool[Tensor, "batch pos"], inside: States, pairs: TokenizedPairs | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The first three fields of `OutsideEffect` for some prompts."""
    generator = torch.Generator().manual_seed(0)
    before, states = _recorded(model, tokens, _state_names(model))
    noisy = {name: x + SIGMAS * x.std() * torch.randn(x.shape, generator=generator).to(x) for name, x in states.items()}
    hooks = _replacing_outside(inside, noisy)
    after = run(model, tokens, hooks)
    free = _largest_change(after - before, positions)
    held = torch.full_like(free, torch.nan) if hides_attention(model) else held_change(model, tokens, positions, hooks)
    if pairs is not None:
        pairs = pairs.to(before.device)
        return held, free, logit_difference(before, pairs).sign() == logit_difference(after, pairs).sign()
    same = before.argmax(-1) == after.argmax(-1)
    return held, free, (same | ~positions.to(same.device)).all(-1)


def held_change(
    model: Any,
    tokens: Tokens,
    positions: Bool[Tensor, "batch pos"],
    hooks: Sequence[Hook] = (),
    cut: AttentionEdges | None = None,
) -> Float[Tensor, " batch"]:
    """The largest change of a logit at the positions under hooks, with patterns held and one edge per row cut."""
    names = [f"blocks.{layer}.{PATTERN}" for layer in range(model.cfg.n_layers)]
    before, patterns = _recorded(model, tokens, names)
    if cut is not None:
        for row, (layer, *edge) in enumerate(zip(cut.layer, cut.head, cut.query_pos, cut.key_pos, strict=True)):
            patterns[names[layer]][(row, *edge)] = 0
    held: list[Hook] = [(name, lambda _, name=name: patterns[name]) for name in names]
    return _largest_change(run(model, tokens, [*held, *hooks]) - before, positions)


def states_from(model: Any, other: Tokens, inside: States) -> list[Hook]:
    """Hooks that take the states that are not `inside` from a run on other tokens."""
    return _replacing_outside(inside, _recorded(model, other, _state_names(model))[1])


def _replacing_outside(inside: States, others: Activations) -> list[Hook]:
    def mix(number: int, other: Tensor, own: Tensor) -> Tensor:
        return torch.where(inside[:, number].to(own.device)[..., None], own, other)

    return [(name, partial(mix, number, other)) for number, (name, other) in enumerate(others.items())]


def _state_names(model: Any) -> list[str]:
    """The hook points of the states, layer by layer."""
    n_layers = model.cfg.n_layers
    return [*(f"blocks.{layer}.hook_resid_pre" for layer in range(n_layers)), f"blocks.{n_layers - 1}.hook_resid_post"]


def _recorded(model: Any, tokens: Tokens, names: Sequence[str]) -> tuple[Tensor, Activations]:
    """The logits of a run, and its activations at these hook points."""
    recorded: Activations = {}
    return run(model, tokens, recording(recorded, names)), recorded


def _largest_change(difference: Float[Tensor, "batch pos d_vocab"], positions: Tensor) -> Float[Tensor, " batch"]:
    return difference.abs().amax(-1).masked_fill(~positions.to(difference.device), 0).amax(-1)
