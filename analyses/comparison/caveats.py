"""The caveats of a comparison, and the example prompts in its figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.comparison.results import Prompt, Solved
from sparselens.gates.surgery import is_sparse
from sparselens.prompts.intervals import FEW, mean_interval, proportion_interval
from sparselens.prompts.tokenized import TokenizedPairs

SHOWN = 4  # example prompts, whose attention is kept


def first_of_one_length(pairs: TokenizedPairs) -> TokenizedPairs:
    """The first prompt, and the next few of the same length."""
    for rows, batch in pairs.batches(len(pairs)):
        if 0 in rows:
            return batch[:SHOWN]
    raise AssertionError("the first prompt is in no batch")


def prompts_of(shown: TokenizedPairs, answers: Sequence[str] = ()) -> tuple[Prompt, ...]:
    """The example prompts: tokens as strings, the text as title.

    Args:
        answers: what the models predict at the answer's position, one per prompt
    """
    strings = shown.token_strings or tuple(tuple(map(str, row)) for row in shown.clean.tolist())
    titles = [pair.clean for pair in shown.prompts] or ["".join(tokens) for tokens in strings]
    above = [
        tuple(answer if i == end else "" for i in range(shown.clean.shape[1]))
        for end, answer in zip(shown.end.tolist() if answers else (), answers, strict=True)
    ]
    return tuple(map(Prompt, titles, strings, above or [()] * len(titles)))


def pruning_caveats(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A caveat for each model whose pruning stopped at the limit on runs."""
    return [
        f"In the {name} model pruning stopped at its limit on runs (prune_runs): {pruned.untested} of "
        f"{len(pruned.circuit)} edges of the pruned circuit were not tested individually and may be removable."
        for name, results in found.items()
        if (pruned := results["circuits"].pruned) is not None and pruned.untested
    ]


def caveats(
    dense: Any, sparse: Any, solved: Solved, digests: Sequence[str], scores: Mapping[str, EdgeScores]
) -> tuple[str, ...]:
    """What limits the conclusions from a comparison, one sentence each."""
    notes: list[str] = []
    if digests[0] == digests[1]:
        notes.append("Both models are the same, so every ratio is 1 and means nothing.")
    if is_sparse(dense):
        notes.append("The dense model has gates.")
    if not is_sparse(sparse):
        notes.append("The sparse model has no gates.")
    n_pairs = int(solved.kept.sum())
    different = len(solved.clean_prompt[solved.kept].unique())
    if different < FEW:
        few = f"{n_pairs} pairs" if different == n_pairs else f"{different} different clean prompts"
        notes.append(f"Only {few}: confidence intervals are wide, and may still be too narrow.")
    if different < n_pairs:
        notes.append(
            f"The {n_pairs} pairs have {different} different clean prompts; confidence intervals resample the latter."
        )
    for name, right in (("dense", solved.dense), ("sparse", solved.sparse)):
        found = proportion_interval(right.double(), clusters=solved.clean_prompt.tolist())
        if not found.low > solved.chance:  # also true of the NaN that a single pair gives
            numbers = f"{found.mean:.0%} of {len(right)} correct, chance {solved.chance:.0%}"
            notes.append(f"The {name} model is not significantly better than chance on this task: {numbers}.")
    clusters = solved.clean_prompt[solved.kept].tolist()
    for name, model in scores.items():
        if not mean_interval(model.clean - model.corrupted, clusters=clusters).low > 0:
            notes.append(
                f"In the {name} model clean prompts do not score significantly above corrupted ones. Shares of the "
                "metric and faithfulness divide by that difference, so they are unreliable."
            )
    return tuple(notes)
