"""Interventions that test a dependency cone: replace the states outside it, or cut its edges, with patterns held.

1. One run records the patterns. In the next, hooks put them back, so that nothing can change where the model attends.
2. Replacing states outside the cone must then leave the logits at its positions unchanged; cutting an edge inside may
   change them. The largest change of a logit is reported.
3. In a free-running intervention the patterns are not held.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparselens.analyses.attribution.attention_edges import PATTERN, AttentionEdges
from sparselens.analyses.circuits.cone_result import DependencyCone, OutsideEffect
from sparselens.analyses.engine.budget import BATCH_SIZE, Budget
from sparselens.analyses.engine.hidden_attention import hides_attention, refuse_hidden_attention
from sparselens.analyses.engine.partial_runs import Activations, Hook, recording, run
from sparselens.bars import progress_bar
from sparselens.gates.modes import evaluating
from sparselens.models.hooked_model import HookedModel
from sparselens.prompts.intervals import first_alike
from sparselens.prompts.metrics import logit_difference
from sparselens.prompts.tokenized import TokenizedPairs

SIGMAS = 30.0  # standard deviation of the noise, in standard deviations of the states


def outside_effect(
    model: HookedModel, cone: DependencyCone, other: Int[Tensor, "batch pos"]
) -> Float[Tensor, " batch"]:
    """The largest change of a logit at the cone's positions when every state outside it is taken from another prompt.

    Patterns are held, so the change is zero up to rounding: a check of the cone.

    >>> outside_effect(model, cone, pairs.corrupted).max()  # about 1e-6

    Args:
        other: token ids of the same shape as `cone.tokens`

    Raises:
        ValueError: the shapes differ, or the model's patterns cannot be held.
    """
    if other.shape != cone.tokens.shape:
        raise ValueError(f"other is {list(other.shape)}, the cone's tokens {list(cone.tokens.shape)}")
    module = _holdable(model)
    with evaluating(module), torch.no_grad():
        _, foreign = _recorded(module, other, _states_of(module))
        return _moved(module, cone, torch.arange(len(cone.tokens)), _mixing(foreign, torch.from_numpy(cone.states)))


def cut_effects(
    model: HookedModel,
    cone: DependencyCone,
    *,
    memory: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Float[Tensor, " edge"]:
    """The largest change of a logit at the cone's positions when one of its edges is cut, for each of `cone.edges`.

    All other patterns are held. Changes are absolute values, and so never negative.

    >>> cut_effects(model, cone).shape  # [edge], in the order of cone.edges

    Args:
        memory, batch_size: as in `attribute_edges`; rows of a run are edges

    Raises:
        ValueError: the model's patterns cannot be held, or the memory is too small.
    """
    module, found = _holdable(model), torch.zeros(len(cone.edges))
    if not len(found):
        return found

    def cut(edges: Tensor) -> Tensor:
        part = cone.edges.take(edges.numpy())
        return _moved(module, cone, torch.from_numpy(part.prompt), [], cut=part).float().cpu()

    budget = Budget(batch_size, memory)
    with evaluating(module), torch.no_grad(), progress_bar(len(found), "cuts", "edge", progress) as bar:
        (size,), _ = budget.sizes(module, cone.tokens.shape[1], lambda _: cut(torch.arange(1)))
        for edges in torch.arange(len(found)).split(size):
            found[edges] = cut(edges)
            bar.update(len(edges))
    return found


def noise_effect(model: HookedModel, cone: DependencyCone, pairs: TokenizedPairs | None) -> OutsideEffect:
    """What noise in every state outside the cone does, with the patterns held and free-running.

    Args:
        pairs: whose answers may survive; None: the likeliest tokens at the cone's positions
    """
    parts = [_noisy(model, cone, rows, pairs) for rows in torch.arange(len(cone.tokens)).split(BATCH_SIZE)]
    held, free, survives = (torch.cat(found) for found in zip(*parts, strict=True))
    clean_prompt = torch.from_numpy(first_alike([tuple(row) for row in cone.tokens.tolist()]))
    return OutsideEffect(held, free, survives, clean_prompt)


def _noisy(
    model: Any, cone: DependencyCone, rows: Tensor, pairs: TokenizedPairs | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The fields of `OutsideEffect` for some prompts."""
    tokens, generator = cone.tokens[rows], torch.Generator().manual_seed(0)
    inside = torch.from_numpy(cone.states[rows.numpy()])
    with evaluating(model), torch.no_grad():
        before, recorded = _recorded(model, tokens, _states_of(model))
        noisy = {
            name: x + SIGMAS * x.std() * torch.randn(x.shape, generator=generator).to(x) for name, x in recorded.items()
        }
        mixing = _mixing(noisy, inside)
        after = run(model, tokens, mixing)
        free = _change(cone, rows, after - before)
        held = torch.full_like(free, torch.nan) if hides_attention(model) else _moved(model, cone, rows, mixing)
    if pairs is not None:
        own = pairs[rows].to(before.device)
        survives = logit_difference(before, own).sign() == logit_difference(after, own).sign()
    else:
        chosen = torch.from_numpy(cone.positions)[rows].to(before.device)
        survives = ((before.argmax(-1) == after.argmax(-1)) | ~chosen).all(-1)
    return held.float().cpu(), free.float().cpu(), survives.cpu()


