"""Which text is held out of training: to steer a run by (validation), and to report on (test).

Whole documents are held out, in an order shuffled by a seed; of a text of few documents, characters at its beginning;
of a stream, its first documents. From a `Split`, a handful of numbers, the same parts are found again in the same text.
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
FEW = 20  # documents: too few to hold out whole ones
DEFAULT_SHARE = 0.1


@dataclass(frozen=True)
class Survey:
    """What tells a text from others."""

    sha256: str
    documents: int
    characters: int


def survey(pieces: Iterable[Piece], at: Collection[int] = ()) -> list[Survey]:
    """Read a text: what it is after each number of documents in `at` that it has, and at last as a whole."""
    digest, documents, characters, found = hashlib.sha256(), 0, 0, list[Survey]()
    for piece in pieces:
        if piece.opens:
            if documents in at:
                found.append(Survey(digest.hexdigest(), documents, characters))
            digest.update(b"\xff")  # a byte that UTF-8 never has
            documents += 1
        digest.update(piece.text.encode())
        characters += len(piece.text)
    return [*found, Survey(digest.hexdigest(), documents, characters)]


@dataclass(frozen=True)
class Split:
    """What a run held out of its text; small enough to be saved with the model."""

    sha256: str  # of the text, or of its first `documents`
    documents: int
    characters: int  # of the same documents
    unit: Literal["documents", "characters"]
    validation: int  # units, the first in order
    test: int  # units, those that follow
    seed: int | None  # that the documents are shuffled with; None: they are taken as they come
    stream: bool = False  # only the held-out documents were counted: what comes after them is for training

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Split":
        """The split that a saved model names.

        Raises:
            ValueError: the record is not one of this program.
        """
        known = {field.name for field in fields(cls)}
        if set(record) != known:
            raise ValueError(f"the record of a split has the fields {sorted(record)}, want {sorted(known)}")
        return cls(**record)

    @property
    def cuts(self) -> tuple[int, ...]:
        """Characters at which one part ends and the next begins."""
        return () if self.unit == "documents" else (self.validation, self.validation + self.test)

    @cached_property
    def _numbers(self) -> dict[int, Part]:
        order: Any = range(self.documents)
        if self.seed is not None:
            order = random.Random(self.seed).sample(order, self.documents)
        held_out = order[: self.validation + self.test]
        return {n: "validation" if i < self.validation else "test" for i, n in enumerate(held_out)}

    def part_of(self, placed: Placed) -> Part:
        """Where a piece belongs that ends at the `cuts`, if not before."""
        if self.unit == "documents":
            return self._numbers.get(placed.document, "train")
        before = sum(placed.start >= cut for cut in self.cuts)
        return ("validation", "test", "train")[before]

    def parts(self, pieces: Iterable[Piece]) -> Iterator[tuple[Part, Piece]]:
        """Every piece of the text with the part that it belongs to."""
        for placed in place(pieces, self.cuts):
            yield self.part_of(placed), placed.piece


def hold_out(text: Survey, share: float = DEFAULT_SHARE, seed: int = 0, most: int | None = None) -> Split:
    """Hold out half of `share` for validation and half for test, of each `most` characters or little more at most.

    Raises:
        ValueError: too little text for three parts, or a share outside (0, 1).
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
        raise ValueError(f"{units} {unit} are too few to hold out {share:.0%} twice: give more text, or another share")
    return Split(text.sha256, text.documents, text.characters, unit, n, n, None if few else seed)


def hold_out_first(pieces: Iterable[Piece], most: int) -> Split:
    """Hold out the first documents of a stream: for validation until they have `most` characters, then for test.

    Raises:
        ValueError: the stream ends before that.
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
            f"the stream ends before two times {most} characters are held out: hold out less, or read it without "
            "streaming"
        )
    text, (validation, both) = survey(head)[-1], ends
    numbers = (text.sha256, text.documents, text.characters)
    return Split(*numbers, "documents", validation, both - validation, None, stream=True)
