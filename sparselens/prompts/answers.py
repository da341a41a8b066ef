"""Checks of the answer tokens of prompts."""

from jaxtyping import Bool, Int
from torch import Tensor

NO_ANSWER = -1  # pads the rows of prompts with fewer answers than others


def refuse_wrong_answers(right: Int[Tensor, "batch k"], wrong: Int[Tensor, "batch k_wrong"]) -> None:
    """Raise a ValueError if a prompt has no answer, the same one twice, or one that is both right and wrong."""
    for name, ids in (("answer", right), ("wrong answer", wrong)):
        missing = (ids == NO_ANSWER).all(-1).nonzero()
        if len(missing):
            raise ValueError(f"prompt {int(missing[0])} has no {name}")
        twice = _repeated(ids).nonzero()
        if len(twice):
            row = int(twice[0])
            raise ValueError(
                f"prompt {row} has the same token twice among its {name}s {ids[row].tolist()} ({len(twice)} of "
                f"{len(ids)} prompts do), but probabilities are summed over them: list each token once"
            )
    both = ((right[:, :, None] == wrong[:, None, :]) & (right[:, :, None] != NO_ANSWER)).flatten(1).any(-1).nonzero()
    if len(both):
        raise ValueError(
            f"prompt {int(both[0])} has the same token as answer and wrong answer, which a metric cannot distinguish "
            f"({len(both)} of {len(right)} prompts do)"
        )


def _repeated(ids: Int[Tensor, "batch k"]) -> Bool[Tensor, " batch"]:
    """Whether each row contains a token more than once."""
    ordered = ids.sort(-1).values
    return ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NO_ANSWER)).any(-1)
