"""`sparselens tasks`: what models are asked to do: list the tasks, show and export pairs, see what a model can do."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from sparselens.cli.models import bases
from sparselens.cli.options import CLUSTERS, Base, Json, Model, Out, Tasks, known_model, one_of
from sparselens.cli.own_tasks import task_named
from sparselens.cli.table import finish, print_table
from sparselens.prompts.formats import ENDINGS, SUFFIXES
from sparselens.prompts.pairs import some
from sparselens.prompts.words import Words
from sparselens.tasks import TASKS, find_task

if TYPE_CHECKING:
    from sparselens.prompts.capability import Capability
    from sparselens.prompts.intervals import Interval
    from sparselens.prompts.pairs import PromptPair
    from sparselens.prompts.task import Task


class ListByDefault(TyperGroup):
    """`sparselens tasks` alone, or with options only, is `sparselens tasks list`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `list` where no command is named."""
        named = args and (not args[0].startswith("-") or args[0] == "--help")
        return super().parse_args(ctx, args if named else ["list", *args])


app = typer.Typer(help="What models are asked to do: list tasks, show, export, evaluate.", cls=ListByDefault)

MANY = 2000  # clean prompts are counted up to this number

Name = Annotated[str, typer.Argument(help="The task, as `sparselens tasks` lists it.")]
Seed = Annotated[int, typer.Option(help="Random seed for drawing prompts.")]
Corruption = Annotated[str | None, typer.Option(help="What the corrupted prompt changes. Default: the task's first.")]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        help="A folder, a shipped model or a hub id: draw only pairs that fit this tokenizer.", callback=known_model
    ),
]


@app.command("list")
def list_tasks(out: Out = None, json: Json = False) -> None:
    """List the tasks, with an example of each; `sparselens tasks` does the same.

    Example: `sparselens tasks list`
    """
    examples = {name: task.pairs(1)[0] for name, task in TASKS.items()}
    rows = [(name, task.description, str(examples[name])) for name, task in TASKS.items()]
    print_table("Tasks", ("name", "asks", "example"), rows)
    table = {name: {**_about(task), "example": _record(examples[name])} for name, task in TASKS.items()}
    finish(table, json, out and out / "tasks.json")


@app.command()
def show(
    name: Name,
    n: Annotated[int, typer.Option("-n", help="How many pairs.")] = 3,
    tokenizer: Tokenizer = None,
    seed: Seed = 0,
    corruption: Corruption = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Show pairs of a task: prompts, answers, named positions, and with a tokenizer the tokens.

    Example: `sparselens tasks show ioi -n 3 --tokenizer stories260k`
    """
    whole = find_task(name)
    task = _fitted(whole, tokenizer)
    pairs = task.pairs(n, seed, corruption)
    there = task.count_prompts(corruption, MANY)
    counted = ("clean prompts", f"more than {MANY:,}" if there == MANY else f"{there:,}")
    print_table(f"{name}: {task.description}", ("", ""), [*_about_rows(task), counted, *_words_left(whole, task)])
    for number, pair in enumerate(pairs, 1):
        print_table(f"pair {number}", ("", ""), _pair_rows(pair, task))
    about = _about(task) | {"clean_prompts": there, "clean_prompts_counted_to": MANY}
    finish({"task": about, "pairs": [_record(pair) for pair in pairs]}, json, out and out / f"{name}.json")


