"""Hold text out of training: for steering the run (validation) and for the final report (test).

Holds out whole documents, chosen at random; in a text of few documents, its first characters; in a stream, its first
documents. A `Split`, a handful of numbers, is enough to find the same parts in the same text again.
"""

import hashlib
import random
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal

from sparselens.training.text.pieces import Piece, Placed, place

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
FEW = 20  # with fewer documents, characters are held out instead
DEFAULT_SHARE = 0.1


@dataclass(frozen=True)
class Survey:
    """Identifies a text."""

    sha256: str
    documents: int
    characters: int


def survey(pieces: Iterable[Piece], at: Collection[int] = ()) -> list[Survey]:
    """Survey a text: its first documents, for every number in `at` below the total, and finally all of it."""
    digest, documents, characters, found = hashlib.sha256(), 0, 0, list[Survey]()
    for piece in pieces:
        if piece.opens:
            if documents in at:
                found.append(Survey(digest.hexdigest(), documents, characters))
            digest.update(b"\xff")  # a byte that never occurs in UTF-8
            documents += 1
        digest.update(piece.text.encode())
        characters += len(piece.text)
    return [*found, Survey(digest.hexdigest(), documents, characters)]


@dataclass(frozen=True)
class Split:
    """Which parts of a text a run held out; small enough to be saved with the model."""

    sha256: str  # of the text, or of its first `documents`
    documents: int
    characters: int  # in these documents
    unit: Literal["documents", "characters"]
    validation: int  # number of units, the first in order
    test: int  # number of units, those that follow
    seed: int | None  # for shuffling the documents; None: in their original order
    stream: bool = False  # `documents` counts only held-out ones: everything after them is for training

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Split":
        """The split recorded in a saved model.

        Raises:
            ValueError: the record has missing or unknown fields.
        """
        known = {field.name for field in fields(cls)}
        if set(record) != known:
            raise ValueError(f"the record of a split has the fields {sorted(record)}, want {sorted(known)}")
        return cls(**record)

    @property
    def cuts(self) -> tuple[int, ...]:
        """Character positions of the borders between parts."""
        return () if self.unit == "documents" else (self.validation, self.validation + self.test)

    @cached_property
    def _numbers(self) -> dict[int, Part]:
        order: Any = range(self.documents)
        if self.seed is not None:
            order = random.Random(self.seed).sample(order, self.documents)
        held_out = order[: self.validation + self.test]
        return {n: "validation" if i < self.validation else "test" for i, n in enumerate(held_out)}

    def part_of(self, placed: Placed) -> Part:
        """The part of a piece, which must not span any of the `cuts`."""
        if self.unit == "documents":
            return self._numbers.get(placed.document, "train")
        before = sum(placed.start >= cut for cut in self.cuts)
        return ("validation", "test", "train")[before]

    def parts(self, pieces: Iterable[Piece]) -> Iterator[tuple[Part, Piece]]:
        """Every piece of the text, with the part it belongs to."""
        for placed in place(pieces, self.cuts):
            yield self.part_of(placed), placed.piece


def hold_out(text: Survey, share: float = DEFAULT_SHARE, seed: int = 0, most: int | None = None) -> Split:
    """Hold out half of `share` for validation and half for test, each with about `most` characters at most.

    Raises:
        ValueError: there is too little text for three parts, or `share` is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"the held-out share must be between 0 and 1, not {share}")
    few = text.documents < FEW
    units = text.characters if few else text.documents
    n = round(units * share / 2)
    if most is not None:
        n = min(n, -(-units * most // text.characters))
    n = n if few else max(1, n)
    unit = "characters" if few else "documents"
    if not 0 < n <= units // 3:
        raise ValueError(
            f"{units} {unit} are too few to hold out {share:.0%} twice (validation and test): use more text, "
            "or another share"
        )
    return Split(text.sha256, text.documents, text.characters, unit, n, n, None if few else seed)


def hold_out_first(pieces: Iterable[Piece], most: int) -> Split:
    """Hold out the first documents of a stream: at least `most` characters for validation, then as many for test.

    Raises:
        ValueError: the stream is too short.
    """
    head: list[Piece] = []
    ends: list[int] = []
    begun = 0
    for placed in place(pieces):
        if placed.piece.opens and placed.start - begun >= most:
            ends.append(placed.document)
            begun = placed.start
            if len(ends) == 2:
                break
        head.append(placed.piece)
    else:
        raise ValueError(
            f"the stream is too short to hold out {most} characters twice: hold out less, or read it without streaming"
        )
    text, (validation, both) = survey(head)[-1], ends
    numbers = (text.sha256, text.documents, text.characters)
    return Split(*numbers, "documents", validation, both - validation, None, stream=True)
