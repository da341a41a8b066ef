"""The dependency cone of an answer, and what noise in the states outside it does."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparselens.analyses.attribution.attention_edges import AttentionEdges
from sparselens.analyses.engine.renamed import warn
from sparselens.prompts.intervals import Interval, proportion_interval
from sparselens.results import Result


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
