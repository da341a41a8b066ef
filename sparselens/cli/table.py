"""Output of the commands: tables for people, one JSON object for programs.

A command prints its tables with `print_table` and then ends with one call of `finish`. Tables and JSON go to standard
output, progress to standard error, so `sparselens ... --json | tail -n 1` is always valid JSON.
"""

import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from sparselens.files.whole import write_json

if TYPE_CHECKING:
    from sparselens.prompts.intervals import Interval


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under a title. Long cells wrap instead of being truncated, so that paths can be copied."""
    table = Table(title=title, title_justify="left", show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    Console(markup=False, highlight=False).print(table)


def warn(text: str) -> None:
    """Print one highlighted line on standard error."""
    Console(stderr=True, markup=False, highlight=False).print(text, style="yellow", soft_wrap=True)


def finite_ends(interval: "Interval") -> list[float | None]:
    """Both ends of a confidence interval; None where undefined (as for a single pair), since JSON has no NaN."""
    return [end if math.isfinite(end) else None for end in (interval.low, interval.high)]


def with_interval(mean: float, ends: Sequence[float | None], digits: int) -> str:
    """A mean and its interval, such as "0.93 [0.86, 0.97]"; without the interval where it is undefined."""
    known = [f"{end:.{digits}f}" for end in ends if end is not None]
    return f"{mean:.{digits}f}" + (f" [{', '.join(known)}]" if len(known) == len(ends) else "")


def finish(table: Mapping[str, object], json: bool, file: Path | None = None) -> None:
    """End a command: write its result to `file`, if given, and with `--json` print it as the last line."""
    if file is not None:
        write_json(file, table)
    if json:
        print(dumps(table, allow_nan=False, default=os.fspath))  # noqa: T201 - the line that programs read
        sys.stdout.flush()
