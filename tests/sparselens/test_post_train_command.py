"""`sparselens post-train` on a tiny model folder and a small text."""

import itertools
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import sparselens as sl
from sparselens import cli, training
from sparselens.analyses.partial_runs import peak_bytes
from sparselens.evaluation import evaluate
from sparselens.text import read_documents, rows, split_documents, tokenize
from tests.tiny_models import VOCABULARY, tiny_model, tiny_tokenizer

NUMBERS = {"loss", "share_of_visible_pairs", "share_of_all_pairs", "edges_per_query_per_head"}
FEW = ("--steps", "4", "--seq-len", "8", "--batch-size", "4", "--held-out", "0.4")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    sl.save(tiny_model("llama"), folder / "dense", tokenizer=tiny_tokenizer(folder / "tokenizer"))
    stories = [" ".join(f"w{(i + j) % (VOCABULARY - 1) + 1}" for j in range(12)) for i in range(60)]
    (folder / "stories.txt").write_text("<|endoftext|>".join(stories))
    (folder / "stories.jsonl").write_text("".join(json.dumps({"story": story}) + "\n" for story in stories))
    return folder


def invoke(inputs: Path, out: Path, *options: str, data: str = "stories.txt") -> Result:
    given = ["post-train", "--model", str(inputs / "dense"), "--data", str(inputs / data), "--out", str(out), *FEW]
    return CliRunner().invoke(cli.build_app(), [*given, *options], catch_exceptions=False)


def test_last_line_is_the_table_and_the_model_is_what_it_says(inputs: Path, tmp_path: Path):
    done = invoke(inputs, tmp_path, "--json", "--margin", "0.5")
    assert done.exit_code == 0, done.output
    table = json.loads(done.stdout.splitlines()[-1])
    assert table.keys() == {"dense", "sparse", "feasible", "notes", "model"}
    assert table["dense"].keys() == table["sparse"].keys() == NUMBERS
    assert table["dense"]["share_of_visible_pairs"] == 1
    assert json.loads((tmp_path / "post-train.json").read_text()) == table
    assert table["model"] == str(tmp_path / "model")
    assert str(tmp_path / "model").split("/")[-2] in done.stdout.replace("\n", "")

    model = sl.load(table["model"])  # the numbers are those of the test half, which nothing else has seen
    split = split_documents(read_documents(inputs / "stories.txt"), 0.4, 0)
    again = evaluate(model, rows(tokenize(split.test, model.tokenizer), 8, 4))
    assert again.loss == pytest.approx(table["sparse"]["loss"], rel=1e-5)
    assert again.share_of_visible_pairs == pytest.approx(table["sparse"]["share_of_visible_pairs"])
    record = json.loads((tmp_path / "model" / "sparselens.json").read_text())
    assert record["base_model"] == str(inputs / "dense")
    assert record["command"].startswith("sparselens")


def test_resume_gives_the_same_table(inputs: Path, tmp_path: Path):
    first = invoke(inputs, tmp_path, "--json")
    again = invoke(inputs, tmp_path, "--json", "--resume")
    assert again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]


def test_json_lines_and_text_of_the_models_own(inputs: Path, tmp_path: Path):
    done = invoke(inputs, tmp_path, "--column", "story", "--sampled", "200", "--json", data="stories.jsonl")
    assert done.exit_code == 0
    assert "sparse" in json.loads(done.stdout.splitlines()[-1])


def test_the_run_is_drawn_and_the_card_shows_it(inputs: Path, tmp_path: Path):
    done = invoke(inputs, tmp_path)
    assert done.exit_code == 0
    for form, start in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        drawn = (tmp_path / f"run.{form}").read_bytes()
        assert drawn.startswith(start)
        assert (tmp_path / "model" / f"run.{form}").read_bytes() == drawn
    assert "](run.png)" in (tmp_path / "model" / "README.md").read_text()
    assert "step 0/4  loss " in done.stderr and "step 4/4  loss " in done.stderr


