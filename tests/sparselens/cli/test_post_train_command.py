"""`sparselens post-train` on a tiny model folder and a small text."""

import itertools
import json
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

import sparselens as sl
from sparselens import cli
from sparselens.analyses.engine.partial_runs import peak_bytes
from sparselens.models.folder import load_transformers
from sparselens.training.evaluation import evaluate
from sparselens.training.step import Stepper
from sparselens.training.text import Source, Split, rows, unseen_tokens
from sparselens.training.text.tokens import mapped_tokens
from tests.sparselens.models.test_gguf import write_gguf
from tests.tiny_models import VOCABULARY, tiny_model, tiny_tokenizer

NUMBERS = {"loss", "share_of_visible_pairs", "share_of_all_pairs", "edges_per_query_per_head"}
FEW = ("--steps", "4", "--seq-len", "8", "--batch-size", "4", "--held-out", "0.4", "--learning-rate", "2e-3")


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """To draw a run takes longer than these runs; one test looks at what is drawn."""
    if "drawn" not in request.node.name:
        monkeypatch.setattr(import_module("sparselens.cli.post_train"), "_draw", lambda *_: [])


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
    done = invoke(inputs, tmp_path, "--json", "--margin", "0.5", "--learning-rate", "auto")
    assert done.exit_code == 0, done.output
    table = json.loads(done.stdout.splitlines()[-1])
    assert table.keys() == {"dense", "sparse", "feasible", "notes", "model"}
    assert table["dense"].keys() == table["sparse"].keys() == NUMBERS
    assert table["dense"]["share_of_visible_pairs"] == 1
    assert json.loads((tmp_path / "post-train.json").read_text()) == table
    assert table["model"] == str(tmp_path / "model")
    assert str(tmp_path / "model").split("/")[-2] in done.stdout.replace("\n", "")

    model = sl.load(table["model"])  # the numbers are those of the test half, which nothing else has seen
    record = json.loads((tmp_path / "model" / "sparselens.json").read_text())
    unseen, notes = unseen_tokens(
        Source(str(inputs / "stories.txt")), model.tokenizer, {"sparse": record["data"]}, 10**6
    )
    assert len(unseen) == 12 * 13 and notes == []
    again = evaluate(model, rows(unseen, 8, 4))
    assert again.loss == pytest.approx(table["sparse"]["loss"], rel=1e-5)
    assert again.share_of_visible_pairs == pytest.approx(table["sparse"]["share_of_visible_pairs"])
    assert record["base_model"] == "dense"  # the folder's name, not the path on this machine
    assert record["command"].startswith("sparselens")


def test_resume_gives_the_same_table(inputs: Path, tmp_path: Path):
    first = invoke(inputs, tmp_path, "--json")
    again = invoke(inputs, tmp_path, "--json", "--resume")
    assert again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]


def test_the_split_is_that_of_the_options_and_is_saved_with_the_model(inputs: Path, tmp_path: Path):
    invoke(inputs, tmp_path / "few", "--seed", "7", "--held-out-rows", "3")
    split = Split.from_record(json.loads((tmp_path / "few/model/sparselens.json").read_text())["data"])
    size = sum(len(f"w{i}") + 1 for i in range(1, VOCABULARY)) / (VOCABULARY - 1) * 12  # characters of a story, about
    assert (split.seed, split.documents, split.unit) == (7, 60, "documents")
    assert split.validation == split.test == round(3 * 8 * 8 / size + 0.5) < 12
    assert len(mapped_tokens(tmp_path / "few/tokens/test.bin")) == split.test * 13


