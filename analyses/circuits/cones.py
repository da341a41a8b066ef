"""What an answer can depend on through open gates: the states and attention edges in its past, with patterns held.

1. (layer + 1, pos) depends on (layer, pos), and on (layer, key) for every open edge (layer, head, pos, key).
2. Follow this back from the answer's position at the last layer. A state is the residual stream at one position before
   one block; the last layer's is the input of the unembedding.
3. Patterns are taken as given: while they are held, nothing outside the cone moves the logits. In a fresh run they
   depend on more: softmax weights are normalised over closed positions too, and gates depend on query and key states.
   So the cone says through which states values flow to the answer, not what made the model attend there;
   `DependencyCone.outside` says how much that leaves out, by strong noise in every state outside.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparselens.analyses.attribution.attention_edges import PATTERN, AttentionEdges, attention_edges
from sparselens.analyses.engine.budget import BATCH_SIZE, Budget
from sparselens.analyses.engine.partial_runs import Activations, Hook, recording, run
from sparselens.analyses.engine.renamed import renamed_argument, warn
from sparselens.analyses.patching.patch_sites import SITES, shows_only_copies
from sparselens.bars import progress_bar
from sparselens.gates.modes import evaluating
from sparselens.models.hooked_model import HookedModel
from sparselens.prompts.checks import refuse_other_pairs
from sparselens.prompts.intervals import Interval, first_alike, proportion_interval
from sparselens.prompts.metrics import logit_difference
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.results import Result

SIGMAS = 30.0  # standard deviations of the noise, in those of the states


@dataclass(frozen=True, eq=False)
class OutsideEffect:
    """What strong noise in every state outside a cone does to the logits at the cone's positions."""

    held: Float[Tensor, " batch"]  # largest change of a logit with the patterns held; NaN where they cannot be
    free_running: Float[Tensor, " batch"]  # the same in a fresh run, whose patterns and gates follow the noise
    # in the fresh run the logit difference keeps its sign (token ids: the top tokens stay)
    survives: Bool[Tensor, " batch"]
    clean_prompt: Int[Tensor, " batch"] | None = None  # its number: equal ones are one observation in intervals

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


@dataclass(frozen=True, repr=False)
class DependencyCone(Result):
    """What the logits at some positions of each prompt can depend on.

    >>> cone = dependency_cone(model, pairs)
    >>> cone.states.shape, cone.size, cone.edges.per_layer()  # [batch state pos], [batch], [batch layer]
    """

    tokens: Int[Tensor, "batch pos"]
    positions: Bool[np.ndarray, "batch pos"]  # those whose logits the cone belongs to
    states: Bool[np.ndarray, "batch state pos"]  # entry l: the input of block l; the last: that of the unembedding
    edges: AttentionEdges  # those inside
    outside: OutsideEffect | None = None  # of noise outside the cone, with the patterns held and free-running

    def _line(self) -> str:
        states = f"{float(self.size.mean()):.1f} of {self.states[0].size} states"
        return f"{len(self.tokens)} prompts: {states}, {len(self.edges) / len(self.tokens):.1f} edges each, on average"

    def _columns(self) -> dict[str, Any]:
        return {"prompt": range(len(self.tokens)), "states": self.size, "edges": self.edges.per_layer().sum(1)}

    def plot(self, prompt: int = 0) -> Any:
        """The states in one prompt's cone, as a plotly heat map of layers by positions."""
        from sparselens.analyses.figures.heat_maps import heat_map

        return heat_map(torch.from_numpy(self.states[prompt]).float(), f"Cone of prompt {prompt}", columns="pos")

    @property
    def size(self) -> Int[np.ndarray, " batch"]:
        """Number of states in every prompt's cone."""
        return self.states.sum((1, 2))

    @property
    def answers(self) -> Bool[np.ndarray, "batch pos"]:
        """The old name of `positions`."""
        warn("DependencyCone.answers is now DependencyCone.positions", stacklevel=2)
        return self.positions


