"""The smallest faithful prefix of the ranking: how many of the highest-scoring edges reach a faithfulness.

1. Double the number of edges until the circuit of the top n is faithful enough.
2. Halve the gap to the last n that was not, until it is one edge.
Faithfulness need not rise with every edge, so a smaller faithful prefix may exist between the sizes that were tried.
Nor is every edge of the prefix needed: `pruning` removes those that are not.
"""

import math

from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.circuits.circuit_runs import DELAY, Ablation, CircuitRunner, Faithfulness
from sparselens.analyses.engine.renamed import pairs_first
from sparselens.analyses.engine.request import open_request
from sparselens.bars import progress_bar
from sparselens.circuits.circuit import Circuit
from sparselens.models.hooked_model import HookedModel
from sparselens.prompts.metrics import Metric, logit_difference
from sparselens.prompts.tokenized import TokenizedPairs


@pairs_first
def faithful_circuit(
    model: HookedModel,
    pairs: TokenizedPairs,
    scores: EdgeScores,
    metric: Metric | str = logit_difference,
    goal: float = 0.8,
    ablation: Ablation | str = "corrupted",
    *,
    memory: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> tuple[Circuit, Faithfulness]:
    """The fewest highest-scoring edges, among the sizes tried, whose faithfulness reaches the goal.

    Not the smallest faithful circuit: `pruned_circuit` continues from here.

    >>> circuit, found = faithful_circuit(model, pairs, attribute_edges(model, pairs), goal=0.8)
    >>> len(circuit), found.interval()

    Sign convention and scope are those of `faithfulness`.

    Raises:
        ValueError: the goal is not above 0 and at most 1, or as `faithfulness`.
    """
    refuse_goal(goal)
    with open_request(model, pairs, metric, memory=memory, batch_size=batch_size, progress=progress) as request:
        return search(CircuitRunner(request, scores.graph, ablation), scores, goal, progress)


def refuse_goal(goal: float) -> None:
    """Raise a ValueError unless the goal is above 0 and at most 1."""
    if not 0 < goal <= 1:
        raise ValueError(f"goal must be above 0 and at most 1, not {goal}")


def search(
    runner: CircuitRunner,
    scores: EdgeScores,
    goal: float,
    progress: bool,
    kept: dict[int, Faithfulness] | None = None,
) -> tuple[Circuit, Faithfulness]:
    """As `faithful_circuit`, with circuits of an open request.

    Args:
        kept: receives what was found for every number of edges tried, and for twice the final number
    """
    total, n_prompts = int(scores.measured.sum()), len(runner.clean)
    most = 2 * math.ceil(math.log2(total)) + 1  # circuits to try
    with progress_bar(most * n_prompts, "search", "run", progress, DELAY) as bar:

        def tried(n: int) -> tuple[Circuit, Faithfulness]:
            circuit = scores.top(n)
            (found,) = runner.run([circuit], bar)
            bar.set_postfix_str(f"{n} edges: {found.mean:.2f}", refresh=False)
            if kept is not None:
                kept[len(circuit)] = found
            return circuit, found

        too_few, enough = 0, 1
        best = tried(enough)
        while not best[1].mean >= goal and enough < total:  # NaN (clean equals ablated) is not enough
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
