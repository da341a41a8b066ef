"""`sparselens report`: write the report of a comparison, or of one model's circuit, from saved numbers."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sparselens.cli import options
from sparselens.cli.options import Json
from sparselens.cli.table import finish, print_table


def report(
    folder: options.Written,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The report to write. Default: report.html in the folder.")
    ] = None,
    json: Json = False,
) -> None:
    """Write the report of a comparison, or of one model's circuit, as a single HTML file that works offline.

    Example: `sparselens report stories260k/gendered_pronoun --out pronoun.html`

    Reads saved numbers; no model is loaded.
    """
    page = opened(folder).save_html(out or _inside(folder))
    print_table("Open this in a browser", ("where",), [(page,)])
    finish({"report": page}, json)


def _inside(folder: Path) -> Path:
    """The default path of the report; results in a single file have none."""
    if not folder.is_dir():
        raise ValueError(f"{folder.name} is not a folder, so the report has no default place: pass --out FILE")
    return folder / "report.html"


def opened(folder: Path) -> Any:
    """Open saved results: a comparison, or one model's attribution. Both have `figures` and `save_html`."""
    from sparselens.analyses import load_comparison
    from sparselens.analyses.comparison.attributed import is_attribution, load_attribution

    if is_attribution(folder):
        return load_attribution(folder)
    return load_comparison(folder / "numbers" if (folder / "numbers").is_dir() else folder)
