"""Parquet files with the features of `Task.dataset`, which hold everything that a pair does."""

import io
from collections.abc import Sequence
from pathlib import Path

from sparselens.prompts.pairs import PromptPair
from sparselens.prompts.task_data import pairs_of, to_dataset


def read(path: Path) -> list[PromptPair]:
    """The pairs in a file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path).to_pylist()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a complete parquet file: {error}") from error
    return pairs_of(rows)


def content(pairs: Sequence[PromptPair], name: str) -> bytes:
    """The content of a file with these pairs."""
    file = io.BytesIO()
    to_dataset(pairs, name).to_parquet(file)
    return file.getvalue()
