"""`sparselens tasks`: list the tasks, show and export their prompt pairs, and evaluate models on them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from sparselens.cli.models import bases
from sparselens.cli.options import CLUSTERS, Base, Corruption, Json, Model, Out, Seed, Tasks, known_model, one_of
from sparselens.cli.own_tasks import task_named
from sparselens.cli.table import finish, finite_ends, print_table, with_interval
from sparselens.prompts.formats import ENDINGS, SUFFIXES
from sparselens.prompts.pairs import some
from sparselens.prompts.task_data import record
from sparselens.prompts.words import Words
from sparselens.tasks import TASKS, find_task

if TYPE_CHECKING:
    from sparselens.prompts.capability import Capability
    from sparselens.prompts.pairs import PromptPair
    from sparselens.prompts.task import Task


class ListByDefault(TyperGroup):
    """`sparselens tasks` alone, or with options only, is `sparselens tasks list`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert `list` if no command is named."""
        named = args and (not args[0].startswith("-") or args[0] == "--help")
        return super().parse_args(ctx, args if named else ["list", *args])


app = typer.Typer(help="List tasks, show and export prompt pairs, evaluate models on them.", cls=ListByDefault)

MANY = 2000  # clean prompts are counted up to this number

Name = Annotated[str, typer.Argument(help="A task listed by `sparselens tasks`.")]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        help="Use only pairs that fit this tokenizer: a folder, a shipped model or a hub id.", callback=known_model
    ),
]


@app.command("list")
def list_tasks(out: Out = None, json: Json = False) -> None:
    """List the tasks with an example of each; same as `sparselens tasks`.

    Example: `sparselens tasks list`
    """
    examples = {name: task.pairs(1)[0] for name, task in TASKS.items()}
    rows = [(name, task.description, str(examples[name])) for name, task in TASKS.items()]
    print_table("Tasks", ("name", "description", "example"), rows)
    table = {name: {**_about(task), "example": record(examples[name])} for name, task in TASKS.items()}
    finish(table, json, out and out / "tasks.json")


@app.command()
def show(
    name: Name,
    n: Annotated[int, typer.Option("-n", help="Number of pairs.")] = 3,
    tokenizer: Tokenizer = None,
    seed: Seed = 0,
    corruption: Corruption = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Show pairs of a task: prompts, answers, named positions and, with a tokenizer, tokens.

    Example: `sparselens tasks show gendered_pronoun -n 3 --tokenizer stories260k`
    """
    whole = find_task(name)
    task, _ = _fitted(whole, tokenizer)
    pairs = task.pairs(n, seed, corruption)
    count = task.count_prompts(corruption, MANY)
    counted = ("clean prompts", f"{MANY:,} or more" if count == MANY else f"{count:,}")
    print_table(f"{name}: {task.description}", ("", ""), [*_about_rows(task), counted, *_words_left(whole, task)])
    for number, pair in enumerate(pairs, 1):
        print_table(f"pair {number}", ("", ""), _pair_rows(pair, task))
    about = _about(task) | {"clean_prompts": count, "clean_prompts_counted_to": MANY}
    finish({"task": about, "pairs": [record(pair) for pair in pairs]}, json, out and out / f"{name}.json")


