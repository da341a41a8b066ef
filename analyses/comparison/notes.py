"""What a reader of a comparison has to know: which prompts are shown, and what to mind before trusting a number."""

from collections.abc import Sequence
from typing import Any

from sparselens.analyses.comparison.results import Prompt, Solved
from sparselens.surgery import is_sparse
from sparselens.tokenized import TokenizedPairs

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


def notes_on(dense: Any, sparse: Any, solved: Solved, digests: Sequence[str]) -> tuple[str, ...]:
    """What a reader has to know before trusting a number."""
    notes: list[str] = []
    if digests[0] == digests[1]:
        notes.append("Both models are the same: every ratio is 1, and says nothing.")
    if is_sparse(dense):
        notes.append("The dense model has gates.")
    if not is_sparse(sparse):
        notes.append("The sparse model has no gates.")
    for name, right in (("dense", solved.dense), ("sparse", solved.sparse)):
        if float(right.double().mean()) <= solved.chance:
            notes.append(f"The {name} model does no better than chance on this task.")
    return tuple(notes)
