"""The results of one model in a comparison, as plain data; computed in `one_model`."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sparselens.analyses.attribution.attention_edges import AttentionEdges
from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.circuits.circuit_runs import Faithfulness
from sparselens.analyses.circuits.faithfulness import FaithfulnessCurve
from sparselens.analyses.circuits.pruning import PrunedCircuit
from sparselens.analyses.circuits.stability import ShareCurves, Stability, share_curves, stability
from sparselens.analyses.comparison.summaries import EdgeSummary
from sparselens.analyses.patching.patching_result import PatchingResult
from sparselens.analyses.patching.top_components import ComponentCurve
from sparselens.analyses.sparsity.head_labels import HeadScores
from sparselens.circuits.circuit import Circuit
from sparselens.results import Result


@dataclass(frozen=True, eq=False)
class ComponentCurves:
    """The metric when only the top components are active (Fig. 3), ranked per prompt or once for all prompts."""

    heads: ComponentCurve
    heads_once: ComponentCurve
    components: ComponentCurve | None  # heads and MLPs in one ranking; None: the model has no MLPs
    components_once: ComponentCurve | None

    def has(self, part: str) -> bool:
        """Whether there is a curve in this field."""
        return getattr(self, part) is not None


@dataclass(frozen=True, eq=False)
class CircuitRuns:
    """Faithfulness of several circuits in this model (Fig. 4b)."""

    own: Faithfulness  # of this model's circuit by the paper's rule
    other: Faithfulness  # of the other model's circuit, run in this model
    random: tuple[Faithfulness, ...]  # of random connected circuits that match `own`
    faithful: Faithfulness  # of the fewest top-ranked edges found to reach the goal
    faithful_edges: int | None  # their number; None: not even all edges reach it, or clean and ablated score the same
    tried: FaithfulnessCurve  # of all circuits run in the search for them
    pruned: PrunedCircuit | None = None  # None: not requested, goal not reached, or only one clean prompt


@dataclass(frozen=True, eq=False, repr=False)
class ModelResults(Result):
    """The results of one model."""

    attention: AttentionEdges  # on `About.prompts`
    labels: HeadScores
    heads: PatchingResult
    mlps: PatchingResult | None  # None: the model has no MLPs
    kept: ComponentCurves
    edges: EdgeScores
    circuits: CircuitRuns
    share: float = 0.9  # of the sum of |scores| that `circuit` holds
    summary: EdgeSummary | None = None  # only in a slim comparison: replaces the scores that it no longer holds

    def _line(self) -> str:
        circuit = f"{len(self.circuit)} edges hold {self.share:.0%} of |score|"
        return f"{circuit}, faithfulness {self.circuits.own.mean:.2f}; {len(self.edges.clean)} prompts"

    def _columns(self) -> dict[str, list[str]]:
        shown = {name: getattr(self, name) for name in ("attention", "labels", "heads", "mlps", "edges", "circuit")}
        return {"of": list(shown), "result": [repr(result) for result in shown.values()]}

    def plot(self) -> Any:
        """The effects of patching heads, as a plotly heat map."""
        return self.heads.plot()

    @cached_property
    def circuit(self) -> Circuit:
        """The circuit by the paper's rule: the fewest edges that hold `share` of the sum of |scores|."""
        return self.edges.smallest(self.share)

    @cached_property
    def curves(self) -> ShareCurves:
        """Share of attribution over the number of edges (Fig. 4a).

        Raises:
            ValueError: the comparison is slim; it holds these curves only as `edges_needed_plot` draws them.
        """
        return share_curves(self.edges)

    @cached_property
    def stability(self) -> Stability:
        """How much the circuits of single prompts differ."""
        return stability(self.edges, self.share) if self.summary is None else self.summary.stability
