"""Progress bars that disappear when done; in a log file, only those that take more than half a minute appear."""

import os
import sys
from typing import Any

from tqdm import tqdm

SELDOM = 30.0  # seconds between updates in a log file


def is_watched() -> bool:
    """Whether standard error is a terminal or a notebook rather than a log file."""
    return sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel.")


def progress_bar(
    total: int | None, label: str | None, unit: str, shown: bool = True, delay: float = 0.0
) -> "tqdm[Any]":
    """A bar with the remaining time on standard error; it appears after `delay` seconds."""
    often: dict[str, Any] = {"delay": delay} if is_watched() else {"delay": max(delay, SELDOM), "mininterval": SELDOM}
    disable = not shown or os.environ.get("RANK", "0") != "0"  # only the first process of a distributed run shows it
    return tqdm(total=total, desc=label, unit=unit, disable=disable, leave=False, dynamic_ncols=True, **often)
