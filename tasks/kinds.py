"""For tasks with several kinds of words (days, months, ...), only some of which are single tokens in a tokenizer."""

from collections.abc import Sequence
from typing import Any

from sparselens.prompts.task import Lists


def usable_kinds(words: Lists, entries: int = 2, kinds: int = 1) -> list[tuple[str, Sequence[Any]]]:
    """The kinds that have enough entries left, as (name, entries).

    Args:
        entries: entries of one kind that a pair needs
        kinds: kinds that a pair needs

    Raises:
        ValueError: too few kinds have enough entries.
    """
    usable = [kind for kind in words.items() if len(kind[1]) >= entries]
    if len(usable) < kinds:
        raise ValueError(
            f"too few words are single tokens in this tokenizer: want {entries} or more in each of {kinds} or more "
            f"kinds, but only {len(usable)} of these kinds have that many: {', '.join(words)}"
        )
    return usable
