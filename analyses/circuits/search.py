"""The smallest circuit that does what the model does: how many of the best edges it takes to be faithful.

Doubles the number of edges until the circuit of so many is faithful enough, then halves the gap to the last one that
was not. Faithfulness need not rise with every edge, so a smaller circuit may exist between those that were tried.
"""

from typing import Any

from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.circuits.faithfulness import Ablation, Faithfulness, faithfulness
from sparselens.analyses.engine.batching import MEMORY
from sparselens.circuit import Circuit
from sparselens.metrics import Metric
from sparselens.tokenized import TokenizedPairs


def faithful_circuit(
    model: Any,
    scores: EdgeScores,
    pairs: TokenizedPairs,
    metric: Metric,
    goal: float = 0.8,
    ablation: Ablation | str = "corrupted",
    *,
    memory: int = MEMORY,
    progress: bool = False,
) -> tuple[Circuit, Faithfulness]:
    """The fewest top edges, of those numbers that were tried, whose circuit is at least so faithful.

    >>> circuit, found = faithful_circuit(model, scores, pairs, metric, goal=0.8)
    >>> len(circuit), found.interval()

    Raises:
        ValueError: the goal is not above 0 and at most 1, or as `faithfulness`.
    """
    if not 0 < goal <= 1:
        raise ValueError(f"goal must be above 0 and at most 1, not {goal}")

    def tried(n: int) -> tuple[Circuit, Faithfulness]:
        circuit = scores.top(n)
        return circuit, faithfulness(model, circuit, pairs, metric, ablation, memory=memory, progress=progress)

    total = scores.graph.n_edges
    too_few, enough = 0, 1
    best = tried(enough)
    while not best[1].mean >= goal and enough < total:  # NaN, where the model is as good as nothing, is not enough
        too_few, enough = enough, min(2 * enough, total)
        best = tried(enough)
    while enough - too_few > 1:
        between = tried((too_few + enough) // 2)
        if between[1].mean >= goal:
            enough, best = len(between[0]), between
        else:
            too_few = len(between[0])
    return best
