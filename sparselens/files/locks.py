"""Locks on output folders, since two runs would overwrite each other's checkpoints and logs."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = "run.lock"


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Lock `folder` against other processes inside the block. Creates the folder if needed; removes it if left empty.

    The operating system holds the lock, so a killed run leaves none behind. A process may lock the same folder more
    than once: a command locks it for its whole run, and `post_train` again for the training. Of the processes of a
    distributed run, only the first takes the lock.

    Raises:
        ValueError: another process has locked the folder. The message says which.
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
            f"{folder} is in use by {_holder(path)}: wait until it ends or choose another folder"
        ) from error
    try:
        if outermost and os.name != "nt":  # on Windows a locked file cannot be written
            path.write_text(f"process {os.getpid()} ({Path(sys.argv[0]).name})")
        yield
    finally:
        if outermost and os.name != "nt":  # Windows cannot remove an open file; there filelock removes it later
            path.unlink(missing_ok=True)  # before the release: another process that just opened it notices
        lock.release()
        if made:
            with suppress(OSError):  # not empty
                path.parent.rmdir()


def _holder(path: Path) -> str:
    try:
        return path.read_text().strip() or "another process"
    except OSError:
        return "another process"
