"""Word lists of a task, with what a tokenizer has to make of each word for the task to work."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Continuation = str | tuple[str, str]  # a string that must be one token after any text, or after a given one


def spaced(word: str) -> tuple[Continuation, ...]:
    """The word with a space before it must be one token."""
    return (" " + word,)


def anything(entry: Any) -> tuple[Continuation, ...]:  # noqa: ARG001 - of type Words.one_token
    """Any number of tokens will do."""
    return ()


@dataclass(frozen=True)
class Words:
    """What a task chooses from. An entry is a word, or a tuple of words that belong together.

    >>> Words(("Mary", "John"), spaced, need=3)  # names, each one token; three are needed for a pair
    >>> Words((("France", "Paris"),), lambda entry: spaced(entry[1]))  # only the capital has to be one token
    """

    entries: Sequence[Any]
    one_token: Callable[[Any], Sequence[Continuation]] = anything  # of an entry: the strings that must be one token
    need: int = 2  # entries without which no pair can be drawn
