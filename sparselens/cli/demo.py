"""`sparselens demo`: a dense and a sparse model of two-digit addition on all 10,000 sums (the paper's Fig. 1)."""

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from sparselens.cli.options import Json
from sparselens.cli.table import finish, print_table

SHOWN = ((53, 21), (47, 28), (58, 67))  # no carry, one carry, propagated carry: the columns of the figure


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the figures and pages.")] = Path("demo"),
    retrain: Annotated[bool, typer.Option("--retrain", help="Train both models from scratch first.")] = False,
    seed: Annotated[int, typer.Option(help="Random seed for --retrain.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted retraining in --out.")] = False,
    json: Json = False,
) -> None:
    """Show a dense transformer and the sparse one made from it solving the same additions.

    Example: `sparselens demo --out demo`

    Evaluates both models on all 10,000 two-digit sums, draws the attention edges of three sums as PDF, SVG, PNG and
    as an interactive page, and writes a report that compares both circuits (`report.html`). The models ship with the
    package; `--retrain` trains new ones in `--out`, which takes about half an hour on one core.
    """
    from sparselens.cli.addition import measure, retrain_both
    from sparselens.models.folder import load

    if (out / "circuits").exists():
        raise ValueError(f"{out} holds the output of `sparselens compare`: choose a different folder")
    folders = ("addition", "addition-sparse")
    if retrain or resume:
        folders = tuple(str(folder) for folder in retrain_both(out, seed, resume))
    dense, sparse = (load(folder) for folder in folders)
    table = {"dense": asdict(measure(dense)), "sparse": asdict(measure(sparse))}
    _print(table)
    view = _view(dense, sparse)
    files = [
        *(view.save(out / f"addition.{kind}") for kind in ("pdf", "svg", "png")),
        view.save_html(out / "addition.html"),
    ]
    print_table("Written", ("what", "where"), [(file.suffix[1:], file) for file in files])
    report = _report(dense, sparse, view, out)
    print_table("Open this in a browser", ("where",), [(report,)])
    finish(table, json, out / "demo.json")


def _print(table: dict[str, dict[str, Any]]) -> None:
    rows = (
        ("exact match, all 10,000 sums", "exact_match", "{:.2%}"),
        ("open attention edges per example", "open_edges_per_example", "{:.2f}"),
        ("share of visible pairs", "share_of_visible_pairs", "{:.3%}"),
    )
    lines = [(label, *(form.format(table[model][key]) for model in table)) for label, key, form in rows]
    for kind in table["dense"]["open_edges_by_kind"]:
        values = (table[model]["open_edges_by_kind"][kind] for model in table)
        lines.append((f"edges per layer, {kind}", *(" ".join(f"{n:.1f}" for n in layers) for layers in values)))
    print_table("Two-digit addition", ("", *table), lines)


def _view(dense: Any, sparse: Any) -> Any:
    """The attention edges of three sums, with the predicted digits above and an arrow for every carry."""
    from sparselens.analyses import attention_edges, token_view
    from sparselens.cli.addition import TASK, tokens_of

    tokens = tokens_of(SHOWN, next(dense.parameters()).device)
    return token_view(
        attention_edges(dense, tokens),
        attention_edges(sparse, tokens),
        [list(TASK.prompt(a, b)) for a, b in SHOWN],
        titles=[f"{a} + {b} = {a + b}: {TASK.kind(a, b)}" for a, b in SHOWN],
        outputs=[_written(sparse, prompt) for prompt in tokens],
        arrows=[TASK.carry_arrows(a, b) for a, b in SHOWN],
    )


def _report(dense: Any, sparse: Any, view: Any, out: Path) -> Path:
    """Write the report of `sparselens compare`, on pairs of sums that differ in their carry."""
    from sparselens.analyses import compare
    from sparselens.tasks import TASKS

    command = shlex.join(["sparselens", *sys.argv[1:]])
    found = compare(dense, sparse, TASKS["addition"], names=("addition", "addition-sparse"), command=command)
    found.save(out / "numbers")
    return found.save_html(out / "report.html", view)


def _written(model: Any, prompt: Any) -> list[str]:
    """The digit that the model predicts at each answer position; "" at all other positions."""
    from sparselens.cli.addition import TASK
    from sparselens.tasks.addition import text

    digits = text(model(prompt[None])[0].argmax(-1).tolist())
    return [digit if place in TASK.answer_positions else "" for place, digit in enumerate(digits)]
