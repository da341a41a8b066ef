"""Pieces of documents as token ids: in memory, or in files of four bytes a token that are mapped into memory."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sparselens.files.whole import whole_file
from sparselens.training.text.pieces import Piece, pieces_of

Tokens = Int[Tensor, " pos"]
_AT_ONCE = 2**20  # characters given to the tokenizer at once: it takes some hundred bytes a token while it works


class PieceTokenizer:
    """Token ids of pieces; those of a document's pieces, joined, are those of the document after its BOS, else EOS.

    Args:
        known: tokens that the model knows

    Raises:
        ValueError: the tokenizer has neither BOS nor EOS, or gives ids that the model does not know.
    """

    def __init__(self, tokenizer: Any, known: int | None = None) -> None:
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        if bos is None and eos is None:
            raise ValueError(
                "the tokenizer has neither a BOS nor an EOS token, with which documents begin: set its bos_token"
            )
        self.start: int = eos if bos is None else bos
        self._tokenizer, self._known = tokenizer, known
        whole, one, other = self._ids(["a b", "a", "b"])
        self._adds_space = whole == one + other  # puts one in front of every text, as SentencePiece does

    def _ids(self, texts: list[str]) -> list[list[int]]:
        given = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return given["input_ids"]

    def __call__(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """Ids of every piece, with the token in front that opens a document."""
        texts = [self._without_space(piece) for piece in pieces]
        ids = [[self.start, *ids] if piece.opens else ids for piece, ids in zip(pieces, self._ids(texts), strict=True)]
        highest = max(map(max, filter(None, ids)), default=0)
        if self._known is not None and highest >= self._known:
            raise ValueError(
                f"the model has {self._known} tokens, its tokenizer gave {highest}: the two do not belong together"
            )
        return ids

    def _without_space(self, piece: Piece) -> str:
        goes_on = self._adds_space and not piece.opens and piece.text[:1] == " " and not piece.text[1:2].isspace()
        return piece.text[1:] if goes_on else piece.text


def tokenize(documents: Iterable[str], tokenizer: Any) -> Tokens:
    """One stream of token ids, each document opened by the tokenizer's BOS, else its EOS.

    Raises:
        ValueError: the tokenizer has neither.
    """
    pieces = chain.from_iterable(map(pieces_of, documents))
    return token_stream(pieces, PieceTokenizer(tokenizer))


def token_stream(pieces: Iterable[Piece], encode: PieceTokenizer, enough: int | None = None) -> Tokens:
    """The tokens of pieces, in memory; with `enough`, the first so many and no piece read for more."""
    blocks, n = [np.empty(0, np.int32)], 0
    at_once = _AT_ONCE if enough is None else min(_AT_ONCE, 8 * enough)
    for group in _groups((("", piece) for piece in pieces), at_once):
        blocks.append(np.fromiter(chain.from_iterable(encode([piece for _, piece in group])), np.int32))
        n += len(blocks[-1])
        if enough is not None and n >= enough:
            break
    return torch.from_numpy(np.concatenate(blocks)[:enough])


def write_tokens(
    parts: Iterable[tuple[str, Piece]], encode: PieceTokenizer, paths: Mapping[str, Path], enough: int | None = None
) -> None:
    """Write the tokens of every part to its file, until the part for training has `enough`."""
    n = 0
    with ExitStack() as stack:
        files = {part: stack.enter_context(whole_file(path)) for part, path in paths.items()}
        for group in _groups(parts, _AT_ONCE):
            for (part, _), ids in zip(group, encode([piece for _, piece in group]), strict=True):
                files[part].write(np.asarray(ids, np.int32).tobytes())
                n += len(ids) if part == "train" else 0
            if enough is not None and n >= enough:
                break


def mapped_tokens(path: Path) -> Tokens:
    """The tokens of a file, read from disk where and when they are used."""
    n = path.stat().st_size // 4
    return torch.from_file(str(path), size=n, dtype=torch.int32) if n else torch.empty(0, dtype=torch.int32)


def _groups(parts: Iterable[tuple[str, Piece]], characters: int) -> Iterator[list[tuple[str, Piece]]]:
    """So many pieces together as have `characters`."""
    group: list[tuple[str, Piece]] = []
    n = 0
    for part in parts:
        group.append(part)
        n += len(part[1].text)
        if n >= characters:
            yield group
            group, n = [], 0
    if group:
        yield group