def test_json_lines_and_text_of_the_models_own_sampled_once(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = ("--column", "story", "--sampled", "200", "--json")
    done = invoke(inputs, tmp_path, *options, data="stories.jsonl")
    assert done.exit_code == 0
    assert json.loads(done.stdout.splitlines()[-1]).keys() == {"dense", "sparse", "model", "feasible", "notes"}
    monkeypatch.setattr("sparselens.cli.training_text.sample_tokens", None)  # kept, as the text is
    again = invoke(inputs, tmp_path, *options, "--resume", data="stories.jsonl")
    assert again.stdout.splitlines()[-1] == done.stdout.splitlines()[-1]
    with pytest.raises(ValueError, match="was written with tokens=200"):
        invoke(inputs, tmp_path, "--column", "story", "--sampled", "300", "--resume", data="stories.jsonl")
    with pytest.raises(ValueError, match=r"was written with held_out=0\.4"):
        invoke(inputs, tmp_path, *options, "--resume", "--held-out", "0.3", data="stories.jsonl")


def test_a_dataset_is_streamed(inputs: Path, tmp_path: Path):
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes((inputs / "stories.jsonl").read_bytes())
    options = ("--column", "story", "--stream", "--held-out-rows", "2", "--steps", "2", "--data", str(folder))
    assert invoke(inputs, tmp_path / "out", *options).exit_code == 0
    data = json.loads((tmp_path / "out/model/sparselens.json").read_text())["data"]
    assert data["stream"] and data["seed"] is None and data["validation"] + data["test"] == data["documents"] < 12
    with pytest.raises(ValueError, match=r"has no split 'test'; it has \['train'\]"):
        invoke(inputs, tmp_path / "other", *options, "--split", "test")


@pytest.mark.parametrize(
    ("tokens", "rows_each", "batches"),
    [(64, 4, 2), (60, 4, 2), (40, 3, 2), (16, 2, 1)],  # of rows of 8 tokens, at most 4 in a batch
)
def test_tokens_per_step_give_rows_and_batches(
    inputs: Path, tmp_path: Path, tokens: int, rows_each: int, batches: int, monkeypatch: pytest.MonkeyPatch
):
    asked: list[tuple[int, int]] = []

    def stop(model: object, given: Callable[[int], Tensor], config: sl.PostTrainConfig, **_: object) -> None:
        asked.append((len(given(0)), config.accumulation))
        raise InterruptedError

    monkeypatch.setattr("sparselens.training.loop.post_train", stop)
    with pytest.raises(InterruptedError):
        invoke(inputs, tmp_path, "--batch-tokens", str(tokens))
    assert asked == [(rows_each, batches)]


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
    second, step = itertools.count(1), Stepper.__call__

    def interrupted(self: Any, *given: Any) -> Any:
        if next(second) == 2:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *given)

    monkeypatch.setattr(Stepper, "__call__", interrupted)
    stopped = invoke(inputs, tmp_path / "run", "--json")
    assert stopped.exit_code == 130
    last = stopped.stderr.splitlines()[-1]
    assert last == "stopped after step 2: repeat the command with --resume to continue from the last checkpoint"
    assert not (tmp_path / "run" / "model").exists()
    ended = invoke(inputs, tmp_path / "run", "--json", "--finish")
    assert ended.exit_code == 0 and "ended after step 2 of 4: it can be resumed" in " ".join(ended.stderr.split())
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    resumed = invoke(inputs, tmp_path / "run", "--json", "--resume")
    assert resumed.exit_code == 0
    tables = [json.loads(done.stdout.splitlines()[-1]) for done in (whole, resumed)]
    assert tables[0] | {"model": ""} == tables[1] | {"model": ""}
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "run")]
    assert weights[0] == weights[1]


def test_there_must_be_a_run_to_finish(inputs: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="there is no run to finish"):
        invoke(inputs, tmp_path / "none", "--finish")


def test_a_run_that_missed_its_target_can_be_ended_by_another(inputs: Path, tmp_path: Path):
    missed = invoke(inputs, tmp_path, "--target", "0.1", "--json")
    assert not json.loads(missed.stdout.splitlines()[-1])["feasible"]
    ended = invoke(inputs, tmp_path, "--margin", "9", "--finish", "--json")
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["feasible"] and not any("never met" in note for note in found["notes"])
    saved = json.loads((tmp_path / "model" / "sparselens.json").read_text())
    assert (
        saved["feasible"] and saved["step"] == 4 and saved["target"] == pytest.approx(saved["dense"]["loss"] + 9, 0.1)
    )