@app.command()
def export(
    name: Name,
    n: Annotated[int, typer.Option("-n", help="How many pairs; fewer where a task has fewer.")] = 1000,
    format: Annotated[  # noqa: A002
        str | None,
        typer.Option(
            help="parquet, eap-ig, mib or auto-circuit. Default: that of the file's ending, else parquet.",
            callback=one_of("format", SUFFIXES),
        ),
    ] = None,
    tokenizer: Tokenizer = None,
    seed: Seed = 0,
    corruption: Corruption = None,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="PATH", help="A folder, or a file: .parquet, .csv, .jsonl or .json."),
    ] = Path(),
    json: Json = False,
) -> None:
    """Write pairs of a task to a file for other tools.

    Example: `sparselens tasks export ioi -n 1000 --out ioi.csv --tokenizer openai-community/gpt2` (EAP-IG's format)
    """
    from sparselens.prompts.formats import write_pairs

    named = None if out.is_dir() else ENDINGS.get(out.suffix.lower())
    format = format or named or "parquet"  # noqa: A001
    if named not in (None, format):
        raise ValueError(f"--out {out} is a file's name in format {named}, not {format}: leave out --format")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} exists, and is no folder: choose another name, or delete it first")
    task, reader = find_task(name), _reader(tokenizer)
    task = task if reader is None else task.fitted(reader)
    chosen = task.find_corruption(corruption)
    pairs = task.at_most(n, seed, chosen)
    if not pairs:
        task.pairs(1, seed, chosen)  # says why none fits the tokenizer
    hard = _hard(task, pairs, seed, chosen) if format == "eap-ig" else None
    fingerprint = task.fingerprint(len(pairs), seed, chosen)
    title = chosen if format == "mib" else fingerprint
    file = out if named else out / f"{fingerprint}.{SUFFIXES[format]}"
    write_pairs(pairs, file, format, tokenizer=reader, hard=hard, name=title)
    rows: list[tuple[object, ...]] = [(f"{len(pairs)} pairs of {name}, {chosen}", file)]
    rows += [(f"{n} requested", "no more found")] if len(pairs) < n else []
    different = len({pair.clean for pair in pairs})
    rows += [("different clean prompts", different)] if different < len(pairs) else []
    print_table("Written", ("what", "where"), rows)
    counts = {"pairs": len(pairs), "clean_prompts": different, "asked": n}
    finish({"file": str(file), **counts, "corruption": chosen}, json)


@app.command()
def evaluate(
    model: Model,
    task: Tasks = None,
    base: Base = None,
    n: Annotated[int, typer.Option("-n", help="Pairs of each task; fewer where a task has fewer.")] = 200,
    seed: Seed = 0,
    corruption: Corruption = None,
    batch_size: Annotated[int, typer.Option(help="Prompts that the model reads at once.")] = 64,
    cluster_by: Annotated[
        str,
        typer.Option(
            help="Pairs that count as one observation: with the same clean prompt, or the same answer.",
            callback=one_of("cluster-by", CLUSTERS),
        ),
    ] = "prompt",
    out: Out = None,
    json: Json = False,
) -> None:
    """Show which tasks a model can do: accuracy and metric, with 95 % confidence intervals.

    Wilson's interval for accuracies, the studentized bootstrap for metrics; both count pairs with the same clean prompt
    (or, on request, the same answer) as one observation.

    Example: `sparselens tasks evaluate --model stories260k --task ioi`
    """
    chosen = [task_named(name) for name in task or TASKS]
    if n < 1 or batch_size < 1:
        raise ValueError(f"-n {n}, --batch-size {batch_size}: want at least 1")
    from sparselens.models.folder import load
    from sparselens.prompts.capability import evaluate as run

    opened = load(model, **bases(base, model)[model])
    table, refused = dict[str, dict[str, Any]](), list[tuple[str, str]]()
    for item in chosen:
        try:
            there = len(item.fitted(opened.tokenizer).at_most(n, seed, corruption))
            options: dict[str, Any] = {"corruption": corruption, "batch_size": batch_size, "cluster_by": cluster_by}
            table[item.name] = _summary(run(opened, item, there or n, seed, **options))
        except ValueError as error:
            table[item.name] = {"refused": str(error)}
            refused.append((item.name, str(error)))
    columns = ("task", "pairs", "prompts", "accuracy, %", "chance", "metric")
    if len(refused) == len(chosen):
        raise ValueError("none of the tasks can be evaluated: " + "; ".join(why for _, why in refused[:3]))
    print_table(f"{model}: means with 95 % intervals, clustered by {cluster_by}", columns, _result_rows(table))
    if cautions := [(name, row["caution"]) for name, row in table.items() if row.get("caution")]:
        print_table("Intervals", ("task", "caution"), cautions)
    if refused:
        print_table("Not evaluated", ("task", "why"), refused)
    finish({"model": model, "seed": seed, "cluster_by": cluster_by, "tasks": table}, json, out and out / "tasks.json")


