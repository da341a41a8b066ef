"""Text made ready for a run: split, tokenized, and kept in a folder for when the run goes on."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from sparselens.files.whole import write_file, write_json
from sparselens.training.text.pieces import Piece
from sparselens.training.text.reading import Source
from sparselens.training.text.splitting import DEFAULT_SHARE, PARTS, Split, hold_out, hold_out_first, survey
from sparselens.training.text.tokens import PieceTokenizer, Tokens, mapped_tokens, write_tokens

_LONG = 8  # characters; few tokenizers have longer tokens on average


@dataclass(frozen=True)
class Corpus:
    """Tokens to train on, to steer by and to report on, mapped from disk."""

    train: Int[Tensor, " _pos"]  # underscore: each is as long as it is
    validation: Int[Tensor, " _pos"]
    test: Int[Tensor, " _pos"]
    split: Split

    @property
    def record(self) -> dict[str, Any]:
        """What `sparselens.save` keeps as `data`."""
        return asdict(self.split)


def prepare(
    source: Source,
    tokenizer: Any,
    folder: Path,
    *,
    held_out: float = DEFAULT_SHARE,
    most_held_out: int | None = None,
    enough: int | None = None,
    seed: int = 0,
    known: int | None = None,
    reuse: bool = False,
    progress: bool = True,
) -> Corpus:
    """Read a source, hold some of it out, and write its tokens to `folder`, in memory that does not grow with the text.

    Of a stream the first documents are held out, and no more is read than is `enough`.

    Args:
        held_out: share of the text, half of it for validation and half for test; unused for a stream
        most_held_out: tokens that are needed of each of them
        enough: tokens for training that are needed of a stream
        seed: of the documents that are held out
        known: tokens that the model knows
        reuse: take what `folder` holds already

    Raises:
        ValueError: the source or the tokenizer cannot be read, there is too little text, or `folder` holds other text.
    """
    asked = {
        "source": asdict(source),
        "held_out": held_out,
        "most_held_out": most_held_out,
        "enough": enough if source.stream else None,
        "seed": seed,
        "known": known,
    }
    paths = {part: folder / f"{part}.bin" for part in PARTS}

    def write() -> dict[str, Any]:
        encode = PieceTokenizer(tokenizer, known)
        split = _split(source, held_out, most_held_out, seed)
        parts = _shown(split.parts(source.pieces()), None if source.stream else split.characters, progress)
        write_tokens(parts, encode, paths, enough if source.stream else None)
        return asdict(split)

    split = Split.from_record(_kept(folder / "split.json", asked, write, reuse))
    train, validation, test = (mapped_tokens(paths[part]) for part in PARTS)
    return Corpus(train, validation, test, split)


def kept_sample(path: Path, asked: dict[str, Any], sample: Callable[[], Tokens], reuse: bool = False) -> Tokens:
    """Sampled tokens in the file `path`; sampled again only if it does not hold them or without `reuse`.

    Raises:
        ValueError: the file holds what was sampled in another way.
    """

    def write() -> None:
        write_file(path, sample().cpu().numpy().astype(np.int32).tobytes())

    _kept(path.with_suffix(".json"), asked, write, reuse)
    return mapped_tokens(path)


def _split(source: Source, held_out: float, most_held_out: int | None, seed: int) -> Split:
    most = None if most_held_out is None else _LONG * most_held_out
    if not source.stream:
        return hold_out(survey(source.pieces())[-1], held_out, seed, most)
    if most is None:
        raise ValueError("of a stream a number of tokens is held out, not a share of it: give most_held_out")
    return hold_out_first(source.pieces(), most)


def _kept(note: Path, asked: dict[str, Any], write: Callable[[], Any], reuse: bool) -> Any:
    """What `write` returned when it made the files that `note` stands for: now, or in an earlier call with `reuse`."""
    if reuse and note.exists():
        made = json.loads(note.read_text(encoding="utf-8"))
        differ = [name for name, value in asked.items() if made["asked"].get(name) != value]
        if differ:
            was = ", ".join(f"{name}={made['asked'].get(name)!r}" for name in differ)
            raise ValueError(f"{note.parent} was written with {was}; resume with the same, or choose another folder")
        return made["found"]
    note.unlink(missing_ok=True)  # first gone, last there: where it is, the files are whole
    found = write()
    write_json(note, {"asked": asked, "found": found})
    return found


def _shown(parts: Iterable[tuple[str, Piece]], total: int | None, progress: bool) -> Iterator[tuple[str, Piece]]:
    """The same parts behind a progress bar, on a terminal."""
    show = None if progress else True
    with tqdm(total=total, desc="tokenizing", unit="char", unit_scale=True, disable=show, leave=False) as bar:
        for part, piece in parts:
            yield part, piece
            bar.update(len(piece.text))