def test_a_run_that_came_to_nothing_says_so(inputs: Path, tmp_path: Path):
    done = invoke(inputs, tmp_path, "--learning-rate", "100", "--target", "0.1", "--evaluate-every", "2", "--json")
    assert done.exit_code == 0
    assert "the target of 0.1000 was NOT met" in " ".join(done.stdout.split())
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
        (("--batch-size", "400"), "468 tokens are too few for one batch of 400 x 8"),
        (("--batch-tokens", "7"), "7 tokens per optimiser step are less than one row of 8"),
        (("--batch-tokens", "64", "--accumulation", "2"), "pass either --batch-tokens or --accumulation, not both"),
        (("--held-out", "0.9"), "60 documents are too few to hold out 90%"),
        (("--held-out-rows", "0"), "--held-out-rows must be at least 1, not 0"),
        (("--stream",), "the stream is too short to hold out 32768 characters twice"),
        (("--mixed-precision", "fp8"), "no such mixed precision: 'fp8' (want no, bf16, fp16)"),
        (("--batch-size", "0"), "--batch-size must be at least 1, not 0"),
        (("--batch-size", "1", "--sampled", "99"), "a batch needs at least one row"),
        (("--data", "nowhere.txt"), "no such file"),
        (("--model", "nowhere"), "is neither a folder nor a shipped model"),
        (("--steps", "0"), "--steps must be at least 1, not 0"),
        (("--lora", "0"), "--lora must be at least 1, not 0"),
        (("--train", "mlp"), "no such part: 'mlp' (want attention, qk, all)"),
        (("--merge", "--json"), "--merge is for adapters"),
        (("--lora=2", "--train=qk"), "--lora trains only adapters"),
        (("--checkpoint-minutes", "0"), "checkpoint_minutes must be above 0"),
    ],
)
def test_mistakes_end_in_one_line(
    inputs: Path,
    tmp_path: Path,
    options: tuple[str, ...],
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


def test_a_tokenizer_that_cannot_open_documents_is_refused(inputs: Path, tmp_path: Path):
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    tokenizer.bos_token = tokenizer.eos_token = None
    sl.save(tiny_model("llama"), tmp_path / "open", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="neither a BOS nor an EOS token"):
        invoke(inputs, tmp_path / "out", "--model", str(tmp_path / "open"))


@pytest.mark.parametrize(
    ("line", "message"),
    [('{"story": "w1"}', 'line 1: want a JSON object with "text"'), ('{"text": " "}', "holds no text")],
)
def test_text_that_cannot_be_read_is_refused_before_a_model_is_loaded(
    inputs: Path, tmp_path: Path, line: str, message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sparselens.models.folder.load_transformers", None)
    (tmp_path / "text.jsonl").write_text(line)
    with pytest.raises(ValueError, match=message):
        invoke(inputs, tmp_path / "out", "--data", str(tmp_path / "text.jsonl"))


def test_tokens_that_the_model_does_not_know_are_refused(inputs: Path, tmp_path: Path):
    sl.save(tiny_model("llama", vocab_size=9), tmp_path / "small", tokenizer=tiny_tokenizer(tmp_path / "tokenizer"))
    with pytest.raises(ValueError, match="the tokenizer returned token 30"):
        invoke(inputs, tmp_path / "out", "--model", str(tmp_path / "small"))


def changed(folder: Path, base: Path) -> set[str]:
    """Names of the weights that a saved model does not share with its base."""
    new, old = (load_transformers(path)[0].state_dict() for path in (folder, base))
    return {name for name, value in new.items() if not torch.equal(value, old[name])}


def test_adapters_alone(inputs: Path, tmp_path: Path):
    first = invoke(inputs, tmp_path / "a", "--lora", "2", "--json")
    folder = tmp_path / "a" / "model"
    assert (folder / "adapter_model.safetensors").exists() and not (folder / "model.safetensors").exists()
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(inputs / "dense")
    names = changed(folder, inputs / "dense")
    assert names and all(".self_attn." in name for name in names)
    table = json.loads(first.stdout.splitlines()[-1])
    model = sl.load(folder)
    assert sl.is_sparse(model)
    record = json.loads((folder / "sparselens.json").read_text())
    unseen, _ = unseen_tokens(Source(str(inputs / "stories.txt")), model.tokenizer, {"a": record["data"]}, 10**6)
    again = evaluate(model, rows(unseen, 8, 4))
    assert again.loss == pytest.approx(table["sparse"]["loss"], rel=1e-5)

    resumed = invoke(inputs, tmp_path / "a", "--lora", "2", "--json", "--resume")
    assert resumed.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    assert invoke(inputs, tmp_path / "b", "--lora", "2", "--merge", "--json").exit_code == 0
    merged = load_transformers(tmp_path / "b" / "model")[0].state_dict()
    assert not (tmp_path / "b" / "model" / "adapter_config.json").exists()
    assert all(torch.equal(value, merged[name]) for name, value in load_transformers(folder)[0].state_dict().items())


@pytest.mark.parametrize(("part", "letters"), [("qk", "qk"), ("attention", "qkvo")])
def test_a_part_alone(inputs: Path, tmp_path: Path, part: str, letters: str):
    assert invoke(inputs, tmp_path, "--train", part).exit_code == 0
    names = changed(tmp_path / "model", inputs / "dense")
    assert {name.split(".")[-2] for name in names} == {f"{letter}_proj" for letter in letters}


def test_half_precision_files_are_trained_as_float32(inputs: Path, tmp_path: Path):
    sl.save(tiny_model("llama").bfloat16(), tmp_path / "half", tokenizer=tiny_tokenizer(tmp_path / "tokenizer"))
    assert load_transformers(tmp_path / "half")[0].dtype == torch.bfloat16
    assert invoke(inputs, tmp_path / "out", "--model", str(tmp_path / "half")).exit_code == 0
    assert load_transformers(tmp_path / "out" / "model")[0].dtype == torch.float32


def test_a_gguf_file_is_trained(inputs: Path, tmp_path: Path):
    write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"))
    data = tmp_path / "letters.txt"
    data.write_text("<|endoftext|>".join("abcdefgh" * 4 for _ in range(60)))
    options = ("--model", str(tmp_path), "--gguf-file", "tiny.gguf")
    assert invoke(inputs, tmp_path / "out", *options, data=str(data)).exit_code == 0
    record = json.loads((tmp_path / "out" / "model" / "sparselens.json").read_text())
    assert record["base_model"] == "tiny.gguf"
