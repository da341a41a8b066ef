"""What a command prints and writes: a table for people, one JSON object for programs.

A command ends with `print_table`, as often as it has tables, and then with one `finish`. Tables and the JSON object
go to standard output, progress to standard error, so that `sparselens ... --json | tail -n 1` is always valid JSON.
"""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from json import dumps
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sparselens.files.whole import write_json


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under a title. Long cells fold instead of being cut, so that a path can always be copied."""
    table = Table(title=title, title_justify="left", show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    Console(markup=False, highlight=False).print(table)


def warn(text: str) -> None:
    """Print one line on standard error that stands out from the progress there."""
    Console(stderr=True, markup=False, highlight=False).print(text, style="yellow", soft_wrap=True)


def finish(table: Mapping[str, object], json: bool, file: Path | None = None) -> None:
    """End a command: write its result to `file` if there is one, and print it as the last line with `--json`."""
    if file is not None:
        write_json(file, table)
    if json:
        print(dumps(table, allow_nan=False, default=os.fspath))  # noqa: T201 - the line that programs read
        sys.stdout.flush()
