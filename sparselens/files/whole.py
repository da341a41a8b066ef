"""Files that are either whole or absent. Loads neither torch nor anything else heavy."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write under a temporary name, flush to disk, then rename: a reader sees the old file or the new one.

    A failure inside the block leaves the old file, and nothing else.

    Raises:
        OSError: the file cannot be written, as on a full disk. Names the path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.unfinished")  # one name: what a killed run left is overwritten
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # of the subclass that belongs to the number
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path: Path, content: bytes) -> Path:
    """Write a small file as `whole_file` does; returns its path."""
    with whole_file(path) as file:
        file.write(content)
    return path


def same_readers(folder: Path, like: Path) -> None:
    """Give all files in the folder the mode of one that this process wrote: what the user's umask says.

    safetensors writes under a temporary name that nobody else may read, and leaves it so. The umask itself can only be
    read by setting it, which other threads would see.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            shutil.copymode(like, path)


def write_json(path: Path, value: Any) -> Path:
    """Strict JSON, since most readers refuse NaN and infinity too. Paths are written as strings."""
    return write_file(path, (json.dumps(value, indent=2, allow_nan=False, default=os.fspath) + "\n").encode())
