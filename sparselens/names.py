"""Names in error messages: errors for unknown ones that suggest the nearest, and shortened lists."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from re import sub


class UnknownNameError(ValueError, KeyError):
    """A ValueError, as for any invalid argument, and also a KeyError, which mappings are expected to raise."""

    __str__ = Exception.__str__  # KeyError would show the message in quotes


def unknown(kind: str, name: object, known: Iterable[str]) -> UnknownNameError:
    """The error to raise for an unknown name, with a suggestion and the list of known names.

    >>> raise unknown("task", "iio", TASKS)
    UnknownNameError: no such task: 'iio', did you mean 'ioi'? (want addition, ioi, ...)
    """
    names = list(known)
    return UnknownNameError(f"no such {kind}: {name!r}{meant(name, names)} (want {', '.join(names)})")


def meant(name: object, known: Iterable[str]) -> str:
    """A suggestion of the nearest known name; empty if none is near, or if the two differ only in a number."""
    names = list(known)
    near = get_close_matches(str(name).lower(), names, 1, 0.6)
    only_a_number = near and sub(r"\d+", "0", str(name)) == sub(r"\d+", "0", near[0])
    return f", did you mean {near[0]!r}?" if near and not only_a_number else ""


def first_of(names: Sequence[str], shown: int = 3) -> str:
    """The first of many names, and how many more there are."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