@app.command()
def export(
    name: Name,
    n: Annotated[int, typer.Option("-n", help="Number of pairs; fewer if the task has fewer.")] = 1000,
    format: Annotated[  # noqa: A002
        str | None,
        typer.Option(
            help="parquet, eap-ig, mib or auto-circuit. Default: by the suffix of --out, else parquet.",
            callback=one_of("format", SUFFIXES),
        ),
    ] = None,
    tokenizer: Tokenizer = None,
    seed: Seed = 0,
    corruption: Corruption = None,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="PATH", help="A folder, or a file ending in .parquet, .csv, .jsonl or .json."),
    ] = Path(),
    json: Json = False,
) -> None:
    """Write pairs of a task to a file, for use with other tools.

    Example: `sparselens tasks export ioi -n 1000 --out ioi.csv --tokenizer openai-community/gpt2` (EAP-IG's format)
    """
    from sparselens.prompts.formats import write_pairs

    named = None if out.is_dir() else ENDINGS.get(out.suffix.lower())
    format = format or named or "parquet"  # noqa: A001
    if named not in (None, format):
        raise ValueError(f"--out {out} has the suffix of format {named}, not {format}: leave out --format")
    if not named and not out.exists() and out.suffix[1:].isalpha():
        raise ValueError(f"--out {out}: a file must end in {', '.join(ENDINGS)}; if this is a folder, create it first")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} already exists and is not a folder: choose another name, or delete it first")
    task, reader = _fitted(find_task(name), tokenizer)
    chosen = task.find_corruption(corruption)
    pairs = task.at_most(n, seed, chosen)
    if not pairs:
        task.pairs(1, seed, chosen)  # raises an error that explains why no pair fits the tokenizer
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
    n: Annotated[int, typer.Option("-n", help="Pairs per task; fewer if a task has fewer.")] = 200,
    seed: Seed = 0,
    corruption: Corruption = None,
    batch_size: Annotated[int, typer.Option(help="Prompts per forward pass.")] = 64,
    cluster_by: Annotated[
        str,
        typer.Option(
            help="What makes pairs count as one observation: the same clean prompt, or the same answer.",
            callback=one_of("cluster-by", CLUSTERS),
        ),
    ] = "prompt",
    out: Out = None,
    json: Json = False,
) -> None:
    """Show how well a model does each task: accuracy and metric, with 95 % confidence intervals.

    Accuracies have Wilson's interval, metrics that of the studentized bootstrap. Both treat pairs with the same clean
    prompt (or the same answer, see --cluster-by) as one observation.

    Example: `sparselens tasks evaluate --model stories260k --task gendered_pronoun`
    """
    chosen = [task_named(name) for name in task or TASKS]
    if n < 1 or batch_size < 1:
        raise ValueError(f"-n and --batch-size must be at least 1, not {n} and {batch_size}")
    from sparselens.models.folder import load
    from sparselens.prompts.capability import evaluate as run

    opened = load(model, **bases(base, model)[model])
    table, refused = dict[str, dict[str, Any]](), list[tuple[str, str]]()
    for item in chosen:
        try:
            available = len(item.fitted(opened.tokenizer).at_most(n, seed, corruption))
            options: dict[str, Any] = {"corruption": corruption, "batch_size": batch_size, "cluster_by": cluster_by}
            table[item.name] = _summary(run(opened, item, available or n, seed, **options))
        except ValueError as error:
            table[item.name] = {"refused": str(error)}
            refused.append((item.name, str(error)))
    columns = ("task", "pairs", "prompts", "accuracy, %", "chance", "metric")
    if len(refused) == len(chosen):
        raise ValueError("no task could be evaluated: " + "; ".join(why for _, why in refused[:3]))
    print_table(f"{model}: means with 95 % intervals, clustered by {cluster_by}", columns, _result_rows(table))
    if cautions := [(name, row["caution"]) for name, row in table.items() if row.get("caution")]:
        print_table("Cautions about intervals", ("task", "caution"), cautions)
    if refused:
        print_table("Not evaluated", ("task", "reason"), refused)
    finish({"model": model, "seed": seed, "cluster_by": cluster_by, "tasks": table}, json, out and out / "tasks.json")


def _fitted(task: "Task", name: str | None) -> tuple["Task", Any]:
    """The task fitted to the tokenizer of that name, and the tokenizer; the task itself and None without a name."""
    if name is None:
        return task, None
    from sparselens.models.folder import load_tokenizer  # takes seconds

    tokenizer = load_tokenizer(name)
    return task.fitted(tokenizer), tokenizer


def _words_left(whole: "Task", fitted: "Task") -> list[tuple[str, str]]:
    """How many entries of each word list fit the tokenizer."""
    if fitted.fit is None:
        return []
    lists = ((name, len(_entries(fitted, name)), len(_entries(whole, name))) for name in whole.words)
    return [("words that fit", ", ".join(f"{left} of {of} ({name})" for name, left, of in lists))]


def _entries(task: "Task", name: str) -> Sequence[Any]:
    words = task.words[name]
    return words.entries if isinstance(words, Words) else words


def _hard(task: "Task", pairs: "Sequence[PromptPair]", seed: int, chosen: str) -> "list[PromptPair] | None":
    """Pairs of another corruption with the same clean prompts, for EAP-IG's column `corrupted_hard`; None if none."""
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


def _summary(found: "Capability") -> dict[str, Any]:
    accuracy, metric = found.accuracy, found.metric
    return {
        "pairs": accuracy.n,
        "distinct_prompts": found.distinct_prompts,
        "accuracy": accuracy.mean,
        "accuracy_interval": finite_ends(accuracy),
        "chance": found.chance,
        "metric": found.metric_name,
        "mean": metric.mean,
        "interval": finite_ends(metric),
        "caution": metric.caution,
    }


def _result_rows(table: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (
            name,
            str(row["pairs"]),
            str(row["distinct_prompts"]),
            with_interval(
                100 * row["accuracy"], [None if end is None else 100 * end for end in row["accuracy_interval"]], 1
            ),
            f"{100 * row['chance']:.0f}",
            with_interval(row["mean"], row["interval"], 2),
        )
        for name, row in table.items()
        if "refused" not in row
    ]
