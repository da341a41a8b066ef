"""What `sparselens post-train` prints at its end."""

from pathlib import Path
from typing import TYPE_CHECKING

from sparselens.cli.table import finish, print_table, warn

if TYPE_CHECKING:
    from sparselens.training.evaluation import Evaluation
    from sparselens.training.result import PostTrainResult

COLUMNS = {
    "loss": ("loss, nats per token", "{:.4f}"),
    "share_of_visible_pairs": ("open, share of visible pairs", "{:.3%}"),
    "share_of_all_pairs": ("open, share of all pairs", "{:.3%}"),
    "edges_per_query_per_head": ("open edges per query and head", "{:.3f}"),
}


def print_result(
    dense: "Evaluation", sparse: "Evaluation", folder: Path, result: "PostTrainResult", json: bool, out: Path
) -> None:
    """Both models on text that nothing saw, where things were saved, and what went wrong."""
    table = {name: {key: getattr(e, key) for key in COLUMNS} for name, e in (("dense", dense), ("sparse", sparse))}
    print_table(
        "On text that neither training nor the choice of the state saw"
        + ("" if result.feasible else f" (on the text that chose it the target of {result.target:.4f} was NOT met)"),
        ("", "dense", "sparse"),
        [
            (label, form.format(table["dense"][key]), form.format(table["sparse"][key]))
            for key, (label, form) in COLUMNS.items()
        ],
    )
    print_table(
        "Saved", ("what", "where"), [("model", folder), ("log", out / "log.jsonl"), ("figure", out / "run.pdf")]
    )
    for note in result.notes:
        warn(f"warning: {note}")
    finish(
        {**table, "feasible": result.feasible, "notes": result.notes, "model": str(folder)},
        json,
        out / "post-train.json",
    )
