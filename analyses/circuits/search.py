"""The smallest faithful prefix of the ranking: how many of the highest-scoring edges reach a faithfulness.

1. Double the number of edges until the circuit of the top n is faithful enough.
2. Divide the gap to the last n that was not faithful enough by three, until it is one edge.
3. Several sizes run at once, as rows of a batch: four doublings, or both divisions of a gap. With few prompts, a run
   takes little longer for twice as many rows.
Faithfulness need not rise with every edge, so a smaller faithful prefix may exist between the sizes that were tried.
Not every edge of the prefix is needed either: `pruning` finds circuits of fewer edges.
"""

import math
from collections.abc import Sequence

from sparselens import bars
from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.circuits.circuit_runs import DELAY, Ablation, CircuitRunner, Faithfulness
from sparselens.analyses.engine.renamed import pairs_first
from sparselens.analyses.engine.request import open_request
from sparselens.circuits.circuit import Circuit
from sparselens.models.hooked_model import HookedModel
from sparselens.prompts.metrics import Metric, logit_difference
from sparselens.prompts.tokenized import TokenizedPairs

DOUBLINGS = 4  # sizes that run at once

Tried = tuple[Circuit, Faithfulness]


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

    Not the smallest faithful circuit: `pruned_circuit` finds smaller ones.

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
    """As `faithful_circuit`, for an open request.

    Args:
        kept: filled with the faithfulness of every number of edges tried, and of twice the final number
    """
    total, n_prompts = int(scores.measured.sum()), len(runner.clean)
    doubled = [*(2**power for power in range((total - 1).bit_length())), total]  # 1, 2, 4, ...
    with bars.progress_bar(2 * len(doubled) * n_prompts, "search", "run", progress, DELAY) as bar:

        def narrowed(sizes: Sequence[int], too_few: int, best: Tried | None = None) -> tuple[int, Tried]:
            """The most edges known to be too few, and the fewest that are enough, else `best` or the most tried."""
            circuits = [scores.top(size) for size in sizes]
            ran = list(zip(circuits, runner.run(circuits, bar), strict=True))
            if kept is not None:
                kept.update((len(circuit), found) for circuit, found in ran)
            for circuit, found in ran:
                if found.mean >= goal:  # NaN (clean equals ablated) is not enough
                    best = circuit, found
                    break
                too_few = len(circuit)
            best = best or ran[-1]
            bar.set_postfix_str(f"{len(best[0])} edges: {best[1].mean:.2f}", refresh=bars.is_watched())
            return too_few, best

        too_few, best = narrowed(doubled[:DOUBLINGS], 0)
        while not best[1].mean >= goal and len(best[0]) < total:
            left = [size for size in doubled if size > len(best[0])]
            too_few, best = narrowed(left[:DOUBLINGS], too_few)
        while (gap := len(best[0]) - too_few) > 1:
            bar.total = bar.n + 2 * math.ceil(math.log(gap, 3)) * n_prompts
            thirds = [too_few + gap // 3, too_few + 2 * gap // 3] if gap > 2 else [too_few + 1]
            too_few, best = narrowed(thirds, too_few, best)
        twice = min(2 * len(best[0]), total)
        if kept is not None and twice not in kept:
            bar.total = bar.n + n_prompts
            narrowed([twice], too_few, best)
        return best
