"""Scores of all edges of a model, per prompt and on average, and the circuits chosen by them."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparselens.circuits import selection
from sparselens.circuits.circuit import Circuit
from sparselens.circuits.graph import Graph
from sparselens.prompts.intervals import Interval, mean_interval
from sparselens.results import Result

if TYPE_CHECKING:
    from sparselens.analyses.circuits.stability import Stability


COMPARE = "this comparison is slim: `sparselens compare` writes the full one, with every prompt's scores, to numbers/"


@dataclass(frozen=True, eq=False, repr=False)
class EdgeScores(Result):
    """How much each edge matters for a metric.

    >>> scores = attribute_edges(model, pairs, "logit_difference")
    >>> scores["a0.h1->m0"], scores["a0.h1", "m0"], scores.interval("a0.h1->m0")  # the mean in two ways, its interval
    >>> scores.top(20).edges, scores.stability().mean_overlap

    Sign convention: positive where corrupting the edge lowers the metric, in the metric's unit.

    Scope: edges that were not measured (`patch_edges` of some) are NaN. Circuits are chosen among those that were.
    """

    graph: Graph
    method: str
    mean: Float[Tensor, "source destination"]  # over prompts, signed
    per_prompt: Float[Tensor, "batch source destination"] | None  # None: only the mean was kept
    clean: Float[Tensor, " batch"]  # the metric of the clean runs
    corrupted: Float[Tensor, " batch"]
    # sum of |mean| over all edges, if only the largest were kept (`Comparison.save`) and the others are NaN
    total: float | None = None
    clean_prompt: Int[Tensor, " batch"] | None = None  # its index; pairs with the same one count as one observation

    _largest = "score"

    def _line(self) -> str:
        gap = f"metric {float(self.clean.mean()):.3g}, corrupted {float(self.corrupted.mean()):.3g}"
        n_measured = int(self.measured.sum())
        best = self.top(min(1, n_measured)).edges
        largest = f", largest {best[0]} {self[best[0]]:+.3g}" if best else ""
        some = "" if n_measured == self.graph.n_edges else " measured"
        return f"{self.method} scores of {n_measured:,}{some} edges, {len(self.clean)} prompts: {gap}{largest}"

    def _columns(self) -> dict[str, list[Any]]:
        return self.graph.columns(self.measured, self.mean.detach().cpu())

    def __getitem__(self, edge: str | tuple[str, str]) -> float:
        return float(self.mean[self.graph.edge(edge)])

    def plot(self) -> Any:
        """The mean scores as a plotly heat map, sources by destinations."""
        from sparselens.analyses.figures.heat_maps import heat_map

        values = self.mean.detach().cpu().masked_fill(~self.exists, torch.nan)
        return heat_map(
            values, f"Edge scores, {self.method}", rows=self.sources, columns=self.destinations, value_label="score"
        )

    @property
    def exists(self) -> Bool[Tensor, "source destination"]:
        """Which edges exist; all others score zero."""
        return self.graph.exists

    @property
    def measured(self) -> Bool[Tensor, "source destination"]:
        """Which edges have a score: all that exist, unless only some were measured."""
        return self.exists & ~self.mean.detach().cpu().isnan()

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the rows."""
        return self.graph.sources

    @property
    def destinations(self) -> tuple[str, ...]:
        """Names of the columns."""
        return self.graph.destinations

    def smallest(self, share: float = 0.9) -> Circuit:
        """The fewest edges whose |mean score| sums to this share of the total: the paper's rule."""
        return selection.smallest(self.graph, self._known(), share, self.measured, self.total)

    def top(self, n: int, signed: bool = False) -> Circuit:
        """The `n` edges of largest |mean score|; if `signed`, of highest mean score, as in MIB for CPR."""
        return selection.top(self.graph, self._known(), n, self.measured, signed, self.total)

    def greedy(self, n: int) -> Circuit:
        """Start from the logits, and add `n` times the edge of largest |mean score| into the circuit (EAP-IG)."""
        return selection.greedy(self.graph, self._known(), n, self.measured)

    def within(self, circuit: Circuit) -> "EdgeScores":
        """The mean scores of only a circuit's edges; all others count as not measured.

        >>> first = pruned_circuit(model, pairs, scores, goal=0.95)
        >>> pruned_circuit(model, pairs, scores.within(first.circuit), goal=0.8)  # continues from there

        Raises:
            ValueError: the circuit belongs to another graph, or has edges without a score.
        """
        if circuit.graph != self.graph:
            raise ValueError(
                f"the circuit belongs to a model with {circuit.graph}, the scores to one with {self.graph}"
            )
        inside = circuit.kept.to(self.mean.device)
        if unknown := int(self.mean[inside].isnan().sum()):
            raise ValueError(f"{unknown} of the circuit's {len(circuit)} edges have no score here")
        return replace(self, mean=self.mean.masked_fill(~inside, torch.nan), per_prompt=None, total=None)

    def stability(self, share: float = 0.9) -> "Stability":
        """How much the circuits of single prompts differ.

        Raises:
            ValueError: only the mean was kept, or the share is not above 0 and at most 1.
        """
        from sparselens.analyses.circuits.stability import stability

        this: Any = self  # type checkers see this class under two names
        return stability(this, share)

    def of_prompt(self, prompt: int) -> "EdgeScores":
        """The scores of one prompt.

        Raises:
            ValueError: there is no such prompt, or only the mean was kept.
        """
        scores = self._all()
        if not 0 <= prompt < len(scores):
            raise ValueError(f"prompt = {prompt}: want 0 to {len(scores) - 1}")
        rows = slice(prompt, prompt + 1)
        metrics = {"clean": self.clean[rows], "corrupted": self.corrupted[rows]}
        return replace(self, mean=scores[prompt], per_prompt=scores[rows], clean_prompt=None, **metrics)

    def of_prompts(self, prompts: Int[Tensor, " chosen"]) -> "EdgeScores":
        """The scores of some prompts.

        Raises:
            ValueError: only the mean was kept.
        """
        scores = self._all()[prompts]
        clean_prompt = None if self.clean_prompt is None else self.clean_prompt[prompts]
        metrics = {"clean": self.clean[prompts], "corrupted": self.corrupted[prompts]}
        return replace(self, mean=scores.mean(0), per_prompt=scores, clean_prompt=clean_prompt, **metrics)

    def interval(self, edge: str, level: float = 0.95) -> Interval:
        """The mean score of one edge, with a bootstrap confidence interval over clean prompts.

        Raises:
            ValueError: there is no such edge, or only the mean was kept.
        """
        source, destination = self.graph.edge(edge)
        return mean_interval(self._all()[:, source, destination], level, clusters=self.clean_prompt)

    def node(self) -> Float[Tensor, " source"]:
        """Mean score of each source: the sum over its destinations."""
        return self.mean.sum(-1)

    def _known(self) -> Float[Tensor, "source destination"]:
        """The mean scores, with zero for edges that were not measured, as `attribute_edges` does with `candidates`.

        If only the largest were kept, the others stay NaN, since they are not zero.
        """
        return self.mean if self.total is not None else self.mean.nan_to_num(0.0, torch.inf, -torch.inf)

    def _all(self) -> Float[Tensor, "batch source destination"]:
        if self.per_prompt is None:
            how = "call attribute_edges with per_prompt=True" if self.total is None else COMPARE
            raise ValueError(f"only the mean was kept: {how}")
        return self.per_prompt
