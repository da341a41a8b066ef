"""The final output of `sparselens post-train`."""

from pathlib import Path
from typing import TYPE_CHECKING

from sparselens.cli.table import finish, print_table, warn

if TYPE_CHECKING:
    from sparselens.training.evaluation import Evaluation
    from sparselens.training.result import PostTrainResult

COLUMNS = {
    "loss": ("loss, nats per token", "{:.4f}"),
    "share_of_visible_pairs": ("open edges, share of visible pairs", "{:.3%}"),
    "share_of_all_pairs": ("open edges, share of all pairs", "{:.3%}"),
    "edges_per_query_per_head": ("open edges per query and head", "{:.3f}"),
}


def print_result(
    dense: "Evaluation", sparse: "Evaluation", folder: Path, result: "PostTrainResult", json: bool, out: Path
) -> None:
    """Print both models' results on held-out text, the saved files, and warnings."""
    table = {name: {key: getattr(e, key) for key in COLUMNS} for name, e in (("dense", dense), ("sparse", sparse))}
    print_table(
        "On test text, unseen in training and model selection"
        + ("" if result.feasible else f" (on the validation text the target of {result.target:.4f} was NOT met)"),
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
