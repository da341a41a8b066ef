"""`sparselens report`: the page about a comparison, or about one model's circuit, from its folder; needs no model."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sparselens.cli import options
from sparselens.cli.options import Json
from sparselens.cli.table import finish, print_table


def report(
    folder: options.Written,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page. Default: report.html in the folder.")
    ] = None,
    json: Json = False,
) -> None:
    """Write the report of a comparison, or of one model's circuit, as one file that needs no network.

    Example: `sparselens report stories260k/gendered_pronoun --out pronoun.html`
    """
    page = opened(folder).save_html(out or _inside(folder))
    print_table("Open this in a browser", ("where",), [(page,)])
    finish({"report": page}, json)


def _inside(folder: Path) -> Path:
    """In the folder that the page is about, and never over a file elsewhere."""
    if not folder.is_dir():
        raise ValueError(f"{folder.name} is no folder that a report could be written to: give --out FILE")
    return folder / "report.html"


def opened(folder: Path) -> Any:
    """What a command wrote to a folder: a comparison, or one model's attribution; both draw and report themselves."""
    from sparselens.analyses import load_comparison
    from sparselens.analyses.comparison.attributed import is_attribution, load_attribution

    if is_attribution(folder):
        return load_attribution(folder)
    return load_comparison(folder / "numbers" if (folder / "numbers").is_dir() else folder)
