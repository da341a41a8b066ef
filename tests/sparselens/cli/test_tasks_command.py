"""`sparselens tasks`: what it lists, shows, exports and measures, and what it says to mistakes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from typer.testing import CliRunner, Result

from sparselens import cli, read_pairs
from sparselens.cli import tasks as cli_tasks
from sparselens.cli.own_tasks import task_named
from sparselens.models.folder import load, load_tokenizer
from sparselens.prompts.capability import evaluate
from sparselens.prompts.task import Task
from sparselens.tasks import TASKS

LIST = """
import sys
from sparselens.cli import build_app
try:
    build_app()(["tasks"])
finally:
    assert not {"torch", "transformers", "datasets", "transformer_lens"} & set(sys.modules), "heavy"
"""


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli.build_app(), ["tasks", *map(str, arguments)], catch_exceptions=False)


def last_line(result: Result) -> Any:
    assert result.exit_code == 0
    return json.loads(result.stdout.strip().split("\n")[-1])


@pytest.mark.parametrize("command", ["show", "export", "evaluate"])
def test_help_shows_an_example_and_the_common_options(command: str):
    shown = invoke(command, "--help").output
    assert f"sparselens tasks {command}" in shown
    assert "--out" in shown and "--json" in shown


def test_the_list_has_every_task_and_loads_nothing_heavy(tmp_path: Path):
    table = last_line(invoke("--json", "--out", tmp_path))
    assert list(table) == list(TASKS)
    assert table["ioi"]["example"]["answers"] and json.loads((tmp_path / "tasks.json").read_text()) == table
    done = subprocess.run([sys.executable, "-c", LIST], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in ("ioi", "addition", "brackets"))


def test_show():
    plain = last_line(invoke("show", "ioi", "-n", 2, "--json"))
    assert [pair["clean"] for pair in plain["pairs"]] == [pair.clean for pair in TASKS["ioi"].pairs(2)]
    result = invoke("show", "ioi", "-n", 1, "--tokenizer", "stories260k", "--corruption", "s2_io")
    assert "| Tim|" in result.stdout and "IO=" in result.stdout


def test_show_says_how_many_clean_prompts_there_are(monkeypatch: pytest.MonkeyPatch):
    few = Task.from_records("few", [*TASKS["ioi"].pairs(3), *TASKS["ioi"].pairs(3, corruption="s2_io")])
    monkeypatch.setattr(cli_tasks, "find_task", lambda name: few)
    result = invoke("show", "few", "-n", 6, "--json")
    assert last_line(result)["task"]["clean_prompts"] == 3 and "clean prompts" in result.stdout


@pytest.mark.parametrize("kind", ["parquet", "mib", "auto-circuit"])
def test_export(kind: str, tmp_path: Path):
    found = last_line(invoke("export", "ioi", "-n", 25, "--format", kind, "--out", tmp_path, "--seed", 3, "--json"))
    assert found["pairs"] == 25 and found["corruption"] == "abc"
    pairs = read_pairs(found["file"], kind)
    assert [pair.key for pair in pairs] == [pair.key for pair in TASKS["ioi"].pairs(25, seed=3)]


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "json", "JSON"])
def test_a_file_is_exported_by_its_name_and_read_as_a_task(ending: str, tmp_path: Path):
    file = tmp_path / "new" / f"names.{ending}"
    found = last_line(invoke("export", "ioi", "-n", 6, "--out", file, "--json"))
    assert found["file"] == str(file) and [*file.parent.iterdir()] == [file]
    both = task_named(str(file)), TASKS["ioi"]
    read, written = ({(p.clean, p.corrupted, p.answers, p.wrong_answers) for p in task.pairs(6)} for task in both)
    assert read == written
    with pytest.raises(ValueError, match="already exists and is not a folder"):
        invoke("export", "ioi", "-n", 6, "--out", file)


def test_a_files_name_and_another_format_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"ioi\.jsonl has the suffix of format mib, not eap-ig"):
        invoke("export", "ioi", "--format", "eap-ig", "--out", tmp_path / "ioi.jsonl")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ValueError, match=r"ioi\.txt: a file must end in \.parquet"):
        invoke("export", "ioi", "-n", 6, "--out", tmp_path / "ioi.txt")
    found = last_line(invoke("export", "ioi", "-n", 2, "--out", tmp_path / "folder.json", "--json"))
    assert Path(found["file"]).parent == tmp_path / "folder.json" and found["file"].endswith(".parquet")


def test_export_for_a_tokenizer(tmp_path: Path):
    options = ("--format", "eap-ig", "--tokenizer", "stories260k", "--corruption", "s2_io", "--out", tmp_path)
    with pytest.raises(ValueError, match="needs more names than the 2"):
        invoke("export", "ioi", "-n", 5, *options)
    found = last_line(invoke("export", "gendered_pronoun", "-n", 5, *options[:4], *options[6:], "--json"))
    header = Path(found["file"]).read_text().split("\n")[0]
    assert header.startswith(",clean,corrupted,") and header.endswith("correct_idx,incorrect_idx")


def test_exported_parquet_is_a_dataset(tmp_path: Path):
    found = last_line(invoke("export", "successor", "-n", 10, "--out", tmp_path, "--json"))
    data = datasets.Dataset.from_parquet(found["file"], cache_dir=str(tmp_path / "cache"))
    assert data.features == TASKS["successor"].dataset(10).features and len(data) == 10


def test_export_writes_what_there_is_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small = Task.from_records("small", TASKS["ioi"].pairs(3))
    monkeypatch.setattr(cli_tasks, "find_task", lambda name: small)
    result = invoke("export", "small", "-n", 50, "--out", tmp_path, "--json")
    found = last_line(result)
    assert found["pairs"] == 3 and "-n3." in found["file"]
    assert len(read_pairs(found["file"], "parquet")) == 3
    assert found["asked"] == 50 and "no more" in result.stdout


@pytest.mark.parametrize("command", [("export",), ("export", "--tokenizer", "stories260k")])
def test_more_than_memory_holds_is_refused_at_once(command: tuple[str, ...], tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"10,000,000 pairs would not fit into memory.* draw at most 1,000,000 at once"
    ):
        invoke(command[0], "gendered_pronoun", "-n", 10**7, *command[1:], "--out", tmp_path)
    with pytest.raises(ValueError, match=r"10,000,000 pairs would not fit into memory"):
        TASKS["gendered_pronoun"].tokenize(load_tokenizer("stories260k"), 10**7)


def test_a_single_pair_is_evaluated_without_an_interval_of_its_metric():
    options = ("--task", "gendered_pronoun", "-n", 1, "--json")
    result = invoke("evaluate", "--model", "stories260k", *options)
    measured = last_line(result)["tasks"]["gendered_pronoun"]
    assert measured["pairs"] == 1 and measured["interval"] == [None, None]
    assert measured["accuracy_interval"][1] - measured["accuracy_interval"][0] == pytest.approx(
        0.793, abs=1e-3
    )  # Wilson
    assert "nan" not in result.stdout


def test_evaluate(tmp_path: Path):
    options = ("--task", "gendered_pronoun", "--task", "country_capital", "-n", 40, "--out", tmp_path, "--json")
    table = last_line(invoke("evaluate", "--model", "stories260k", *options))["tasks"]
    measured = table["gendered_pronoun"]
    assert measured["distinct_prompts"] == measured["pairs"]
    only = ("evaluate", "--model", "stories260k", "--task", "gendered_pronoun", "-n", 40, "--json")
    by_answer = last_line(invoke(*only, "--cluster-by", "answer"))
    ends, wider = measured["accuracy_interval"], by_answer["tasks"]["gendered_pronoun"]["accuracy_interval"]
    assert wider[1] - wider[0] > ends[1] - ends[0]  # two answers: he and she
    low, high = measured["accuracy_interval"]
    assert 0 <= low <= measured["accuracy"] <= high <= 1 and measured["pairs"] <= 40
    assert "'capital'" in table["country_capital"]["refused"]
    assert json.loads((tmp_path / "tasks.json").read_text())["tasks"] == table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "ioy"), "no such task: 'ioy'"),
        (("show", "ioi", "-n", "0"), "0 pairs: want at least 1"),
        (("show", "ioi", "--corruption", "none"), "no such corruption of 'ioi': 'none'"),
        (("show", "ioi", "--tokenizer", "/nowhere/at/all"), "/nowhere/at/all"),
        (("export", "ioi", "--format", "xml"), "no such format: 'xml'"),
        (("evaluate", "--model", "stories260k", "--task", "x"), "no such task: 'x'"),
    ],
)
def test_mistakes_are_named(arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        invoke(*arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["list", "show", "evaluate", pytest.param("export", marks=pytest.mark.network)])
def test_the_example_of_the_help_works(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    help_text = " ".join(invoke(command, "--help").output.split())
    example = help_text.split("Example: sparselens tasks ")[1].split(" ╭")[0].split(" (")[0]
    assert invoke(*example.split()).exit_code == 0


def test_fewer_pairs_than_the_default_are_evaluated():
    rows = [
        {"clean": f"1{i}+00=?????", "corrupted": f"2{i}+00=?????", "answer": "1", "wrong_answer": "2"} for i in range(3)
    ]
    task = Task.from_records("mine", rows)
    model = load("addition")
    assert len(evaluate(model, task, progress=False).correct) == 3
    with pytest.raises(ValueError, match="has 3 different pairs, 4 were requested"):
        evaluate(model, task, 4, progress=False)
