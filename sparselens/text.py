"""From text to token batches: read documents, hold some out, tokenize, cut into rows, sample more from a model."""

import gzip
import json
import lzma
import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from sparselens.gates import seed_from

SEPARATOR = "<|endoftext|>"  # between the documents of a plain text file
Tokens = Int[Tensor, " pos"]
Rows = Int[Tensor, "_batch _pos"]  # underscores: the last of a list may be shorter


def read_documents(source: str | Path, column: str = "text") -> list[str]:
    """The documents of a text file, a JSON-lines file, or a Hugging Face dataset (folder or hub id).

    A text file holds documents separated by `<|endoftext|>`; without that mark it is one document. `.xz` and `.gz` are
    opened as they are.

    Args:
        column: the field of each JSON line or dataset row that holds the text

    Raises:
        ValueError: nothing is there, the file is empty or damaged, not UTF-8 or UTF-16, or a row lacks the column.
    """
    path = Path(source)
    if path.is_file():
        kind = path.with_suffix("").suffix if path.suffix in (".xz", ".gz") else path.suffix
        text = _decode(path)
        documents = _json_lines(path, text, column) if kind in (".jsonl", ".json") else text.split(SEPARATOR)
    else:
        documents = _dataset(str(source), column)
    documents = [document.strip() for document in documents if document.strip()]
    if not documents:
        raise ValueError(f"{source} holds no text")
    return documents


def _decode(path: Path) -> str:
    data = _unpacked(path)
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not {encoding} at byte {error.start}; convert it first, e.g. iconv -f LATIN1 -t UTF-8"
        ) from error
    if "\0" in text:
        raise ValueError(
            f"{path} holds a NUL character at position {text.index(chr(0))}: it is UTF-16 without a byte order mark, "
            "UTF-32, or no text; convert it first, e.g. iconv -f UTF-16LE -t UTF-8"
        )
    return text


