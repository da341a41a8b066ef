"""The states of an exploration, and reading them from files and pages, whose content is untrusted."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

FORMAT = "exploration 1"
LONGEST_TEXT = 10_000  # characters


@dataclass(frozen=True)
class Note:
    """A user's note on a part."""

    label: str = ""
    group: str = ""
    pinned: bool = False


@dataclass(frozen=True)
class Step:
    """The part of an exploration that can be saved, shared, undone and redone."""

    prompt: str = ""
    cuts: tuple[str, ...] = ()
    notes: Mapping[str, Note] = field(default_factory=dict)

    @property
    def plain(self) -> dict[str, Any]:
        """The step as JSON data."""
        notes = {name: asdict(note) for name, note in self.notes.items()}
        return {"sparselens": FORMAT, "prompt": self.prompt, "cuts": list(self.cuts), "notes": notes}


def step_of(given: Mapping[str, Any]) -> Step:
    """Read what `Step.plain` returned.

    Raises:
        ValueError: the data has another form.
    """
    if given.get("sparselens") != FORMAT or not isinstance(given.get("notes"), dict):
        raise ValueError(f"this is not the state of an exploration: want sparselens = {FORMAT!r} and notes")
    notes = {name: _note_of(name, said) for name, said in given["notes"].items()}
    return Step(text_in("prompt", given.get("prompt")), names_in(given.get("cuts")), notes)


def _note_of(name: str, said: Any) -> Note:
    if not isinstance(said, dict) or not set(said) <= {one.name for one in fields(Note)}:
        raise ValueError(f"the note of {name!r} is {said!r:.100}: want label, group and pinned")
    label, group = (text_in(what, said.get(what, "")) for what in ("label", "group"))
    return Note(label, group, said.get("pinned") is True)


def names_in(given: Any) -> tuple[str, ...]:
    """Check a list of names and remove duplicates.

    Raises:
        ValueError: it is not a list of strings.
    """
    if not isinstance(given, (list, tuple)) or not all(isinstance(name, str) for name in given):
        raise ValueError(f"parts are {given!r:.100}: want a list of names")
    return tuple(dict.fromkeys(given))


def text_in(what: str, given: Any) -> str:
    """Check that a value is a text that can be encoded as UTF-8.

    Raises:
        ValueError: it is not, or it is very long.
    """
    if not isinstance(given, str):
        raise ValueError(f"{what} is {given!r:.100}: want a string")
    if len(given) > LONGEST_TEXT:
        raise ValueError(f"{what} has {len(given):,} characters: want at most {LONGEST_TEXT:,}")
    if any("\ud800" <= character <= "\udfff" for character in given):
        raise ValueError(f"{what} contains half a character (a lone surrogate)")
    return given
