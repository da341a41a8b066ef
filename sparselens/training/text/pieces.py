"""Documents in pieces, so that no document has to fit into memory, nor its tokens.

A piece ends before the space between two words, where a tokenizer ends a token anyway: tokenized piece by piece, a
document has the tokens that it has as a whole. Only the piece that opens a document is given a BOS.
"""

import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import NamedTuple

SEPARATOR = "<|endoftext|>"  # between the documents of a plain text file
SIZE = 2**15  # characters of a piece, at most
_NEAR = 2**10  # characters in which a border between words is looked for
_WORDS = re.compile(r"(?<=\S) (?=\S)")
_SPACE = re.compile(r"\s")


class Piece(NamedTuple):
    """A part of a document."""

    text: str
    opens: bool  # the document; otherwise it goes on with the one before


class Placed(NamedTuple):
    """A piece, and where in the corpus it stands."""

    piece: Piece
    document: int  # number of its document
    start: int  # characters of the corpus before it


def pieces_of(document: str) -> Iterator[Piece]:
    """One document that is in memory already."""
    rest, opens = yield from _full_pieces(document, True, spare=0)
    yield Piece(rest, opens)


def split_at_separators(blocks: Iterable[str]) -> Iterator[Piece]:
    """The documents of a plain text that comes block by block, without the white space around them."""
    rest, opens = "", True
    for block in blocks:
        *ended, rest = (rest + block).split(SEPARATOR)
        for text in ended:
            yield from _last_pieces(text, opens)
            opens = True
        rest, opens = yield from _full_pieces(rest.lstrip() if opens else rest, opens, spare=len(SEPARATOR))
    yield from _last_pieces(rest, opens)


def _last_pieces(text: str, opens: bool) -> Iterator[Piece]:
    """What is left of a document that ends here."""
    rest, opens = yield from _full_pieces(text.strip() if opens else text.rstrip(), opens, spare=0)
    if rest:
        yield Piece(rest, opens)


def _full_pieces(text: str, opens: bool, spare: int) -> Generator[Piece, None, tuple[str, bool]]:
    """Pieces while there is more text than one holds; the rest, with `spare` characters or more, is handed back."""
    while len(text) > SIZE + spare:
        head = text[: _last_border(text)].rstrip()  # white space may turn out to be the document's end
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
    return SIZE  # a script without spaces: between any two characters


def place(pieces: Iterable[Piece], cuts: Sequence[int] = ()) -> Iterator[Placed]:
    """Number the documents, count the characters, and end a piece at the first border from each of `cuts` on."""
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
