"""The smallest circuit that does what the model does: how many of the best edges it takes to be faithful.

Doubles the number of edges until the circuit of so many is faithful enough, then halves the gap to the last one that
was not. Faithfulness need not rise with every edge, so a smaller circuit may exist between those that were tried.
"""

import math
from typing import Any

from tqdm import tqdm

from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.circuits.faithfulness import DELAY, Ablation, Faithfulness, Runs, running_circuits
from sparselens.analyses.engine.batching import MEMORY
from sparselens.circuits.circuit import Circuit
from sparselens.prompts.metrics import Metric
from sparselens.prompts.tokenized import TokenizedPairs


def faithful_circuit(
    model: Any,
    scores: EdgeScores,
    pairs: TokenizedPairs,
    metric: Metric,
    goal: float = 0.8,
    ablation: Ablation | str = "corrupted",
    *,
    memory: int = MEMORY,
    progress: bool = True,
) -> tuple[Circuit, Faithfulness]:
    """The fewest top edges, of those numbers that were tried, whose circuit is at least so faithful.

    >>> circuit, found = faithful_circuit(model, scores, pairs, metric, goal=0.8)
    >>> len(circuit), found.interval()

    Raises:
        ValueError: the goal is not above 0 and at most 1, or as `faithfulness`.
    """
    if not 0 < goal <= 1:
        raise ValueError(f"goal must be above 0 and at most 1, not {goal}")
    with running_circuits(model, scores.graph, pairs, metric, ablation, memory) as runs:
        return search(runs, scores, goal, progress)


def search(
    runs: Runs, scores: EdgeScores, goal: float, progress: bool, kept: dict[int, Faithfulness] | None = None
) -> tuple[Circuit, Faithfulness]:
    """As `faithful_circuit`, where circuits are run already.

    Args:
        kept: is given what was found for every number of edges that was tried, and for twice the number in the end
    """
    total, n_prompts = scores.graph.n_edges, len(runs.clean)
    most = 2 * math.ceil(math.log2(total)) + 1  # circuits to try
    options: dict[str, Any] = {"unit": "run", "delay": DELAY, "dynamic_ncols": True}
    with tqdm(total=most * n_prompts, desc="search", disable=not progress, **options) as bar:

        def tried(n: int) -> tuple[Circuit, Faithfulness]:
            circuit = scores.top(n)
            (found,) = runs.alone([circuit], bar=bar)
            bar.set_postfix_str(f"{n} edges: {found.mean:.2f}", refresh=False)
            if kept is not None:
                kept[len(circuit)] = found
            return circuit, found

        too_few, enough = 0, 1
        best = tried(enough)
        while not best[1].mean >= goal and enough < total:  # NaN, where the model is as good as nothing, is not enough
            too_few, enough = enough, min(2 * enough, total)
            best = tried(enough)
        while enough - too_few > 1:
            bar.total = bar.n + math.ceil(math.log2(enough - too_few)) * n_prompts
            between = tried((too_few + enough) // 2)
            if between[1].mean >= goal:
                enough, best = len(between[0]), between
            else:
                too_few = len(between[0])
        if kept is not None and 2 * len(best[0]) not in kept and len(best[0]) < total:
            bar.total = bar.n + n_prompts
            tried(min(2 * len(best[0]), total))
        return best