def _fitted(task: "Task", tokenizer: str | None) -> "Task":
    reader = _reader(tokenizer)
    return task if reader is None else task.fitted(reader)


def _reader(tokenizer: str | None) -> Any:
    if tokenizer is None:
        return None
    from sparselens.models.folder import load_tokenizer  # takes seconds

    return load_tokenizer(tokenizer)


def _words_left(whole: "Task", fitted: "Task") -> list[tuple[str, str]]:
    """How many entries of each word list the tokenizer has as the task needs them."""
    if fitted.fit is None:
        return []
    lists = ((name, len(_entries(fitted, name)), len(_entries(whole, name))) for name in whole.words)
    return [("words that fit", ", ".join(f"{left} of {of} ({name})" for name, left, of in lists))]


def _entries(task: "Task", name: str) -> Sequence[Any]:
    words = task.words[name]
    return words.entries if isinstance(words, Words) else words


def _hard(task: "Task", pairs: "Sequence[PromptPair]", seed: int, chosen: str) -> "list[PromptPair] | None":
    """Pairs of the next corruption, where it leaves the clean prompts the same: EAP-IG's `corrupted_hard`."""
    clean = [pair.clean for pair in pairs]
    for name in task.corruptions:
        others = task.at_most(len(pairs), seed, name) if name != chosen else []
        if [pair.clean for pair in others] == clean:
            return others
    return None


def _about(task: "Task") -> dict[str, Any]:
    names = ("name", "description", "metric", "source", "circuit", "version")
    return {name: getattr(task, name) for name in names} | {"corruptions": dict(task.corruptions)}


def _about_rows(task: "Task") -> list[tuple[str, str]]:
    about = _about(task) | {"corruptions": ", ".join(f"{name} ({' '.join(p)})" for name, p in task.corruptions.items())}
    return [(name, str(value)) for name, value in about.items() if value and name not in ("name", "description")]


def _pair_rows(pair: "PromptPair", task: "Task") -> list[tuple[str, str]]:
    words = "  ".join(
        f"{name}={pair.clean[start:end]!r}" for name, (start, end) in pair.positions.items() if name != "END"
    )
    rows = [("clean", pair.clean), ("corrupted", pair.corrupted), ("right", some(pair.answers))]
    rows += [("wrong", some(pair.wrong_answers)), ("positions", words)]
    if task.fit is not None:
        (encoded,) = task.fit.encode([pair])
        rows.append(("tokens", "|".join(encoded.token_strings)))
        rows.append(("at token", "  ".join(f"{name}={place}" for name, place in encoded.positions.items())))
    return rows


def _record(pair: "PromptPair") -> dict[str, Any]:
    from sparselens.prompts.task_data import record

    return record(pair)


def _summary(found: "Capability") -> dict[str, Any]:
    accuracy, metric = found.accuracy, found.metric
    return {
        "pairs": accuracy.n,
        "distinct_prompts": found.distinct_prompts,
        "accuracy": accuracy.mean,
        "accuracy_interval": _ends(accuracy),
        "chance": found.chance,
        "metric": found.metric_name,
        "mean": metric.mean,
        "interval": _ends(metric),
        "caution": metric.caution,
    }


def _ends(interval: "Interval") -> list[float | None]:
    """Both ends; None for one that is not known, as those of a single pair, since JSON has no NaN."""
    return [end if math.isfinite(end) else None for end in (interval.low, interval.high)]


def _result_rows(table: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (
            name,
            str(row["pairs"]),
            str(row["distinct_prompts"]),
            _mean(100 * row["accuracy"], [None if end is None else 100 * end for end in row["accuracy_interval"]], 1),
            f"{100 * row['chance']:.0f}",
            _mean(row["mean"], row["interval"], 2),
        )
        for name, row in table.items()
        if "refused" not in row
    ]


def _mean(mean: float, ends: Sequence[float | None], places: int) -> str:
    known = [f"{end:.{places}f}" for end in ends if end is not None]
    return f"{mean:.{places}f}" + (f" [{', '.join(known)}]" if len(known) == len(ends) else "")
