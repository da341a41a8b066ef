"""Options shared by several commands, so that they read the same everywhere and are checked before torch loads."""

import os
from collections.abc import Callable, Collection
from contextlib import ExitStack, redirect_stdout
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from sparselens.names import unknown
from sparselens.tasks import TASKS

# Copies of lists in the analyses, since importing those would load torch; a test checks that they are equal.
METHODS = ("eap", "eap-ig", "eap-ig-activations", "clean-corrupted", "exact", "auto")
GATE_GRADIENTS = ("none", "straight-through")
METRICS = ("logit_difference", "probability_difference", "answer_probability", "rank", "accuracy", "kl_divergence")
ABLATIONS = ("corrupted", "mean", "zero")
FORMS = ("pdf", "svg", "png")
PARTS = ("attention", "qk", "all")
CLUSTERS = ("prompt", "answer")
_SHIPPED = Path(__file__).resolve().parents[1] / "models" / "shipped"


def one_of(kind: str, known: Collection[str]) -> Callable[[Any], Any]:
    """A callback that accepts only known values of an option."""

    def check(value: Any) -> Any:
        for name in value if isinstance(value, (list, tuple)) else [value]:
            if name is not None and name not in known:
                raise unknown(kind, name, known)
        return value

    return check


def share_of(name: str) -> Callable[[Any], Any]:
    """A callback that accepts numbers above 0 and at most 1."""

    def check(value: Any) -> Any:
        if not 0 < value <= 1:
            raise ValueError(f"{name} must be above 0 and at most 1, not {value}")
        return value

    return check


def at_least(name: str, least: int) -> Callable[[Any], Any]:
    """A callback that accepts None and numbers of at least `least`."""

    def check(value: Any) -> Any:
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")
        return value

    return check


def known_model(name: Any) -> Any:
    """Reject missing folders and names that look like a misspelt shipped model; other names may be hub ids."""
    if name is None or Path(name).exists():
        return name
    shipped = sorted(folder.name for folder in _SHIPPED.iterdir())
    if name not in shipped and get_close_matches(name, shipped, 1, 0.8):
        raise unknown("model", name, (*shipped, "a folder, or a hub id"))
    if name.startswith((".", "/", "~")):
        raise ValueError(f"no such folder: {name}")
    return name


def written(folder: Any) -> Any:
    """Reject anything that is neither an existing path nor a shipped comparison."""
    if folder.exists():
        return folder
    from sparselens.analyses.comparison.places import find  # loads nothing heavy

    return find(folder.as_posix())


def known_task(value: Any) -> Any:
    """Reject anything that is neither a task of the library nor a file."""
    for name in value if isinstance(value, (list, tuple)) else [value]:
        if name is not None and name not in TASKS and not Path(name).is_file():
            raise unknown("task", name, (*TASKS, "a file of pairs"))
    return value


Task = Annotated[
    str,
    typer.Option(
        help="A task listed by `sparselens tasks`, or a file of pairs (.jsonl, .json, .parquet).", callback=known_task
    ),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(help="Only this task (or file of pairs); can be repeated. Default: all tasks.", callback=known_task),
]
Model = Annotated[
    str, typer.Option(help="A folder, a shipped model (such as stories260k-sparse) or a hub id.", callback=known_model)
]
Base = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Base model for adapters, if different from the one named in them.",
        callback=known_model,
    ),
]
Form = Annotated[
    str,
    typer.Option(
        "--format", help="File format of the figures: pdf, svg or png.", callback=one_of("form of a figure", FORMS)
    ),
]
Written = Annotated[
    Path,
    typer.Argument(
        help="Folder or file written by `compare`, `attribute` or `Comparison.save`, or a shipped comparison such as "
        "stories260k/gendered_pronoun.",
        callback=written,
    ),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder for the results.")]
Method = Annotated[
    str,
    typer.Option(
        help="Edge attribution method: eap, eap-ig, eap-ig-activations, clean-corrupted, exact (slow), or auto (exact "
        "for graphs of at most 1,000 edges, else eap-ig).",
        callback=one_of("method", METHODS),
    ),
]
GateGradient = Annotated[
    str,
    typer.Option(
        help="Gradient through the hard gates in attribution: none, or straight-through (as in training).",
        callback=one_of("gate gradient", GATE_GRADIENTS),
    ),
]
Steps = Annotated[int, typer.Option(min=1, help="Integration steps of eap-ig and eap-ig-activations.")]
Corruption = Annotated[str | None, typer.Option(help="How to corrupt prompts. Default: the task's first corruption.")]
Metric = Annotated[
    str | None,
    typer.Option(
        help="Metric, by its name in sparselens.prompts.metrics. Default: the task's.",
        callback=one_of("metric", METRICS),
    ),
]
Share = Annotated[
    float,
    typer.Option(
        help="Share of the sum of |score| that the circuit chosen by the paper's rule must hold.",
        callback=share_of("share"),
    ),
]
Goal = Annotated[
    float,
    typer.Option(help="Faithfulness that the found and pruned circuits must reach.", callback=share_of("goal")),
]
PruneRuns = Annotated[
    int | None,
    typer.Option(
        "--prune-runs",
        min=0,
        help="Maximum number of runs to prune a circuit. Default: 400, or 120 for large graphs; 0: no pruning.",
    ),
]
Ablation = Annotated[
    str,
    typer.Option(
        help="What replaces everything outside a circuit: corrupted, mean or zero.",
        callback=one_of("ablation", ABLATIONS),
    ),
]
Seed = Annotated[int, typer.Option(help="Random seed for drawing prompts.")]
BatchSize = Annotated[
    int | None,
    typer.Option(
        help="Prompts per run. Default: 64 for small models, else set by --memory.",
        callback=at_least("--batch-size", 1),
    ),
]
Memory = Annotated[
    float | None,
    typer.Option(help="GiB of memory to use in addition to the model; one prompt is measured first. Default: 1."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the results as one JSON object on the last line.")]


def budget(memory: float | None, batch_size: int | None) -> dict[str, Any]:
    """Memory and batch size as keyword arguments of an analysis, which takes bytes instead of GiB."""
    return {"memory": None if memory is None else int(memory * 2**30), "batch_size": batch_size}


def over_launched_processes(command: Callable[..., None]) -> Callable[..., None]:
    """Split a command's prompts over the processes of `accelerate launch` or torchrun; only the first one prints."""

    @wraps(command)
    def run(*args: Any, **options: Any) -> None:
        with ExitStack() as stack:
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                from sparselens.analyses.engine.processes import over_processes

                is_main = stack.enter_context(over_processes())
                if not is_main:
                    stack.enter_context(redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
            command(*args, **options)

    return run


def alone_in_out(command: Callable[..., None]) -> Callable[..., None]:
    """Make a command fail if another process is using the folder `out`."""

    @wraps(command)
    def run(*args: Any, out: Path, **options: Any) -> None:
        from sparselens.files.locks import locked

        with locked(out):
            command(*args, out=out, **options)

    return run
