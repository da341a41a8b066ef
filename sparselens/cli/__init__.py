"""The command line: `sparselens COMMAND`.

Each command is a function in the module of the same name. `sparselens --help` imports all of these modules, so they
import torch and TransformerLens only inside their functions.
"""

import os
import sys
from importlib import import_module
from typing import Annotated

import typer
from rich.console import Console

from sparselens import __version__

COMMANDS = ("demo", "post-train", "attribute", "compare", "figures", "report", "explore", "doctor")
GROUPS = ("tasks",)  # modules whose `app` holds subcommands
FAILURE = 1


def main() -> None:
    """Run the command line. User errors print one red line; SPARSELENS_DEBUG=1 shows the traceback instead."""
    try:
        build_app()()
    except Exception as error:
        if os.environ.get("SPARSELENS_DEBUG") == "1" or not _is_explained(error):
            raise
        print_error(error)
        raise SystemExit(FAILURE) from error


def _is_explained(error: Exception) -> bool:
    """Whether the message alone tells the user what is wrong: bad input, an unusable file, or a missing package."""
    broken = getattr(sys.modules.get("safetensors"), "SafetensorError", ())  # importing it would load NumPy
    return isinstance(error, (ValueError, OSError, ImportError, broken))


def build_app() -> typer.Typer:
    """The typer application with every command in it."""
    app = typer.Typer(
        help="Turn a dense transformer into a sparse one with the same loss, and compare what the two compute.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
    )
    app.callback()(_common)
    for name in COMMANDS:
        function = name.replace("-", "_")
        app.command(name)(getattr(import_module(f"sparselens.cli.{function}"), function))
    for name in GROUPS:
        app.add_typer(import_module(f"sparselens.cli.{name}").app, name=name)
    return app


def print_error(error: Exception) -> None:
    """Print an error on standard error, joined into one line."""
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ImportError):
        message += " (`sparselens doctor` shows what is missing)"
    Console(stderr=True, markup=False, highlight=False).print(f"error: {message}", style="red", soft_wrap=True)


def _show_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit
    return wanted


def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options before the command."""
