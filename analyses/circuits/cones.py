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
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparselens.analyses.attribution.attention_edges import attention_edges
from sparselens.analyses.circuits.cone_interventions import noise_effect
from sparselens.analyses.circuits.cone_result import DependencyCone
from sparselens.analyses.engine.renamed import renamed_argument
from sparselens.models.hooked_model import HookedModel
from sparselens.prompts.checks import refuse_other_pairs
from sparselens.prompts.tokenized import TokenizedPairs


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
    cone = DependencyCone(tokens, chosen, states, edges.take(inside))
    answered = prompts if isinstance(prompts, TokenizedPairs) and positions is None else None
    return replace(cone, outside=noise_effect(model, cone, answered))


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
