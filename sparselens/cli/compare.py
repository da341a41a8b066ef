"""`sparselens compare`: run the same analyses on a dense and a sparse model, and write a report."""

import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparselens.cli import options
from sparselens.cli.models import bases, load_beside
from sparselens.cli.options import Json, alone_in_out
from sparselens.cli.own_tasks import task_named
from sparselens.cli.table import finish, print_table

if TYPE_CHECKING:
    from sparselens.training.text import Source

SEQ_LEN, BATCH, ROWS = 64, 32, 512  # of the held-out text for the loss


@alone_in_out
def compare(
    dense: options.Model,
    sparse: Annotated[str, typer.Option(help="The sparse model made from --dense.", callback=options.known_model)],
    task: options.Task,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the report, figures and numbers.")],
    control: Annotated[
        str | None,
        typer.Option(
            help="Control for the loss: the dense model fine-tuned with all gates open.", callback=options.known_model
        ),
    ] = None,
    base: options.Base = None,
    text: Annotated[
        str | None,
        typer.Option(help="Text to measure the loss on: a file, dataset folder or hub id. Default: the answers."),
    ] = None,
    column: Annotated[str, typer.Option(help="Field that holds the text, in JSON lines and datasets.")] = "text",
    split: Annotated[str, typer.Option(help="Split to read, if --text is a dataset.")] = "train",
    method: options.Method = "eap-ig",
    steps: options.Steps = 5,
    gate_gradient: options.GateGradient = "none",
    n: Annotated[int, typer.Option("-n", min=1, help="Pairs to draw; only those both models solve are used.")] = 100,
    all_pairs: Annotated[bool, typer.Option("--all", help="Also use pairs that a model gets wrong.")] = False,
    seed: options.Seed = 0,
    corruption: options.Corruption = None,
    metric: options.Metric = None,
    share: options.Share = 0.9,
    goal: options.Goal = 0.8,
    ablation: options.Ablation = "corrupted",
    prune_runs: options.PruneRuns = None,
    batch_size: options.BatchSize = None,
    memory: options.Memory = None,
    form: options.Form = "pdf",
    json: Json = False,
) -> None:
    """Compare the circuits of a dense and a sparse model on one task, and write a report.

    Example: `sparselens compare --dense stories260k --sparse stories260k-sparse --task gendered_pronoun --out pronoun`

    Writes `report.html` (a single file, readable offline), `figures/`, `circuits/` (for EAP-IG, MIB and Neuronpedia),
    and `numbers/` (every per-prompt value; `sparselens figures` and `analyses.load_comparison` read it without a
    model). To resume an interrupted run, repeat the command. Adapters, such as smollm2-135m-sparse, are attached to the
    dense model if its weights are those the adapters were trained on; use `--base` for a different base.
    """
    known = task_named(task)
    known.find_corruption(corruption)  # before torch is loaded
    from sparselens.analyses import compare as compare_models
    from sparselens.models.folder import load
    from sparselens.training.text import Source

    of = bases(base, dense, sparse, control)
    opened = {"dense": load(dense, **of[dense]), "sparse": load_beside(dense, sparse, of[sparse])}
    names = {"dense": dense, "sparse": sparse} | ({} if control is None else {"control": control})
    rows, notes = (None, []) if text is None else _rows(Source(text, column, split), opened["dense"].tokenizer, names)
    try:
        found = compare_models(
            opened["dense"],
            opened["sparse"],
            known,
            n=n,
            seed=seed,
            corruption=corruption,
            metric=metric,
            method=method,
            steps=steps,
            gate_gradient=gate_gradient,
            share=share,
            goal=goal,
            ablation=ablation,
            prune_runs=prune_runs,
            all_pairs=all_pairs,
            text=rows,
            notes=notes,
            control=None if control is None else load_beside(dense, control, of[control]),
            names=(Path(dense).name, Path(sparse).name),
            **options.budget(memory, batch_size),
            out=out / "numbers",
            command=shlex.join(["sparselens", *sys.argv[1:]]),
        )
    except KeyboardInterrupt:
        typer.echo(f"\ninterrupted: run the same command again to resume from {out / 'numbers'}", err=True)
        raise
    write_report(found, out, form, json)


def write_report(comparison: Any, out: Path, form: str, json: bool) -> None:
    """Print the table of a comparison, and write its report, figures and circuits."""
    from sparselens.analyses.comparison.figures import left_out
    from sparselens.analyses.comparison.rows import cells
    from sparselens.analyses.comparison.table import rows_of

    rows = rows_of(comparison)
    head = ("", *comparison.about.names, "dense / sparse")
    print_table(comparison.about.description, head, [(row.name, *cells(row)) for row in rows])
    if notes := (*comparison.about.notes, *left_out(comparison)):
        print_table("Caveats", ("",), [(note,) for note in notes])
    report = comparison.save_html(out / "report.html")
    drawn, circuits = comparison.figures(out / "figures", form), comparison.save_circuits(out / "circuits")
    folders = [
        (f"figures and tables, {len(drawn)} files", out / "figures"),
        (f"circuits, {len(circuits)} files", out / "circuits"),
    ]
    print_table("Written", ("what", "where"), [("report", report), *folders])
    frame = comparison.table().reset_index()
    finish({"rows": [_plain(row) for row in frame.to_dict("records")], "report": report}, json)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """The row with None for numbers that are not finite, which JSON does not have."""
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}


def _rows(source: "Source", tokenizer: Any, names: dict[str, str]) -> tuple[list[Any], list[str]]:
    """Rows that, according to the models' records, none was trained on or selected with, and caveats about them."""
    from sparselens.models.folder import load_record
    from sparselens.training.text import rows, unseen_tokens

    records = {role: load_record(name).get("data") for role, name in names.items()}
    if records["dense"] is None:  # usually trained elsewhere, on unknown text
        del records["dense"]
    tokens, notes = unseen_tokens(source, tokenizer, records, ROWS * SEQ_LEN)
    if len(tokens) < SEQ_LEN:
        raise ValueError(
            f"{source.name} has only {len(tokens)} tokens that none of the models ({', '.join(records)}) has seen, too "
            f"few for one row of {SEQ_LEN}: use a different --text"
        )
    return rows(tokens, SEQ_LEN, BATCH), notes
