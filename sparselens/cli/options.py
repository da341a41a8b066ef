"""The options that every command has, said once so that they read the same everywhere."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder for what the command writes.")]
Json = Annotated[bool, typer.Option("--json", help="End standard output with the table as one JSON object.")]


def alone_in_out(command: Callable[..., None]) -> Callable[..., None]:
    """Make a command refuse a folder `out` in which another process is at work."""

    @wraps(command)
    def run(*args: Any, out: Path, **options: Any) -> None:
        from sparselens.files.locks import locked

        with locked(out):
            command(*args, out=out, **options)

    return run
