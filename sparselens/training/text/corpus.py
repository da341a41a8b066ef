"""Prepare text for a run: split and tokenize it, and keep the tokens in a folder for when the run is resumed."""

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

_LONG = 8  # characters; tokens are rarely longer on average


@dataclass(frozen=True)
class Corpus:
    """Tokens for training, validation (steers the run) and test (final report), mapped from disk."""

    train: Int[Tensor, " _pos"]  # underscore: their lengths differ
    validation: Int[Tensor, " _pos"]
    test: Int[Tensor, " _pos"]
    split: Split

    @property
    def record(self) -> dict[str, Any]:
        """The split as plain data: the argument `data` of `sparselens.save`."""
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
    """Read a source, hold some of it out, and write its tokens to `folder`, in constant memory.

    From a stream, the first documents are held out, and reading stops once there is `enough` text.

    Args:
        held_out: share of the text, half of it for validation and half for test; unused for a stream
        most_held_out: number of tokens needed for validation, and again for test
        enough: number of training tokens needed, if the source is a stream
        seed: for the choice of held-out documents
        known: size of the model's vocabulary
        reuse: use the tokens that are already in `folder`

    Raises:
        ValueError: the source or the tokenizer cannot be used, there is too little text, or `folder` holds other text.
    """
    settings = {
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
        parts = _with_progress(split.parts(source.pieces()), None if source.stream else split.characters, progress)
        write_tokens(parts, encode, paths, enough if source.stream else None)
        return asdict(split)

    split = Split.from_record(_kept(folder / "split.json", settings, write, reuse))
    train, validation, test = (mapped_tokens(paths[part]) for part in PARTS)
    return Corpus(train, validation, test, split)


def kept_sample(path: Path, settings: dict[str, Any], sample: Callable[[], Tokens], reuse: bool = False) -> Tokens:
    """Sampled tokens, stored in the file `path`; with `reuse`, an existing file is used instead of sampling again.

    Raises:
        ValueError: the file was sampled with other settings.
    """

    def write() -> None:
        write_file(path, sample().cpu().numpy().astype(np.int32).tobytes())

    _kept(path.with_suffix(".json"), settings, write, reuse)
    return mapped_tokens(path)


def _split(source: Source, held_out: float, most_held_out: int | None, seed: int) -> Split:
    most = None if most_held_out is None else _LONG * most_held_out
    if not source.stream:
        return hold_out(survey(source.pieces())[-1], held_out, seed, most)
    if most is None:
        raise ValueError("a share of a stream cannot be held out: pass most_held_out, a number of tokens")
    return hold_out_first(source.pieces(), most)


def _kept(note: Path, settings: dict[str, Any], write: Callable[[], Any], reuse: bool) -> Any:
    """Write files and return the result of `write`, or with `reuse` return the result of an earlier call.

    The file `note` holds settings and result. It is deleted first and written last: if it exists, the files are whole.
    """
    if reuse and note.exists():
        made = json.loads(note.read_text(encoding="utf-8"))
        differ = [name for name, value in settings.items() if made["asked"].get(name) != value]
        if differ:
            was = ", ".join(f"{name}={made['asked'].get(name)!r}" for name in differ)
            raise ValueError(f"{note.parent} was written with {was}: resume with the same, or choose another folder")
        return made["found"]
    note.unlink(missing_ok=True)
    result = write()
    write_json(note, {"asked": settings, "found": result})
    return result


def _with_progress(
    parts: Iterable[tuple[str, Piece]], total: int | None, progress: bool
) -> Iterator[tuple[str, Piece]]:
    """Pass through the parts while showing a progress bar."""
    hide = None if progress else True  # None: only without a terminal
    with tqdm(total=total, desc="tokenizing", unit="char", unit_scale=True, disable=hide, leave=False) as bar:
        for part, piece in parts:
            yield part, piece
            bar.update(len(piece.text))
