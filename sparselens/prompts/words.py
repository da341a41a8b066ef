"""Word lists of a task, and which strings must be single tokens for the task to work."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Continuation = str | tuple[str, str]  # a string that must be one token after any text, or (given text, string)


def spaced(word: str) -> tuple[Continuation, ...]:
    """Require the word with a leading space to be one token.

    >>> spaced("Mary")
    (' Mary',)
    """
    return (" " + word,)


def anything(entry: Any) -> tuple[Continuation, ...]:  # noqa: ARG001 - of type Words.one_token
    """Allow any number of tokens."""
    return ()


@dataclass(frozen=True)
class Words:
    """A list from which a task draws entries. An entry is a word, or a tuple of words that belong together.

    >>> Words(("Mary", "John"), spaced, need=3)  # names, each one token; three are needed for a pair
    >>> Words((("France", "Paris"),), lambda entry: spaced(entry[1]))  # only the capital has to be one token
    """

    entries: Sequence[Any]
    one_token: Callable[[Any], Sequence[Continuation]] = anything  # the strings of an entry that must be one token
    need: int = 2  # number of entries needed to draw a pair
