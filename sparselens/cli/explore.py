"""`sparselens explore`: ablate parts of a model in the browser and see its predictions change."""

import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparselens.cli.models import bases, load_beside
from sparselens.cli.options import Base, Json, Model, known_model
from sparselens.cli.table import finish, print_table

if TYPE_CHECKING:
    from sparselens.analyses.figures.explore.server import Server


def explore(
    model: Model,
    dense: Annotated[
        str | None,
        typer.Option(help="A second model, shown above the first; cuts apply to both.", callback=known_model),
    ] = None,
    base: Base = None,
    prompt: Annotated[str, typer.Option(help="Initial prompt; it can be changed in the page.")] = "",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1. Default: any free one.")] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address; open no browser.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder for the last state: explore.json and explore.html."),
    ] = None,
    json: Json = False,
) -> None:
    """Cut attention edges, heads, MLPs and tokens of a model by clicking, and see how its predictions change.

    Example: `sparselens explore --model stories260k-sparse --prompt "Lily saw a big dog. She was"`

    Serves one page on this machine (127.0.0.1) until Ctrl-C. Anyone with the printed address can use it. With
    `--out DIR` the last state is then written to `DIR/explore.json`, which the page can import, and
    `DIR/explore.html`, a page to share.
    """
    from sparselens.analyses.figures.explore.server import Server

    with Server(port) as server:
        found = _open(model, dense, base, prompt)
        print_table("Open this in a browser; Ctrl-C stops the server", ("where",), [(server.address,)])
        if not no_browser:
            webbrowser.open(server.address)
        _serve(server, found)
    if out is not None:
        print_table("Written", ("where",), [(found.save_html(out / "explore.html"),), (out / "explore.json",)])
    finish(found.shared, json, None if out is None else out / "explore.json")


def _open(model: str, dense: str | None, base: str | None, prompt: str) -> Any:
    from sparselens.analyses.figures.explore.session import explore
    from sparselens.models.folder import load

    of = bases(base, model, dense)
    if dense is None:
        return explore(load(model, **of[model]), None, prompt, title=model)
    other = load(dense, **of[dense])
    return explore(load_beside(dense, model, of[model]), other, prompt, title=f"{model} and {dense}")


def _serve(server: "Server", found: Any) -> None:
    """Serve until Ctrl-C, which is the normal way to stop."""
    try:
        server.serve(found)
    except KeyboardInterrupt:
        return
