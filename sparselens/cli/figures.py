"""`sparselens figures`: draw the figures of a comparison, or of one model's circuit, from saved numbers."""

from pathlib import Path
from typing import Annotated

import typer

from sparselens.cli import options
from sparselens.cli.options import Json
from sparselens.cli.report import opened
from sparselens.cli.table import finish, print_table


def figures(
    folder: options.Written,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the figures and tables.")],
    form: options.Form = "pdf",
    json: Json = False,
) -> None:
    """Draw all figures of a comparison (and its tables), or of one model's circuit, at the column widths of papers.

    Example: `sparselens figures pronoun/numbers --out figures --format pdf`

    Reads saved numbers; no model is loaded.
    """
    drawn = opened(folder).figures(out, form)
    print_table("Written", ("what", "where"), [(file.stem, file) for file in drawn])
    finish({"written": drawn}, json)
