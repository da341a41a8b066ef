"""Tokenize pieces of documents: in memory, or to memory-mapped files of four bytes per token."""

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
_AT_ONCE = 2**20  # characters to tokenize at once: the tokenizer needs about a hundred bytes per token


class PieceTokenizer:
    """Tokenizes pieces so that, joined, they have the tokens of the whole document, after BOS (or EOS, without BOS).

    Args:
        known: size of the model's vocabulary

    Raises:
        ValueError: the tokenizer has neither BOS nor EOS, or returns ids outside the model's vocabulary.
    """

    def __init__(self, tokenizer: Any, known: int | None = None) -> None:
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        if bos is None and eos is None:
            raise ValueError(
                "the tokenizer has neither a BOS nor an EOS token to begin documents with: set its bos_token"
            )
        self.start: int = eos if bos is None else bos
        self._tokenizer, self._known = tokenizer, known
        whole, one, other = self._ids(["a b", "a", "b"])
        self._adds_space = whole == one + other  # it prefixes every text with a space, as SentencePiece does

    def _ids(self, texts: list[str]) -> list[list[int]]:
        given = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return given["input_ids"]

    def __call__(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """Token ids of every piece; documents begin with the start token."""
        texts = [self._without_space(piece) for piece in pieces]
        ids = [[self.start, *ids] if piece.opens else ids for piece, ids in zip(pieces, self._ids(texts), strict=True)]
        highest = max(map(max, filter(None, ids)), default=0)
        if self._known is not None and highest >= self._known:
            raise ValueError(
                f"the tokenizer returned token {highest}, but the model has only {self._known}: they do not match"
            )
        return ids

    def _without_space(self, piece: Piece) -> str:
        continues = self._adds_space and not piece.opens and piece.text[:1] == " " and not piece.text[1:2].isspace()
        return piece.text[1:] if continues else piece.text


def tokenize(documents: Iterable[str], tokenizer: Any) -> Tokens:
    """One stream of token ids, in which each document begins with the tokenizer's BOS, or EOS if it has no BOS.

    Raises:
        ValueError: the tokenizer has neither.
    """
    pieces = chain.from_iterable(map(pieces_of, documents))
    return token_stream(pieces, PieceTokenizer(tokenizer))


def token_stream(pieces: Iterable[Piece], encode: PieceTokenizer, enough: int | None = None) -> Tokens:
    """The tokens of pieces, in memory; with `enough`, only that many, and reading stops early."""
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
    """Write the tokens of every part to its file, until the training part has `enough` tokens."""
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
    """The tokens of a file, memory-mapped."""
    n = path.stat().st_size // 4
    return torch.from_file(str(path), size=n, dtype=torch.int32) if n else torch.empty(0, dtype=torch.int32)


def _groups(parts: Iterable[tuple[str, Piece]], characters: int) -> Iterator[list[tuple[str, Piece]]]:
    """Groups of pieces with at least `characters` characters each."""
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