@renamed_argument("answers", "positions")
def dependency_cone(
    model: HookedModel, prompts: TokenizedPairs | Int[Tensor, "batch pos"], positions: Sequence[int] | None = None
) -> DependencyCone:
    """The states that the logits at the answer can depend on, and the attention edges among them.

    In a dense model, where every visible pair is an edge, the cone is nearly everything; in a sparse model it is small.

    Scope: exact with the patterns held. In a fresh run noise of 30 standard deviations in every state outside changes
    where the model attends, and so the logits at the answer: by 8 in addition-sparse, where 71 of 100 sums keep the
    sign of their logit difference, and by 12 in stories260k-sparse, where 47 of 81 pronouns do.
    `DependencyCone.outside` has both.

    >>> cone = dependency_cone(model, pairs)
    >>> cone.size / cone.states[0].size  # share of all states
    >>> cone.outside.free_running, cone.outside.surviving  # what the cone leaves out

    Args:
        prompts: of one length; of pairs, the clean prompts
        positions: whose logits the cone is about; default: the answer's position of the pairs, else the last

    Raises:
        ValueError: prompts have several lengths, are padded without a mask, or are another model's; a position
            is out of range; or the model is in training mode.
    """
    if not isinstance(prompts, Tensor):
        refuse_other_pairs(prompts)
        prompts = prompts._without_padding()
    tokens, chosen = _chosen(prompts, positions)
    with torch.no_grad():
        edges = attention_edges(model, prompts)
    states = np.zeros((len(tokens), edges.n_layers + 1, edges.n_pos), dtype=bool)
    states[:, -1] = chosen
    inside = np.zeros(len(edges), dtype=bool)
    for layer in reversed(range(edges.n_layers)):
        here = edges.layer == layer
        reached = here & states[edges.prompt, layer + 1, edges.query_pos]
        states[:, layer] = states[:, layer + 1]
        states[edges.prompt[reached], layer, edges.key_pos[reached]] = True
        inside |= reached
    cone = DependencyCone(tokens, chosen, states, edges.take(inside))
    answered = prompts if isinstance(prompts, TokenizedPairs) and positions is None else None
    return replace(cone, outside=_noise_effect(model, cone, answered))


def _chosen(
    prompts: TokenizedPairs | Tensor, positions: Sequence[int] | None
) -> tuple[Int[Tensor, "batch pos"], Bool[np.ndarray, "batch pos"]]:
    if isinstance(prompts, TokenizedPairs) and prompts.attention_mask is not None:
        raise ValueError("prompts have several lengths: take them length by length (TokenizedPairs.batches)")
    tokens = prompts if isinstance(prompts, Tensor) else prompts.clean
    n_pos = tokens.shape[1]
    if positions is not None:
        outside = [position for position in positions if not 0 <= position < n_pos]
        if outside or not len(positions):
            raise ValueError(f"positions = {list(positions)}: want some from 0 to {n_pos - 1}")
        places = np.tile(np.asarray(positions), (len(tokens), 1))
    elif isinstance(prompts, TokenizedPairs):
        places = prompts.end.cpu().numpy()[:, None]
    else:
        places = np.full((len(tokens), 1), n_pos - 1)
    chosen = np.zeros(tuple(tokens.shape), dtype=bool)
    np.put_along_axis(chosen, places, True, axis=1)
    return tokens, chosen


def _noise_effect(model: Any, cone: DependencyCone, pairs: TokenizedPairs | None) -> OutsideEffect:
    """What noise in every state outside the cone does.

    Args:
        pairs: whose answers may survive; None: the likeliest tokens at the cone's positions
    """
    parts = [_noisy(model, cone, rows, pairs) for rows in torch.arange(len(cone.tokens)).split(BATCH_SIZE)]
    held, free, survives = (torch.cat(found) for found in zip(*parts, strict=True))
    alike = torch.from_numpy(first_alike([tuple(row) for row in cone.tokens.tolist()]))
    return OutsideEffect(held, free, survives, alike)


