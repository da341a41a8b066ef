"""Writes a file whole or not at all."""

import os
from pathlib import Path


def write_file(path: Path, content: bytes) -> Path:
    """Write under a temporary name in the same folder, then rename: no reader ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path
