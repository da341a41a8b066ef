"""Errors for unknown names, which say the nearest known one, and all of them."""

from collections.abc import Iterable
from difflib import get_close_matches
from re import sub


class UnknownNameError(ValueError, KeyError):
    """A caller's mistake like any other ValueError; and a KeyError, since mappings promise one."""

    __str__ = Exception.__str__  # KeyError's shows the message as a quoted string


def unknown(kind: str, name: object, known: Iterable[str]) -> UnknownNameError:
    """The error to raise for a name that is not among the known ones.

    >>> raise unknown("task", "iio", TASKS)
    UnknownNameError: no such task: 'iio', did you mean 'ioi'? (want addition, ioi, ...)
    """
    names = list(known)
    return UnknownNameError(f"no such {kind}: {name!r}{meant(name, names)} (want {', '.join(names)})")


def meant(name: object, known: Iterable[str]) -> str:
    """A suggestion of the nearest known name; "" where none is near, or only a number is out of range."""
    names = list(known)
    near = get_close_matches(str(name).lower(), names, 1, 0.6)
    only_a_number = near and sub(r"\d+", "0", str(name)) == sub(r"\d+", "0", near[0])
    return f", did you mean {near[0]!r}?" if near and not only_a_number else ""
