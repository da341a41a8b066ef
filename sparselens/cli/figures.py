"""`sparselens figures`: every figure of the paper from the numbers of a comparison; needs no model."""

from pathlib import Path
from typing import Annotated

import typer

from sparselens.cli.options import Json
from sparselens.cli.table import finish, print_table


def figures(
    comparison: Annotated[Path, typer.Argument(help="Folder that `compare` or `Comparison.save` wrote.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the figures and tables.")],
    form: Annotated[str, typer.Option("--format", help="pdf, svg or png.")] = "pdf",
    json: Json = False,
) -> None:
    """Draw every figure of a comparison at the column widths of papers, and write its table.

    Example: `sparselens figures pronoun/numbers --out figures --format pdf`
    """
    from sparselens.analyses import load_comparison

    folder = comparison / "numbers" if (comparison / "numbers").is_dir() else comparison
    drawn = load_comparison(folder).figures(out, form)
    print_table("Written", ("what", "where"), [(file.stem, file) for file in drawn])
    finish({"written": drawn}, json)
