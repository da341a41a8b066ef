"""The caveats of a comparison, and the prompts that its figures show."""

from collections.abc import Mapping, Sequence
from typing import Any

from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.comparison.results import Prompt, Solved
from sparselens.gates.surgery import is_sparse
from sparselens.prompts.intervals import FEW, mean_interval, proportion_interval
from sparselens.prompts.tokenized import TokenizedPairs

SHOWN = 4  # prompts whose attention is kept


def first_of_one_length(pairs: TokenizedPairs) -> TokenizedPairs:
    """A few prompts of one length: the first, and those as long as it."""
    for rows, batch in pairs.batches(len(pairs)):
        if 0 in rows:
            return batch[:SHOWN]
    raise AssertionError("the first prompt is in no batch")


def prompts_of(shown: TokenizedPairs, answers: Sequence[str] = ()) -> tuple[Prompt, ...]:
    """Their tokens as strings, and their texts as titles.

    Args:
        answers: what the models predict at the answer's position of each
    """
    strings = shown.token_strings or tuple(tuple(map(str, row)) for row in shown.clean.tolist())
    titles = [pair.clean for pair in shown.prompts] or ["".join(tokens) for tokens in strings]
    above = [
        tuple(answer if i == end else "" for i in range(shown.clean.shape[1]))
        for end, answer in zip(shown.end.tolist() if answers else (), answers, strict=True)
    ]
    return tuple(map(Prompt, titles, strings, above or [()] * len(titles)))


def pruning_caveats(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """How far pruning got, for each model in which it used up its runs."""
    return [
        f"In the {name} model pruning used up its runs: {pruned.untested} of {len(pruned.circuit)} edges of its pruned "
        "circuit may be removable (prune_runs)."
        for name, results in found.items()
        if (pruned := results["circuits"].pruned) is not None and pruned.untested
    ]


def caveats(
    dense: Any, sparse: Any, solved: Solved, digests: Sequence[str], scores: Mapping[str, EdgeScores]
) -> tuple[str, ...]:
    """What limits the conclusions from a comparison, one sentence each."""
    notes: list[str] = []
    if digests[0] == digests[1]:
        notes.append("Both models are the same: every ratio is 1 and carries no information.")
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
            f"The {n_pairs} pairs have {different} different clean prompts, which are what intervals resample."
        )
    for name, right in (("dense", solved.dense), ("sparse", solved.sparse)):
        found = proportion_interval(right.double(), clusters=solved.clean_prompt.tolist())
        if not found.low > solved.chance:  # nor where a single pair leaves it unknown
            numbers = f"{found.mean:.0%} of {len(right)} correct, chance {solved.chance:.0%}"
            notes.append(f"The {name} model is not significantly better than chance on this task: {numbers}.")
    asked = solved.clean_prompt[solved.kept].tolist()
    for name, model in scores.items():
        if not mean_interval(model.clean - model.corrupted, clusters=asked).low > 0:
            notes.append(
                f"In the {name} model clean prompts do not score significantly above corrupted ones: shares of the "
                "metric and faithfulness divide by that difference, and are unreliable."
            )
    return tuple(notes)
