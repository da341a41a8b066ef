"""The options that every command has, said once so that they read the same everywhere."""

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder for what the command writes.")]
Json = Annotated[bool, typer.Option("--json", help="End standard output with the table as one JSON object.")]
