"""What a comparison holds of one model, as plain data; `one_model` computes it."""

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
    """The metric when only the top components act (Fig. 3), ranked for every prompt or once."""

    heads: ComponentCurve
    heads_once: ComponentCurve
    components: ComponentCurve | None  # heads and MLPs in one ranking; None: the model has no MLPs
    components_once: ComponentCurve | None

    def has(self, part: str) -> bool:
        """Whether there is a curve in this field."""
        return getattr(self, part) is not None


@dataclass(frozen=True, eq=False)
class CircuitRuns:
    """Faithfulness of circuits in this model (Fig. 4b)."""

    own: Faithfulness  # this model's circuit of the paper's rule
    other: Faithfulness  # the other model's, transferred
    random: tuple[Faithfulness, ...]  # connected circuits like `own`, drawn at random
    faithful: Faithfulness  # the smallest prefix of the ranking found to reach the goal
    faithful_edges: int | None  # None: not even all edges reach it, or clean and ablated runs score the same
    tried: FaithfulnessCurve  # all circuits that the search for it has run
    pruned: PrunedCircuit | None = None  # None: not requested, the goal is not reached, or a single clean prompt


@dataclass(frozen=True, eq=False, repr=False)
class ModelResults(Result):
    """The results of one model."""

    attention: AttentionEdges  # of `About.prompts`
    labels: HeadScores
    heads: PatchingResult
    mlps: PatchingResult | None  # None: the model has no MLPs
    kept: ComponentCurves
    edges: EdgeScores
    circuits: CircuitRuns
    share: float = 0.9  # of the sum of |scores|, for the circuit
    summary: EdgeSummary | None = None  # of the scores that a slim comparison does not hold

    def _line(self) -> str:
        found = f"{len(self.circuit)} edges hold {self.share:.0%} of |score|, {self.circuits.own.mean:.2f} faithful"
        return f"{found}; {len(self.edges.clean)} prompts"

    def _columns(self) -> dict[str, list[str]]:
        shown = {name: getattr(self, name) for name in ("attention", "labels", "heads", "mlps", "edges", "circuit")}
        return {"of": list(shown), "result": [repr(result) for result in shown.values()]}

    def plot(self) -> Any:
        """The effects of patching heads, as a plotly heat map."""
        return self.heads.plot()

    @cached_property
    def circuit(self) -> Circuit:
        """The circuit of the paper's rule."""
        return self.edges.smallest(self.share)

    @cached_property
    def curves(self) -> ShareCurves:
        """Share of attribution over the number of edges (Fig. 4a).

        Raises:
            ValueError: the comparison is slim; it holds these curves as `edges_needed_plot` draws them.
        """
        return share_curves(self.edges)

    @cached_property
    def stability(self) -> Stability:
        """How much the prompts' own circuits differ."""
        return stability(self.edges, self.share) if self.summary is None else self.summary.stability
