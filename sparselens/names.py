"""What to say of a name that is not known: the nearest one that is, and all of them."""

from collections.abc import Iterable
from difflib import get_close_matches


class UnknownNameError(ValueError, KeyError):
    """A caller's mistake like any other ValueError; and a KeyError, since mappings promise one."""

    __str__ = Exception.__str__  # KeyError's shows the message as a quoted string


def unknown(kind: str, name: object, known: Iterable[str]) -> UnknownNameError:
    """The error to raise for a name that is not among the known ones.

    >>> raise unknown("task", "iio", TASKS)
    UnknownNameError: no such task: 'iio', did you mean 'ioi'? (want addition, ioi, ...)
    """
    names = list(known)
    near = get_close_matches(str(name).lower(), names, 1, 0.6)
    meant = f", did you mean {near[0]!r}?" if near else ""
    return UnknownNameError(f"no such {kind}: {name!r}{meant} (want {', '.join(names)})")