def _unpacked(path: Path) -> bytes:
    opener: Any = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    try:
        with opener(path, "rb") as file:
            return file.read()
    except (lzma.LZMAError, zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is not a whole {path.suffix} file: {error}") from error


def _json_lines(path: Path, text: str, column: str) -> list[str]:
    documents: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON strings may hold U+2028 and its like
        if not line.strip():
            continue
        try:
            value = json.loads(line)[column]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{path}, line {number}: want a JSON object with "{column}" ({error!r})') from error
        documents.append(_text(value, f"{path}, line {number}"))
    return documents


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: the text is a {type(value).__name__}, want a string")
    return value.encode("utf-8", "replace").decode()  # JSON can spell lone surrogates, which no tokenizer takes


def _dataset(source: str, column: str) -> list[str]:
    import datasets

    path = Path(source)
    if path.is_dir():
        data = datasets.load_from_disk(source) if _is_saved(path) else datasets.load_dataset(source)
    elif source.count("/") == 1 and not source.startswith((".", "/", "~")):
        data = datasets.load_dataset(source)  # a hub id that the caller named
    else:
        raise ValueError(f"{source}: no such file, folder or hub dataset")
    if isinstance(data, dict) and "train" not in data:
        raise ValueError(f"{source} has no split 'train'; it has {sorted(data)}")
    rows: Any = data["train"] if isinstance(data, dict) else data
    if column not in rows.column_names:
        raise ValueError(f"{source} has no column {column!r}; it has {rows.column_names}")
    return [_text(value, source) for value in rows[column]]


def _is_saved(path: Path) -> bool:
    return any((path / name).exists() for name in ("dataset_info.json", "dataset_dict.json", "state.json"))


@dataclass(frozen=True)
class Split:
    """Documents to train on, to steer by (validation), and to report on (test)."""

    train: list[str]
    validation: list[str]
    test: list[str]


def split_documents(documents: Sequence[str], held_out: float = 0.1, seed: int = 0) -> Split:
    """Hold out whole documents: half of `held_out` for validation, half for test. One long text is cut by position.

    Raises:
        ValueError: too little text for three parts, or a share outside (0, 1).
    """
    if not 0 < held_out < 1:
        raise ValueError(f"the held-out share must be between 0 and 1, not {held_out}")
    if len(documents) < 20:  # too few to hold out whole ones: cut into pieces of equal length
        whole = "\n".join(documents)
        size = max(1, len(whole) // 200)
        documents = [whole[start : start + size] for start in range(0, len(whole), size)]
    else:
        documents = random.Random(seed).sample(list(documents), len(documents))
    n = max(1, round(len(documents) * held_out / 2))
    if len(documents) < 3 * n:
        raise ValueError(f"{len(documents)} documents are too few to hold out {held_out:.0%} twice")
    return Split(list(documents[2 * n :]), list(documents[:n]), list(documents[n : 2 * n]))


def tokenize(documents: Iterable[str], tokenizer: Any) -> Tokens:
    """One stream of token ids, each document opened by the tokenizer's BOS, else its EOS, else nothing."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    first = [] if start is None else [start]
    ids = tokenizer(list(documents), add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor([token for document in ids for token in (*first, *document)], dtype=torch.long)


def rows(tokens: Tokens, seq_len: int, batch_size: int) -> list[Rows]:
    """All whole rows of `seq_len` tokens in order, as batches; the rest of the last row is left out.

    Raises:
        ValueError: there is not one whole row, or no row in a batch.
    """
    _need_rows(seq_len, batch_size)
    n = len(tokens) // seq_len
    if n == 0:
        raise ValueError(f"{len(tokens)} tokens do not fill one row of {seq_len}; give more text or a shorter seq_len")
    return list(tokens[: n * seq_len].view(n, seq_len).split(batch_size))


def _need_rows(seq_len: int, batch_size: int) -> None:
    if batch_size < 1 or seq_len < 2:
        raise ValueError(f"want one row or more of two tokens or more in a batch, not {batch_size} x {seq_len}")


class TokenBatches:
    """Endless training batches of rows cut from a token stream: a function from the batch's index to the batch.

    Every pass over the stream cuts it at another offset and shuffles the rows, seeded by (seed, pass); so batch i is
    always the same and a resumed run needs nothing but i.
    """

    def __init__(self, tokens: Tokens, seq_len: int, batch_size: int, seed: int = 0) -> None:
        _need_rows(seq_len, batch_size)
        self._tokens, self._seq_len, self._batch_size, self._seed = tokens, seq_len, batch_size, seed
        self._per_pass = (len(tokens) // seq_len - 1) // batch_size
        if self._per_pass < 1:
            raise ValueError(
                f"{len(tokens)} tokens are too few for one batch of {batch_size} x {seq_len}: give more text, or a "
                "smaller batch_size or seq_len"
            )
        self._rows = lru_cache(maxsize=1)(self._cut)

    def _cut(self, number: int) -> Int[Tensor, "row pos"]:
        generator = torch.Generator().manual_seed(seed_from(self._seed, number))
        offset = int(torch.randint(self._seq_len, (), generator=generator))
        n = self._per_pass * self._batch_size
        table = self._tokens[offset : offset + n * self._seq_len].view(n, self._seq_len)
        return table[torch.randperm(n, generator=generator)]

    def __call__(self, index: int) -> Int[Tensor, "batch pos"]:
        """Batch number `index`."""
        number, place = divmod(index, self._per_pass)
        return self._rows(number)[place * self._batch_size : (place + 1) * self._batch_size]


@dataclass(frozen=True)
class MixedBatches:
    """Rows of several sources in every batch."""

    sources: Sequence[TokenBatches]

    def __call__(self, index: int) -> Int[Tensor, "batch pos"]:
        """Batch `index` of every source, joined."""
        return torch.cat([source(index) for source in self.sources])


@torch.no_grad()
def sample_tokens(
    model: nn.Module, n_tokens: int, start: int, length: int = 256, batch_size: int = 256, seed: int = 0
) -> Tokens:
    """Text written by a transformers model itself, at temperature 1 from token `start`: rows of `length`, joined.

    Small corpora are soon learnt by heart; the model's own text never ends, and the model is right about it.
    """
    generate: Any = model.generate
    config: Any = model.config
    length = min(length, getattr(config, "max_position_embeddings", length))
    batch_size = min(batch_size, -(-n_tokens // length))
    pieces: list[Tensor] = []
    with torch.random.fork_rng(range(torch.cuda.device_count())), _fast_attention(model):
        torch.manual_seed(seed)
        while sum(piece.numel() for piece in pieces) < n_tokens:
            prompt = torch.full((batch_size, 1), start, device=next(model.parameters()).device)
            pieces.append(_sample(generate, prompt, length))
    return torch.cat(pieces).flatten()[:n_tokens].cpu()


@contextmanager
def _fast_attention(model: Any) -> Iterator[None]:
    """Token by token torch's own attention takes half the time of the eager one, which copies keys and values."""
    before = model.config._attn_implementation
    if before != "eager" or not model._supports_sdpa:
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _sample(generate: Any, prompt: Tensor, length: int) -> Tensor:
    return generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=length - 1,
        min_new_tokens=length - 1,
        do_sample=True,
        top_k=0,
        top_p=1.0,
        temperature=1.0,
        pad_token_id=0,
    )