def _holdable(model: Any) -> Any:
    """The model; a ValueError if its patterns cannot be held."""
    refuse_hidden_attention(model, "they cannot be held", "use its sparse model")
    return model


def _states_of(model: Any) -> list[str]:
    """The hook points of a cone's states, layer by layer."""
    n_layers = model.cfg.n_layers
    return [*(f"blocks.{layer}.hook_resid_pre" for layer in range(n_layers)), f"blocks.{n_layers - 1}.hook_resid_post"]


def _moved(
    model: Any, cone: DependencyCone, prompts: Tensor, hooks: Sequence[Hook], cut: AttentionEdges | None = None
) -> Float[Tensor, " row"]:
    """The largest change of a logit at the cone's positions under hooks and cuts, one prompt per row; patterns held."""
    tokens = cone.tokens[prompts]
    names = [f"blocks.{layer}.{PATTERN}" for layer in range(model.cfg.n_layers)]
    before, patterns = _recorded(model, tokens, names)
    if cut is not None:
        for row, (layer, *edge) in enumerate(zip(cut.layer, cut.head, cut.query_pos, cut.key_pos, strict=True)):
            patterns[names[layer]][(row, *edge)] = 0
    held: list[Hook] = [(name, lambda _, name=name: patterns[name]) for name in names]
    return _change(cone, prompts, run(model, tokens, [*held, *hooks]) - before)


def _change(cone: DependencyCone, rows: Tensor, difference: Float[Tensor, "row pos d_vocab"]) -> Float[Tensor, " row"]:
    """The largest difference of a logit at the cone's positions."""
    chosen = torch.from_numpy(cone.positions).to(difference.device)[rows.to(difference.device)]
    return difference.abs().amax(-1).masked_fill(~chosen, 0).amax(-1)


def _recorded(model: Any, tokens: Tensor, names: Sequence[str]) -> tuple[Tensor, Activations]:
    """The logits of a run, and its activations at these hook points."""
    recorded: Activations = {}
    return run(model, tokens, recording(recorded, names)), recorded


def _mixing(foreign: Activations, inside: Bool[Tensor, "row state pos"]) -> list[Hook]:
    """Hooks that keep the states inside a cone and replace those outside by foreign ones, layer by layer."""

    def mix(number: int, other: Tensor, own: Tensor) -> Tensor:
        return torch.where(inside[:, number].to(own.device)[..., None], own, other)

    return [(name, partial(mix, number, other)) for number, (name, other) in enumerate(foreign.items())]
