"""The options that several commands share, so that they read the same everywhere."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder for what the command writes.")]
Method = Annotated[
    str,
    typer.Option(
        help="Edge attribution: eap, eap-ig, eap-ig-activations, clean-corrupted, exact (slow), or auto: exact for "
        "graphs of at most 1,000 edges, else eap-ig."
    ),
]
GateGradient = Annotated[
    str,
    typer.Option(help="Of hard gates, in attribution: none (as they are) or straight-through (as in training)."),
]
Steps = Annotated[int, typer.Option(help="Steps of the integrated methods.")]
Corruption = Annotated[str | None, typer.Option(help="How prompts are corrupted. Default: the task's first way.")]
Metric = Annotated[str | None, typer.Option(help="Name in sparselens.prompts.metrics. Default: the task's.")]
Share = Annotated[float, typer.Option(help="Share of the sum of |scores| that the circuit of the paper's rule holds.")]
Goal = Annotated[float, typer.Option(help="Faithfulness that circuits are searched for and pruned to.")]
PruneSeconds = Annotated[
    float | None,
    typer.Option(
        "--prune-seconds",
        help="Seconds to prune a faithful circuit for. Default: as long as scoring took, at least 60. 0: do not prune.",
    ),
]
Ablation = Annotated[str, typer.Option(help="What replaces what is outside a circuit: corrupted, mean or zero.")]
Seed = Annotated[int, typer.Option(help="Random seed for drawing prompts.")]
BatchSize = Annotated[int | None, typer.Option(help="Prompts per run. Default: 64 for small models, else by --memory.")]
Memory = Annotated[float | None, typer.Option(help="GiB to work in beside the model, measured. Default: 1.")]
Json = Annotated[bool, typer.Option("--json", help="End standard output with the table as one JSON object.")]


def budget(memory: float | None, batch_size: int | None) -> dict[str, Any]:
    """Options of an analysis: memory in bytes, from GiB."""
    return {"memory": None if memory is None else int(memory * 2**30), "batch_size": batch_size}


def alone_in_out(command: Callable[..., None]) -> Callable[..., None]:
    """Make a command refuse a folder `out` in which another process is at work."""

    @wraps(command)
    def run(*args: Any, out: Path, **options: Any) -> None:
        from sparselens.files.locks import locked

        with locked(out):
            command(*args, out=out, **options)

    return run
