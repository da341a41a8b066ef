"""Atomic writes: a file or folder is either complete or absent. Imports nothing heavy, such as torch."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write under a temporary name, flush to disk, then rename: readers see either the old file or the new one.

    A failure inside the block leaves only the old file.

    Raises:
        OSError: the file cannot be written, for example on a full disk. The error names the path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.unfinished")  # fixed, so that leftovers of a killed run are overwritten
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # OSError picks the subclass by errno
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path: Path, content: bytes) -> Path:
    """Write a small file atomically (`whole_file`); returns its path."""
    with whole_file(path) as file:
        file.write(content)
    return path


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Create and fill the folder that is yielded; it then takes the place of `folder`, whose old content is deleted.

    Readers see either the old folder or the new one. A failure, inside the block or while the folders are exchanged,
    leaves the old one.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        yield new
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)  # out of the temporary folder, which is about to be deleted
            raise


def same_readers(folder: Path, like: Path) -> None:
    """Give all files in the folder the permissions of `like`, a file that this process created under the user's umask.

    Needed since safetensors creates files that only their owner can read. The umask itself can only be read by setting
    it, which would affect other threads.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            shutil.copymode(like, path)


def write_json(path: Path, value: Any) -> Path:
    """Write strict JSON: no NaN or infinity, which most readers reject. Paths are written as strings."""
    return write_file(path, (json.dumps(value, indent=2, allow_nan=False, default=os.fspath) + "\n").encode())
