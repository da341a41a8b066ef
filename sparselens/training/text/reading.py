"""Read text piece by piece: plain text, JSON lines or a Hugging Face dataset."""

import codecs
import gzip
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from sparselens.training.text.pieces import Piece, pieces_of, split_at_separators

_BLOCK = 2**20  # bytes read at once
_ROWS = 1000  # dataset rows read at once
_PACKED: dict[str, Any] = {".xz": lzma.open, ".gz": gzip.open}


@dataclass(frozen=True)
class Source:
    """A text file, a JSON-lines file, or a Hugging Face dataset (folder or hub id).

    A text file holds documents separated by `<|endoftext|>`; without that mark it is one document. `.xz` and `.gz`
    files are decompressed while reading.
    """

    name: str
    column: str = "text"  # the field of each JSON line or dataset row that holds the text
    split: str = "train"  # of a dataset
    stream: bool = False  # read a dataset while it downloads, and only as much as needed

    def pieces(self) -> Iterator[Piece]:
        """The pieces of all non-empty documents, in order.

        Raises:
            ValueError: the source does not exist or holds no text, a file is damaged or neither UTF-8 nor UTF-16, a row
                lacks the column, or the dataset has no such split.
        """
        path, found = Path(self.name), False
        for piece in _file_pieces(path, self.column) if path.is_file() else _pieces(_rows(self)):
            found = True
            yield piece
        if not found:
            raise ValueError(f"{self.name} holds no text")


def read_documents(source: str | Path, column: str = "text", split: str = "train") -> list[str]:
    """All documents of a source (see `Source`) that fits in memory.

    Raises:
        ValueError: as `Source.pieces`.
    """
    documents: list[list[str]] = []
    for piece in Source(str(source), column, split).pieces():
        if piece.opens:
            documents.append([])
        documents[-1].append(piece.text)
    return ["".join(parts) for parts in documents]


def _pieces(documents: Iterable[str]) -> Iterator[Piece]:
    for document in documents:
        text = document.strip()
        if text:
            yield from pieces_of(text)


def _file_pieces(path: Path, column: str) -> Iterator[Piece]:
    kind = path.with_suffix("").suffix if path.suffix in _PACKED else path.suffix
    if kind in (".jsonl", ".json"):
        return _pieces(_json_lines(path, column))
    return split_at_separators(_text_blocks(path))


def _text_blocks(path: Path) -> Iterator[str]:
    blocks = _byte_blocks(path)
    first = next(blocks, b"")
    encoding = "utf-16" if first[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    decoder = codecs.getincrementaldecoder(encoding)()
    n_bytes, n_characters = 0, 0
    for data in chain([first], blocks, [b""]):
        before = n_bytes - len(decoder.getstate()[0])  # it buffers incomplete characters
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path} is not {encoding} at byte {before + error.start}: convert it first, e.g. iconv -f LATIN1 -t "
                "UTF-8"
            ) from error
        if "\0" in text:
            raise ValueError(
                f"{path} has a NUL character at position {n_characters + text.index(chr(0))}: it is UTF-16 without a "
                "byte order mark, UTF-32, or not text; convert it first, e.g. iconv -f UTF-16LE -t UTF-8"
            )
        n_bytes, n_characters = n_bytes + len(data), n_characters + len(text)
        yield text


def _byte_blocks(path: Path) -> Iterator[bytes]:
    try:
        with _PACKED.get(path.suffix, open)(path, "rb") as file:
            while block := file.read(_BLOCK):
                yield block
    except (lzma.LZMAError, zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is not a complete {path.suffix} file: {error}") from error


def _lines(blocks: Iterable[str]) -> Iterator[str]:
    begun: list[str] = []
    for block in blocks:
        first, *others = block.split("\n")  # not splitlines: JSON strings may contain U+2028 and similar
        begun.append(first)
        for line in others:
            yield "".join(begun)
            begun = [line]
    yield "".join(begun)


def _json_lines(path: Path, column: str) -> Iterator[str]:
    for number, line in enumerate(_lines(_text_blocks(path)), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)[column]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{path}, line {number}: want a JSON object with "{column}" ({error!r})') from error
        yield _text(value, f"{path}, line {number}")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: the text is a {type(value).__name__}, want a string")
    return value.encode("utf-8", "replace").decode()  # JSON may hold lone surrogates, which tokenizers reject


def _rows(source: Source) -> Iterator[str]:
    rows = _dataset(source)
    names = rows.column_names or list(next(iter(rows), {}))  # streams may reveal their columns only in the first row
    if source.column not in names:
        raise ValueError(f"{source.name} has no column {source.column!r}; it has {names}")
    for batch in rows.select_columns([source.column]).iter(_ROWS):
        for value in batch[source.column]:
            yield _text(value, source.name)


def _dataset(source: Source) -> Any:
    import datasets

    name, path = source.name, Path(source.name)
    data: Any
    if _is_saved(path):
        data = datasets.load_from_disk(name)
    elif path.is_dir() or (name.count("/") == 1 and not name.startswith((".", "/", "~"))):  # or a hub id
        data = datasets.load_dataset(name, streaming=source.stream)
    else:
        raise ValueError(f"{name}: no such file, folder or hub dataset")
    if not isinstance(data, dict):
        return data
    if source.split not in data:
        raise ValueError(f"{name} has no split {source.split!r}; it has {sorted(data)}")
    return data[source.split]


def _is_saved(path: Path) -> bool:
    return any((path / name).exists() for name in ("dataset_info.json", "dataset_dict.json", "state.json"))
