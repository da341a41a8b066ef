"""Word lists of a task, with the strings that must be single tokens for the task to work."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Continuation = str | tuple[str, str]  # must be one token after any text, or after a given one


def spaced(word: str) -> tuple[Continuation, ...]:
    """The word with a leading space must be one token.

    >>> spaced("Mary")
    (' Mary',)
    """
    return (" " + word,)


def anything(entry: Any) -> tuple[Continuation, ...]:  # noqa: ARG001 - of type Words.one_token
    """Any number of tokens is allowed."""
    return ()


@dataclass(frozen=True)
class Words:
    """A list that a task draws from. An entry is a word, or a tuple of words that belong together.

    >>> Words(("Mary", "John"), spaced, need=3)  # names, each one token; three are needed for a pair
    >>> Words((("France", "Paris"),), lambda entry: spaced(entry[1]))  # only the capital has to be one token
    """

    entries: Sequence[Any]
    one_token: Callable[[Any], Sequence[Continuation]] = anything  # the strings of an entry that must be one token
    need: int = 2  # entries needed to draw a pair
