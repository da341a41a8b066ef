"""Values of `--task`: a task of the library, or a file of pairs."""

from pathlib import Path
from typing import TYPE_CHECKING

from sparselens.files.reading import strict_json
from sparselens.prompts.formats import ENDINGS, read_pairs
from sparselens.tasks import TASKS, find_task

if TYPE_CHECKING:
    from sparselens.prompts.task import Task

FORMATS = {ending: name for ending, name in ENDINGS.items() if name != "eap-ig"}  # whose answers need a tokenizer


def task_named(name: str) -> "Task":
    """The task of that name, or a task made from a file of pairs.

    Each line of a .jsonl file is a pair: either `clean`, `corrupted`, `answer` and `wrong_answer`, or MIB's format.

    Raises:
        ValueError: there is no such task or file, or the file is broken or of an unknown kind.
    """
    path = Path(name)
    if name in TASKS or not path.is_file():
        return find_task(name)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(
            f"{path} does not have the suffix of a file of pairs (want {', '.join(FORMATS)}). To convert EAP-IG's "
            ".csv, read it with sl.read_pairs and the model's tokenizer, and write .parquet with sl.write_pairs"
        )
    from sparselens.prompts.task import Task

    ending = path.suffix.lower()
    rows = _rows(path) if ending == ".jsonl" else []
    plain = bool(rows) and "clean" in rows[0]
    return Task.from_records(path.stem, rows if plain else read_pairs(path, FORMATS[ending]))


def _rows(path: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = strict_json(line)
        except ValueError as error:
            raise ValueError(f"{path}: line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}: line {number} holds {row!r:.40}, want an object")
        rows.append(row)
    return rows
