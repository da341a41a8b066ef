"""Find text that models have not seen, according to the records saved with them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from sparselens.training.text.pieces import Piece, place
from sparselens.training.text.reading import Source
from sparselens.training.text.splitting import Split, hold_out, survey
from sparselens.training.text.tokens import PieceTokenizer, Tokens, token_stream


def unseen_tokens(
    source: Source, tokenizer: Any, records: Mapping[str, Mapping[str, Any] | None], enough: int
) -> tuple[Tokens, list[str]]:
    """Up to `enough` tokens of a source on which no model was trained or selected, and caveats.

    Args:
        records: the split saved with each model (`Corpus.record`), by model name; None: unknown

    Raises:
        ValueError: the source, the tokenizer or a record cannot be used.
    """
    known = {name: Split.from_record(record) for name, record in records.items() if record is not None}
    if len(known) == len(records) and any(split.stream for split in known.values()):
        source = replace(source, stream=True)
    at = {split.documents for split in known.values()}
    found = survey(_first(source.pieces(), max(at)) if source.stream else source.pieces(), at)
    texts = {text.documents: text.sha256 for text in found}
    splits = {name: split for name, split in known.items() if texts.get(split.documents) == split.sha256}
    notes = [_OTHER.format(name=name) for name in known if name not in splits]
    for name in [name for name, record in records.items() if record is None]:
        splits[name] = hold_out(found[-1])
        notes.append(_ASSUMED.format(name=name))
    pieces = source.pieces()
    if source.stream and splits:
        pieces = _first(pieces, max(at))  # everything after them was for training
    return token_stream(_unseen(pieces, list(splits.values())), PieceTokenizer(tokenizer), enough), notes


_OTHER = (
    "According to its record, the {name} model was post-trained on a different text; all of the text that the loss is "
    "measured on counts as unseen by it."
)
_ASSUMED = (
    "The {name} model has no record of its training text: the loss is measured on the text that post-train holds out "
    "by default, which it may have been trained on."
)


def _unseen(pieces: Iterable[Piece], splits: list[Split]) -> Iterator[Piece]:
    cuts = sorted({cut for split in splits for cut in split.cuts})
    for placed in place(pieces, cuts):
        if all(split.part_of(placed) == "test" for split in splits):
            yield placed.piece


def _first(pieces: Iterable[Piece], documents: int) -> Iterator[Piece]:
    """The pieces of the first `documents` documents."""
    for piece in pieces:
        documents -= piece.opens
        if documents < 0:
            return
        yield piece
