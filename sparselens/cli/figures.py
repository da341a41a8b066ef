"""`sparselens figures`: every figure from the numbers of a comparison, or of one model's circuit; needs no model."""

from pathlib import Path
from typing import Annotated

import typer

from sparselens.cli.options import Json
from sparselens.cli.report import opened
from sparselens.cli.table import finish, print_table


def figures(
    folder: Annotated[Path, typer.Argument(help="That `compare`, `attribute` or `Comparison.save` wrote.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the figures and tables.")],
    form: Annotated[str, typer.Option("--format", help="pdf, svg or png.")] = "pdf",
    json: Json = False,
) -> None:
    """Draw every figure of a comparison, with its table, or of one model's circuit, at the column widths of papers.

    Example: `sparselens figures pronoun/numbers --out figures --format pdf`
    """
    drawn = opened(folder).figures(out, form)
    print_table("Written", ("what", "where"), [(file.stem, file) for file in drawn])
    finish({"written": drawn}, json)
