"""What an answer can depend on through open gates: the states and attention edges in its past, with patterns held.

    (layer + 1, pos) depends on (layer, pos), and on (layer, key) for every open edge (layer, head, pos, key)

A state is the residual stream at one position as one block reads it; the last layer's is what the unembedding reads.
The patterns are taken as given. In a fresh run they depend on more: a softmax weight is divided by a sum over closed
positions too, and whether a gate is open depends on the query and key states. The cone says through which states values
can flow to the answer, not what made the model look there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from sparselens.analyses.attribution.attention_edges import PATTERN, AttentionEdges, attention_edges
from sparselens.analyses.engine.batching import MEMORY, fit
from sparselens.analyses.engine.partial_runs import Hooks, run
from sparselens.analyses.patching.patch_sites import SITES, shows_only_copies
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.training.evaluation import evaluating

_READ, _LAST = "blocks.{}.hook_resid_pre", "blocks.{}.hook_resid_post"


@dataclass(frozen=True)
class DependencyCone:
    """The past of the answers of some prompts."""

    tokens: Int[Tensor, "batch pos"]
    answers: Bool[np.ndarray, "batch pos"]  # positions whose logits are asked about
    states: Bool[np.ndarray, "batch state pos"]  # entry l: what block l reads; the last: what the unembedding reads
    edges: AttentionEdges  # those inside

    @property
    def size(self) -> Int[np.ndarray, " batch"]:
        """States in every prompt's cone, the answers' own among them."""
        return self.states.sum((1, 2))


def dependency_cone(
    model: Any,
    prompts: TokenizedPairs | Int[Tensor, "batch pos"],
    answers: Sequence[int] | None = None,
) -> DependencyCone:
    """The exact set of states that the logits at the answer can depend on, and the attention edges inside it.

    In a dense model, where every visible pair is an edge, the cone is nearly everything; in a sparse model it is small.

    >>> cone = dependency_cone(model, pairs)
    >>> cone.size / cone.states[0].size  # share of all states

    Args:
        prompts: the clean prompts are taken; all of one length
        answers: positions whose logits are asked about; default: the answer's of the pairs, else the last

    Raises:
        ValueError: prompts have several lengths, are padded without a mask, or are another model's; an answer lies
            outside; or the model is in training mode.
    """
    if isinstance(prompts, TokenizedPairs):
        prompts = prompts._without_padding()
    tokens, asked = _asked(prompts, answers)
    with torch.no_grad():
        edges = attention_edges(model, prompts)
    states = np.zeros((len(tokens), edges.n_layers + 1, edges.n_pos), dtype=bool)
    states[:, -1] = asked
    inside = np.zeros(len(edges), dtype=bool)
    for layer in reversed(range(edges.n_layers)):
        here = edges.layer == layer
        reached = here & states[edges.prompt, layer + 1, edges.query_pos]
        states[:, layer] = states[:, layer + 1]
        states[edges.prompt[reached], layer, edges.key_pos[reached]] = True
        inside |= reached
    return DependencyCone(tokens, asked, states, edges.take(inside))


def _asked(
    prompts: TokenizedPairs | Tensor, answers: Sequence[int] | None
) -> tuple[Int[Tensor, "batch pos"], Bool[np.ndarray, "batch pos"]]:
    if isinstance(prompts, TokenizedPairs) and prompts.attention_mask is not None:
        raise ValueError("prompts have several lengths: take them length by length (TokenizedPairs.batches)")
    tokens = prompts if isinstance(prompts, Tensor) else prompts.clean
    n_pos = tokens.shape[1]
    if answers is not None:
        outside = [position for position in answers if not 0 <= position < n_pos]
        if outside or not len(answers):
            raise ValueError(f"answers = {list(answers)}: want positions from 0 to {n_pos - 1}")
        places = np.tile(np.asarray(answers), (len(tokens), 1))
    elif isinstance(prompts, TokenizedPairs):
        places = prompts.end.cpu().numpy()[:, None]
    else:
        places = np.full((len(tokens), 1), n_pos - 1)
    asked = np.zeros(tuple(tokens.shape), dtype=bool)
    np.put_along_axis(asked, places, True, axis=1)
    return tokens, asked


def outside_effect(model: Any, cone: DependencyCone, other: Int[Tensor, "batch pos"]) -> Float[Tensor, " batch"]:
    """The proof of a cone: how far the answers' logits move when every state outside it becomes another prompt's.

    The patterns are held. It is zero but for rounding.

    Args:
        other: token ids of the same shape as `cone.tokens`

    Raises:
        ValueError: the shapes differ, or the model's patterns cannot be held.
    """
    if other.shape != cone.tokens.shape:
        raise ValueError(f"other is {list(other.shape)}, the cone's tokens {list(cone.tokens.shape)}")
    _refuse_copies(model)
    n_layers = model.cfg.n_layers
    names = [*(_READ.format(layer) for layer in range(n_layers)), _LAST.format(n_layers - 1)]
    inside = torch.from_numpy(cone.states).to(cone.tokens.device)
    with evaluating(model), torch.no_grad():
        strange = _recorded(model, other, names)
        replacing = [
            (
                name,
                lambda state, name=name, state_number=number, **_: _mix(inside[:, state_number], state, strange[name]),
            )
            for number, name in enumerate(names)
        ]
        return _moved(model, cone, torch.arange(len(cone.tokens)), replacing)


def cut_effects(
    model: Any, cone: DependencyCone, *, memory: int = MEMORY, progress: bool = True
) -> Float[Tensor, " edge"]:
    """How far the answers' logits move when one edge inside the cone is cut and all other patterns are held.

    One number for every one of `cone.edges`: the largest change of a logit at the prompt's answers.

    Args:
        memory: bytes that may be allocated at once beside the model

    Raises:
        ValueError: the model's patterns cannot be held, or the budget is too small.
    """
    _refuse_copies(model)
    found = torch.zeros(len(cone.edges))
    if not len(found):
        return found

    def cut(some: Tensor) -> Tensor:
        part = cone.edges.take(some.numpy())
        return _moved(model, cone, torch.from_numpy(part.prompt), [], cut=part).float().cpu()

    with (
        evaluating(model),
        torch.no_grad(),
        tqdm(total=len(found), desc="cuts", unit="edge", disable=not progress, dynamic_ncols=True) as bar,
    ):
        (size,), _ = fit(memory, lambda _: cut(torch.arange(1)))
        for some in torch.arange(len(found)).split(size):
            found[some] = cut(some)
            bar.update(len(some))
    return found


def _refuse_copies(model: Any) -> None:
    if shows_only_copies(model, SITES["attention_edges"]):
        raise ValueError(
            f"this dense {type(model).__name__} shows only a copy of its patterns, so they cannot be held: give it "
            "open gates (sparselens.sparsify(model, gate_bias=1e4)) or take its sparse model"
        )


def _moved(
    model: Any, cone: DependencyCone, prompts: Tensor, hooks: Hooks, cut: AttentionEdges | None = None
) -> Float[Tensor, " row"]:
    """The largest change of an answer's logit under hooks and cuts, a prompt a row, with the patterns held."""
    tokens = cone.tokens[prompts]
    names = [f"blocks.{layer}.{PATTERN}" for layer in range(model.cfg.n_layers)]
    patterns = _recorded(model, tokens, names)
    before = run(model, tokens)
    if cut is not None:
        for row, (layer, *edge) in enumerate(zip(cut.layer, cut.head, cut.query_pos, cut.key_pos, strict=True)):
            patterns[names[layer]][(row, *edge)] = 0
    held = [(name, lambda _pattern, name=name, **_: patterns[name]) for name in names]
    change = (run(model, tokens, [*held, *hooks]) - before).abs().amax(-1)
    asked = torch.from_numpy(cone.answers).to(change.device)[prompts.to(change.device)]
    return change.masked_fill(~asked, 0).amax(-1)


def _recorded(model: Any, tokens: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = {}

    def keep(activation: Tensor, name: str) -> None:
        kept[name] = activation.clone()

    run(model, tokens, [(name, lambda activation, name=name, **_: keep(activation, name)) for name in names])
    return kept


def _mix(inside: Bool[Tensor, "batch pos"], own: Tensor, strange: Tensor) -> Tensor:
    return torch.where(inside.to(own.device)[..., None], own, strange)
