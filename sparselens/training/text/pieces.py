"""Split documents into pieces, so that neither a document nor its tokens have to fit into memory.

A piece ends before the space between two words, where a token ends anyway, so a document has the same tokens whether
tokenized in pieces or as a whole. Only the first piece of a document gets a BOS.
"""

import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import NamedTuple

SEPARATOR = "<|endoftext|>"  # between the documents of a plain text file
SIZE = 2**15  # maximum characters per piece
_NEAR = 2**10  # characters to search for a word boundary
_WORDS = re.compile(r"(?<=\S) (?=\S)")
_SPACE = re.compile(r"\s")


class Piece(NamedTuple):
    """A part of a document."""

    text: str
    opens: bool  # whether it begins a document; otherwise it continues the previous piece


class Placed(NamedTuple):
    """A piece and its place in the corpus."""

    piece: Piece
    document: int  # index of its document
    start: int  # number of characters before it in the corpus


def pieces_of(document: str) -> Iterator[Piece]:
    """The pieces of a document that is already in memory."""
    rest, opens = yield from _full_pieces(document, True, spare=0)
    yield Piece(rest, opens)


def split_at_separators(blocks: Iterable[str]) -> Iterator[Piece]:
    """The pieces of plain text that is read block by block; white space around documents is removed."""
    rest, opens = "", True
    for block in blocks:
        *ended, rest = (rest + block).split(SEPARATOR)
        for text in ended:
            yield from _last_pieces(text, opens)
            opens = True
        rest, opens = yield from _full_pieces(rest.lstrip() if opens else rest, opens, spare=len(SEPARATOR))
    yield from _last_pieces(rest, opens)


def _last_pieces(text: str, opens: bool) -> Iterator[Piece]:
    """The remaining pieces of a document that ends here."""
    rest, opens = yield from _full_pieces(text.strip() if opens else text.rstrip(), opens, spare=0)
    if rest:
        yield Piece(rest, opens)


def _full_pieces(text: str, opens: bool, spare: int) -> Generator[Piece, None, tuple[str, bool]]:
    """Yield full pieces while the text exceeds SIZE + `spare` characters; returns the rest."""
    while len(text) > SIZE + spare:
        head = text[: _last_border(text)].rstrip()  # the document may end in this white space
        if not head:
            break
        yield Piece(head, opens)
        text, opens = text[len(head) :], False
    return text, opens


def _last_border(text: str) -> int:
    for border in (_WORDS, _SPACE):
        found = [match.start() for match in border.finditer(text, SIZE - _NEAR, SIZE)]
        if found:
            return found[-1]
    return SIZE  # no white space, as in some scripts: split between any two characters


def place(pieces: Iterable[Piece], cuts: Sequence[int] = ()) -> Iterator[Placed]:
    """Number documents, count characters, and also split pieces at the first word boundary after each of `cuts`."""
    document, start = -1, 0
    for piece in pieces:
        document += piece.opens
        for part in _cut(piece, [cut - start for cut in sorted(cuts)]):
            yield Placed(part, document, start)
            start += len(part.text)


def _cut(piece: Piece, places: Sequence[int]) -> Iterator[Piece]:
    done, opens = 0, piece.opens
    for wanted in places:
        if done < wanted < len(piece.text):
            border = _next_border(piece.text, wanted)
            yield Piece(piece.text[done:border], opens)
            done, opens = border, False
    if done < len(piece.text):
        yield Piece(piece.text[done:], opens)


def _next_border(text: str, wanted: int) -> int:
    for border in (_WORDS, _SPACE):
        found = border.search(text, wanted, wanted + _NEAR)
        if found:
            return found.start()
    return wanted
