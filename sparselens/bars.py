"""Progress bars that disappear when done; in a log only those of more than half a minute show."""

import os
import sys
from typing import Any

from tqdm import tqdm

SELDOM = 30.0  # seconds between two updates in a log


def is_watched() -> bool:
    """Is standard error a terminal or a notebook, rather than a log?"""
    return sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel.")


def progress_bar(
    total: int | None, label: str | None, unit: str, shown: bool = True, delay: float = 0.0
) -> "tqdm[Any]":
    """A bar with the time left, on standard error; it appears after `delay` seconds."""
    often: dict[str, Any] = {"delay": delay} if is_watched() else {"delay": max(delay, SELDOM), "mininterval": SELDOM}
    disable = not shown or os.environ.get("RANK", "0") != "0"  # the first process reports
    return tqdm(total=total, desc=label, unit=unit, disable=disable, leave=False, dynamic_ncols=True, **often)
