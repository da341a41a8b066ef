"""Keeps patched values on disk while they are made: one JSON line a batch, so that an interrupted call can go on.

The lines grow in a hidden file beside `out`, which gets its name when all is done. A line cut short is dropped.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselens.files import write_file


class PatchLog:
    """Where finished cells go; with no file, nowhere."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def add(self, cells: Int[Tensor, "cell axis"], values: Float[Tensor, " cell"]) -> None:
        """Write one finished batch through to the disk."""
        if self._file is not None:
            self._file.write(json.dumps({"cells": cells.tolist(), "values": values.tolist()}) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())


@contextmanager
def patch_log(out: str | Path | None, question: dict[str, Any], values: Float[Tensor, "*axes"]) -> Iterator[PatchLog]:
    """Fill `values` with what `out` holds already, and keep what is added inside the block.

    Raises:
        ValueError: the file answers another question. Says what differs.
    """
    if out is None:
        yield PatchLog(None)
        return
    out = Path(out)
    growing = out.with_name(f".{out.name}.unfinished")
    lines = [{"question": question}, *_read(growing if growing.exists() else out, question, values)]
    write_file(growing, "".join(json.dumps(line) + "\n" for line in lines).encode())
    with growing.open("a") as file:
        yield PatchLog(file)
    growing.replace(out)


def _read(path: Path, question: dict[str, Any], values: Tensor) -> list[dict[str, Any]]:
    lines = _whole_lines(path)
    if not lines:
        return []
    asked = lines[0].get("question", {})
    differing = [name for name, value in question.items() if asked.get(name) != value]
    if differing:
        name = differing[0]
        raise ValueError(
            f"{path} answers another question: its {name} is {asked.get(name)!r}, not {question[name]!r}. "
            "Choose another file, or delete it"
        )
    for line in lines[1:]:
        values[tuple(torch.tensor(line["cells"]).T)] = torch.tensor(line["values"], dtype=values.dtype)
    return lines[1:]


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            break  # cut short by the interruption
    return found
