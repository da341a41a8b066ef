"""Read and write files of prompt pairs: parquet, and the formats of EAP-IG, MIB and auto-circuit.

Only parquet stores positions. A broken row is an error. Heavy packages are imported only when needed.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sparselens.files.whole import write_file
from sparselens.names import unknown
from sparselens.prompts.formats import auto_circuit, eap_ig, mib, parquet
from sparselens.prompts.pairs import PromptPair

SUFFIXES = {"parquet": "parquet", "eap-ig": "csv", "mib": "jsonl", "auto-circuit": "json"}  # format -> suffix
ENDINGS = {f".{suffix}": name for name, suffix in SUFFIXES.items()}
_OTHERS: dict[str, Any] = {"parquet": parquet, "mib": mib, "auto-circuit": auto_circuit}


def read_pairs(path: str | Path, format: str, tokenizer: Any = None) -> list[PromptPair]:  # noqa: A002 - the field's word
    """The pairs in a file, from which `Task.from_records` makes a task.

    >>> task = sl.Task.from_records("greater-than", sl.read_pairs("greater_than.csv", "eap-ig", tokenizer))

    Args:
        format: parquet, eap-ig, mib or auto-circuit
        tokenizer: needed for eap-ig files, whose answers are token ids: the tokenizer of their model

    Raises:
        ValueError: the format is unknown, a column or key is missing, a row is broken, or a tokenizer is needed.
    """
    path, name = Path(path), _known(format)
    try:
        return eap_ig.read(path, tokenizer) if name == "eap-ig" else _OTHERS[name].read(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: {error}") from error


def write_pairs(
    pairs: Iterable[PromptPair],
    path: str | Path,
    format: str,  # noqa: A002 - the field's word
    *,
    tokenizer: Any = None,
    hard: Sequence[PromptPair] | None = None,
    name: str = "corrupted",
) -> Path:
    """Write pairs to a file (completely or not at all) and return its path.

    >>> sl.write_pairs(TASKS["ioi"].pairs(100), "ioi.parquet", "parquet")

    Args:
        format: parquet, eap-ig, mib or auto-circuit
        tokenizer: needed for eap-ig files, whose answers are token ids: the tokenizer of their model
        hard: pairs with the same clean prompts and another corruption, for the column `corrupted_hard` of eap-ig
        name: name of the corruption (mib) or of the dataset (parquet)

    Raises:
        ValueError: the format is unknown or cannot hold that many answers, or a tokenizer is needed.
    """
    pairs = list(pairs)
    if not pairs:
        raise ValueError("there are no pairs to write")
    known = _known(format)
    content = eap_ig.content(pairs, tokenizer, hard) if known == "eap-ig" else _OTHERS[known].content(pairs, name)
    return write_file(Path(path), content)


def _known(name: str) -> str:
    if name not in SUFFIXES:
        raise unknown("format", name, SUFFIXES)
    return name
