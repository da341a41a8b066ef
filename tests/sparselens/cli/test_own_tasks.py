"""Pairs from a file on the command line."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

import sparselens as sl
from sparselens import cli
from sparselens.cli.own_tasks import task_named
from sparselens.prompts.pairs import PromptPair
from sparselens.tasks import TASKS


def _write_rows(pairs: Sequence[PromptPair], path: Path) -> None:
    names = ("answer", "wrong_answer")
    told = [
        {"clean": pair.clean, "corrupted": pair.corrupted}
        | {name: list(answers) for name, answers in zip(names, (pair.answers, pair.wrong_answers), strict=True)}
        for pair in pairs
    ]
    path.write_text("\n".join(map(json.dumps, told)) + "\n")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    _write_rows(TASKS["gendered_pronoun"].pairs(12), path)
    return path


def test_every_kind_of_file_has_the_same_pairs(rows: Path, tmp_path: Path):
    pairs = TASKS["gendered_pronoun"].pairs(12)
    files = [rows, *(tmp_path / name for name in ("mine.parquet", "mib.jsonl", "mine.json"))]
    for path, kind in zip(files[1:], ("parquet", "mib", "auto-circuit"), strict=True):
        sl.write_pairs(pairs, path, kind)
    wanted = sorted((pair.clean, pair.corrupted, pair.answers) for pair in pairs)
    for path in files:
        task = task_named(str(path))
        assert sorted((pair.clean, pair.corrupted, pair.answers) for pair in task.pairs(12)) == wanted
        assert task.name == path.stem


def test_a_model_is_evaluated_on_a_file(rows: Path):
    model = sl.load("stories260k")
    wanted = sl.evaluate(model, TASKS["gendered_pronoun"], 12, progress=False)
    _write_rows(wanted.pairs.prompts, rows)
    asked = ["tasks", "evaluate", "--model", "stories260k", "--task", str(rows), "-n", "12", "--json"]
    done = CliRunner().invoke(cli.build_app(), asked)
    assert done.exit_code == 0
    found = json.loads(done.stdout.splitlines()[-1])["tasks"]["mine"]
    assert found["accuracy"] == wanted.accuracy.mean and found["mean"] == pytest.approx(
        float(wanted.values.mean()), rel=1e-5
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine.txt", "x", r"want \.parquet, \.jsonl, \.json\)\. To convert EAP-IG's"),
        ("mine.jsonl", '{"clean": "a"}\n{', "line 2 is not JSON"),
        ("mine.jsonl", "[1]", r"line 1 holds \[1\], want an object"),
        ("mine.jsonl", '{"clean": "a"}', "record 0"),
    ],
)
def test_what_is_no_file_of_pairs_is_refused(name: str, content: str, message: str, tmp_path: Path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        task_named(str(tmp_path / name))