def test_ctrl_c_ends_in_a_checkpoint_and_exit_code_130(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    whole = invoke(inputs, tmp_path / "whole", "--json")
    second, step = itertools.count(1), training._Run._train_step

    def interrupted(self: Any, *given: Any) -> Any:
        if next(second) == 2:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *given)

    monkeypatch.setattr(training._Run, "_train_step", interrupted)
    stopped = invoke(inputs, tmp_path / "run", "--json")
    assert stopped.exit_code == 130
    last = stopped.stderr.splitlines()[-1]
    assert last == "stopped after step 2: the same command with --resume goes on from its last checkpoint"
    assert not (tmp_path / "run" / "model").exists()
    resumed = invoke(inputs, tmp_path / "run", "--json", "--resume")
    assert resumed.exit_code == 0
    tables = [json.loads(done.stdout.splitlines()[-1]) for done in (whole, resumed)]
    assert tables[0] | {"model": ""} == tables[1] | {"model": ""}
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "run")]
    assert weights[0] == weights[1]


def test_a_run_that_came_to_nothing_says_so(inputs: Path, tmp_path: Path):
    done = invoke(inputs, tmp_path, "--learning-rate", "100", "--target", "0.1", "--evaluate-every", "2", "--json")
    assert done.exit_code == 0
    assert "the target was NOT met" in done.stdout
    notes = json.loads(done.stdout.splitlines()[-1])["notes"]
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert warnings == [f"warning: {note}" for note in notes]
    assert "before training (step 0)" in notes[0] and "learning_rate=100 is too high" in notes[-1]


def test_gradient_checkpointing_changes_memory_alone(inputs: Path, tmp_path: Path):
    def trained(name: str, *options: str) -> tuple[dict[str, Any], int]:
        done, peak = peak_bytes(lambda: invoke(inputs, tmp_path / name, "--json", "--batch-size", "32", *options))
        assert done.exit_code == 0
        return json.loads(done.stdout.splitlines()[-1])["sparse"], peak

    (plain, much), (again, less) = trained("plain"), trained("again", "--gradient-checkpointing")
    assert again == pytest.approx(plain, rel=1e-5)
    assert less < much


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target", "nan"), "target must be a finite number"),
        (("--seq-len", "4000"), "tokens do not fill one row of 4000"),
        (("--mixed-precision", "fp8"), "mixed precision 'fp8': want no, bf16 or fp16"),
        (("--batch-size", "0"), "want one row or more"),
        (("--batch-size", "1", "--sampled", "99"), "want one row or more"),
        (("--data", "nowhere.txt"), "no such file"),
        (("--model", "nowhere"), "is no folder, no shipped model"),
        (("--steps", "0"), "steps must be at least 1"),
        (("--checkpoint-minutes", "0"), "checkpoint_minutes must be above 0"),
    ],
)
def test_mistakes_end_in_one_line(
    inputs: Path,
    tmp_path: Path,
    options: tuple[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    given = ["--model", str(inputs / "dense"), "--data", str(inputs / "stories.txt"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["sparselens", "post-train", *given, *FEW, *options])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code != 0
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert not (tmp_path / "out" / "model").exists()


def test_model_without_a_tokenizer_is_refused(inputs: Path, tmp_path: Path):
    sl.save(tiny_model("llama"), tmp_path / "mute")
    with pytest.raises(ValueError, match="has no tokenizer"):
        invoke(inputs, tmp_path / "out", "--model", str(tmp_path / "mute"))


def test_tokens_that_the_model_does_not_know_are_refused(inputs: Path, tmp_path: Path):
    sl.save(tiny_model("llama", vocab_size=9), tmp_path / "small", tokenizer=tiny_tokenizer(tmp_path / "tokenizer"))
    with pytest.raises(ValueError, match="has 9 tokens, its tokenizer gave 30"):
        invoke(inputs, tmp_path / "out", "--model", str(tmp_path / "small"))
