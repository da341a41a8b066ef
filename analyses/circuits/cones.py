"""What an answer can depend on through open gates: the states and attention edges in its past, with patterns held.

1. (layer + 1, pos) depends on (layer, pos), and on (layer, key) for every open edge (layer, head, pos, key).
2. Follow this back from the answer's position at the last layer. A state is the residual stream at one position before
   one block; the last layer's is the input of the unembedding.
3. Patterns are taken as given: while they are held, nothing outside the cone moves the logits. In a fresh run they
   depend on more: softmax weights are normalised over closed positions too, and gates depend on query and key states.
   So the cone shows through which states values flow to the answer, not what made the model attend there;
   `DependencyCone.outside` shows how much that leaves out, by strong noise in every state outside.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparselens.analyses.attribution.attention_edges import AttentionEdges, attention_edges
from sparselens.analyses.circuits.held_patterns import OutsideEffect, held_change, noise_effect, states_from
from sparselens.analyses.engine.budget import Budget
from sparselens.analyses.engine.hidden_attention import refuse_hidden_attention
from sparselens.analyses.engine.renamed import renamed_argument, warn
from sparselens.bars import progress_bar
from sparselens.gates.modes import evaluating
from sparselens.models.hooked_model import HookedModel
from sparselens.prompts.checks import refuse_other_pairs
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.results import Result


@dataclass(frozen=True, repr=False)
class DependencyCone(Result):
    """What the logits at some positions of each prompt can depend on.

    >>> cone = dependency_cone(model, pairs)
    >>> cone.states.shape, cone.size, cone.edges.per_layer()  # [batch state pos], [batch], [batch layer]
    """

    tokens: Int[Tensor, "batch pos"]
    positions: Bool[np.ndarray, "batch pos"]  # the positions of the logits that the cone is about
    states: Bool[np.ndarray, "batch state pos"]  # entry l: the input of block l; the last: the unembedding's input
    edges: AttentionEdges  # only those inside
    outside: OutsideEffect | None = None  # the effect of noise outside the cone

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

    Scope: exact with the patterns held. In a fresh run, noise of 30 standard deviations in every state outside changes
    where the model attends, and so the logits at the answer: by 8 in addition-sparse, where 71 of 100 sums keep the
    sign of their logit difference, and by 12 in stories260k-sparse, where 47 of 81 pronouns do.
    `DependencyCone.outside` has both effects.

    >>> cone = dependency_cone(model, pairs)
    >>> cone.size / cone.states[0].size  # share of all states
    >>> cone.outside.free_running, cone.outside.surviving  # what the cone leaves out

    Args:
        prompts: prompts of one length; for pairs, the clean prompts
        positions: whose logits the cone is about; default: the answer's position for pairs, otherwise the last

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
    answered = prompts if isinstance(prompts, TokenizedPairs) and positions is None else None
    outside = noise_effect(model, tokens, torch.from_numpy(chosen), torch.from_numpy(states), answered)
    return DependencyCone(tokens, chosen, states, edges.take(inside), outside)


def _chosen(
    prompts: TokenizedPairs | Tensor, positions: Sequence[int] | None
) -> tuple[Int[Tensor, "batch pos"], Bool[np.ndarray, "batch pos"]]:
    """The tokens, and a mask of the positions whose logits the cone is about."""
    if isinstance(prompts, TokenizedPairs) and prompts.attention_mask is not None:
        raise ValueError("prompts have several lengths: make a cone for each length (TokenizedPairs.batches)")
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
        hooks = states_from(module, other, torch.from_numpy(cone.states))
        return held_change(module, cone.tokens, torch.from_numpy(cone.positions), hooks)


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
        positions = torch.from_numpy(cone.positions[part.prompt])
        return held_change(module, cone.tokens[torch.from_numpy(part.prompt)], positions, cut=part).float().cpu()

    budget = Budget(batch_size, memory)
    with evaluating(module), torch.no_grad(), progress_bar(len(found), "cuts", "edge", progress) as bar:
        (size,), _ = budget.sizes(module, cone.tokens.shape[1], lambda _: cut(torch.arange(1)))
        for edges in torch.arange(len(found)).split(size):
            found[edges] = cut(edges)
            bar.update(len(edges))
    return found


def _holdable(model: Any) -> Any:
    """The model; a ValueError if its patterns cannot be held."""
    refuse_hidden_attention(model, "they cannot be held", "use its sparse model")
    return model
