"""Tasks whose word lists are kinds of thing (days, months, ...), of which a tokenizer may know some and not others."""

from collections.abc import Sequence
from typing import Any

from sparselens.prompts.task import Lists


def usable_kinds(words: Lists, entries: int = 2, kinds: int = 1) -> list[tuple[str, Sequence[Any]]]:
    """Names and lists of the kinds of which as many entries are left as a pair takes.

    Raises:
        ValueError: fewer kinds than a pair takes.
    """
    usable = [kind for kind in words.items() if len(kind[1]) >= entries]
    if len(usable) < kinds:
        raise ValueError(
            f"too few single tokens: want {entries} or more words of {kinds} or more kinds; this tokenizer has them of "
            f"{len(usable)} among {', '.join(words)}"
        )
    return usable
