"""One run per output folder: two runs would overwrite each other's checkpoints and logs."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = "run.lock"


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Inside the block no other process can lock `folder`, which is created if missing, and removed if left empty.

    The operating system holds the lock, so that a killed run leaves none behind. The same process may lock a folder
    more than once: a command locks it for all that it does, `post_train` for the training in it. Of processes
    launched together the first one locks the folder for all.

    Raises:
        ValueError: another process has locked the folder. Says which.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    path = Path(folder) / LOCK
    made = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, is_singleton=True)
    outermost = not lock.is_locked
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"{folder} is in use by {_holder(path)}: wait for it to end or choose another folder"
        ) from error
    try:
        if outermost:
            _sign(path, f"process {os.getpid()} ({Path(sys.argv[0]).name})")
        yield
    finally:
        if outermost and os.name != "nt":  # on Windows an open file cannot be removed; filelock does so later
            path.unlink(missing_ok=True)  # while still held: a process that opened it meanwhile sees that it is gone
        lock.release()
        if made:
            with suppress(OSError):  # it holds something now
                path.parent.rmdir()


def _sign(path: Path, holder: str) -> None:
    """Write down who holds the lock. Windows, where a locked file cannot be written, goes without."""
    if os.name != "nt":
        path.write_text(holder)


def _holder(path: Path) -> str:
    try:
        return path.read_text().strip() or "another process"
    except OSError:
        return "another process"