def _noisy(
    model: Any, cone: DependencyCone, rows: Tensor, pairs: TokenizedPairs | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The fields of `OutsideEffect`, of some prompts."""
    tokens, generator = cone.tokens[rows], torch.Generator().manual_seed(0)
    inside = torch.from_numpy(cone.states[rows.numpy()])
    with evaluating(model), torch.no_grad():
        before, recorded = _recorded(model, tokens, _states_of(model))
        noisy = {
            name: x + SIGMAS * x.std() * torch.randn(x.shape, generator=generator).to(x) for name, x in recorded.items()
        }
        mixing = _mixing(noisy, inside)
        after = run(model, tokens, mixing)
        can_hold = not shows_only_copies(model, SITES["attention_edges"])
        free = _change(cone, rows, after - before)
        held = _moved(model, cone, rows, mixing) if can_hold else torch.full_like(free, torch.nan)
    if pairs is not None:
        own = pairs[rows].to(before.device)
        survives = logit_difference(before, own).sign() == logit_difference(after, own).sign()
    else:
        chosen = torch.from_numpy(cone.positions)[rows].to(before.device)
        survives = ((before.argmax(-1) == after.argmax(-1)) | ~chosen).all(-1)
    return held.float().cpu(), free.float().cpu(), survives.cpu()


def _states_of(model: Any) -> list[str]:
    """The hook points of a cone's states, layer by layer."""
    n_layers = model.cfg.n_layers
    return [*(f"blocks.{layer}.hook_resid_pre" for layer in range(n_layers)), f"blocks.{n_layers - 1}.hook_resid_post"]


def _change(cone: DependencyCone, rows: Tensor, difference: Float[Tensor, "row pos d_vocab"]) -> Float[Tensor, " row"]:
    """The largest difference of a logit at the cone's positions."""
    chosen = torch.from_numpy(cone.positions).to(difference.device)[rows.to(difference.device)]
    return difference.abs().amax(-1).masked_fill(~chosen, 0).amax(-1)


def outside_effect(
    model: HookedModel, cone: DependencyCone, other: Int[Tensor, "batch pos"]
) -> Float[Tensor, " batch"]:
    """The largest change of a logit at the cone's positions when every state outside it is taken from another prompt.

    With the patterns held it is zero up to rounding: a check of the cone.

    >>> outside_effect(model, cone, pairs.corrupted).max()  # about 1e-6

    Args:
        other: token ids of the same shape as `cone.tokens`

    Raises:
        ValueError: the shapes differ, or the model's patterns cannot be held.
    """
    if other.shape != cone.tokens.shape:
        raise ValueError(f"other is {list(other.shape)}, the cone's tokens {list(cone.tokens.shape)}")
    opened = _held(model)
    with evaluating(opened), torch.no_grad():
        _, foreign = _recorded(opened, other, _states_of(opened))
        return _moved(opened, cone, torch.arange(len(cone.tokens)), _mixing(foreign, torch.from_numpy(cone.states)))


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
    opened, found = _held(model), torch.zeros(len(cone.edges))
    if not len(found):
        return found

    def cut(some: Tensor) -> Tensor:
        part = cone.edges.take(some.numpy())
        return _moved(opened, cone, torch.from_numpy(part.prompt), [], cut=part).float().cpu()

    budget = Budget(batch_size, memory)
    with evaluating(opened), torch.no_grad(), progress_bar(len(found), "cuts", "edge", progress) as bar:
        (size,), _ = budget.sizes(opened, cone.tokens.shape[1], lambda _: cut(torch.arange(1)))
        for some in torch.arange(len(found)).split(size):
            found[some] = cut(some)
            bar.update(len(some))
    return found


def _held(model: Any) -> Any:
    """The model; a ValueError if its patterns cannot be held."""
    if shows_only_copies(model, SITES["attention_edges"]):
        raise ValueError(
            f"this dense {type(model).__name__} shows only a copy of its patterns, so they cannot be held: give it "
            "open gates (sparselens.sparsify(model, gate_bias=1e4)) or take its sparse model"
        )
    return model


def _moved(
    model: Any, cone: DependencyCone, prompts: Tensor, hooks: Sequence[Hook], cut: AttentionEdges | None = None
) -> Float[Tensor, " row"]:
    """The largest change of a logit at the cone's positions under hooks and cuts, one prompt per row."""
    tokens = cone.tokens[prompts]
    names = [f"blocks.{layer}.{PATTERN}" for layer in range(model.cfg.n_layers)]
    before, patterns = _recorded(model, tokens, names)
    if cut is not None:
        for row, (layer, *edge) in enumerate(zip(cut.layer, cut.head, cut.query_pos, cut.key_pos, strict=True)):
            patterns[names[layer]][(row, *edge)] = 0
    held: list[Hook] = [(name, lambda _, name=name: patterns[name]) for name in names]
    return _change(cone, prompts, run(model, tokens, [*held, *hooks]) - before)


def _recorded(model: Any, tokens: Tensor, names: Sequence[str]) -> tuple[Tensor, Activations]:
    recorded: Activations = {}
    return run(model, tokens, recording(recorded, names)), recorded


def _mixing(foreign: Activations, inside: Bool[Tensor, "row state pos"]) -> list[Hook]:
    """Hooks that keep the states inside a cone, and take those outside from elsewhere, layer by layer."""

    def mix(number: int, other: Tensor, own: Tensor) -> Tensor:
        return torch.where(inside[:, number].to(own.device)[..., None], own, other)

    return [(name, partial(mix, number, other)) for number, (name, other) in enumerate(foreign.items())]
