"""What a reader of a comparison has to know: which prompts are shown, and what to mind before trusting a number."""

from collections.abc import Mapping, Sequence
from typing import Any

from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.comparison.results import Prompt, Solved
from sparselens.gates.surgery import is_sparse
from sparselens.prompts.intervals import FEW, mean_interval, proportion_interval
from sparselens.prompts.tokenized import TokenizedPairs

SHOWN = 4  # prompts whose attention is kept


def first_alike(pairs: TokenizedPairs) -> TokenizedPairs:
    """A few prompts of one length: the first, and those as long as it."""
    for rows, batch in pairs.batches(len(pairs)):
        if 0 in rows:
            return batch[:SHOWN]
    raise AssertionError("the first prompt is in no batch")


def prompts_of(shown: TokenizedPairs) -> tuple[Prompt, ...]:
    """Their tokens as strings, and their texts as titles."""
    strings = shown.token_strings or tuple(tuple(map(str, row)) for row in shown.clean.tolist())
    titles = [pair.clean for pair in shown.prompts] or ["".join(tokens) for tokens in strings]
    return tuple(Prompt(title, tokens) for title, tokens in zip(titles, strings, strict=True))


def notes_on(
    dense: Any, sparse: Any, solved: Solved, digests: Sequence[str], scores: Mapping[str, EdgeScores]
) -> tuple[str, ...]:
    """What a reader has to know before trusting a number."""
    notes: list[str] = []
    if digests[0] == digests[1]:
        notes.append("Both models are the same: every ratio is 1, and says nothing.")
    if is_sparse(dense):
        notes.append("The dense model has gates.")
    if not is_sparse(sparse):
        notes.append("The sparse model has no gates.")
    n_asked = int(solved.asked.sum())
    if n_asked < FEW:
        notes.append(f"Only {n_asked} pairs: intervals are wide, and may be too narrow still.")
    different = len(solved.clean_prompt[solved.asked].unique())
    if different < n_asked:
        notes.append(
            f"The {n_asked} pairs have {different} different clean prompts, which are what intervals resample."
        )
    for name, right in (("dense", solved.dense), ("sparse", solved.sparse)):
        found = proportion_interval(right.double(), clusters=solved.clean_prompt.tolist())
        if not found.low > solved.chance:  # nor where one pair leaves it unknown
            said = f"{found.mean:.0%} of {len(right)} right, chance {solved.chance:.0%}"
            notes.append(f"The {name} model does no better than chance on this task, or not surely so: {said}.")
    asked = solved.clean_prompt[solved.asked].tolist()
    for name, model in scores.items():
        if not mean_interval(model.clean - model.corrupted, clusters=asked).low > 0:
            notes.append(
                f"In the {name} model clean prompts do not surely score above corrupted ones: shares of the metric and "
                "faithfulness divide by that gap, and say little."
            )
    return tuple(notes)
