"""A thousand pairs of each task, drawn once and shared by all tests."""

from functools import cache

from sparselens.prompts.pairs import PromptPair
from sparselens.tasks import TASKS

N = 1000


def thousand(name: str, corruption: str | None = None) -> tuple[PromptPair, ...]:
    """The pairs drawn with seed 0."""
    return _thousand(name, TASKS[name].find_corruption(corruption))


@cache
def _thousand(name: str, corruption: str) -> tuple[PromptPair, ...]:
    return tuple(TASKS[name].pairs(N, corruption=corruption))
