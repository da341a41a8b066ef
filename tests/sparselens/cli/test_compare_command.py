"""`sparselens compare` and `sparselens figures`: what they write, that both agree, and how they refuse."""

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import sparselens as sl
from sparselens import Circuit, cli, read_neuronpedia
from sparselens.analyses import load_comparison
from sparselens.analyses.comparison.results import Comparison
from sparselens.models.folder import load_tokenizer
from sparselens.training.text import Source, prepare
from sparselens.training.text.tokens import mapped_tokens
from tests.analyses.comparison.compared import draw_nothing

compare_module: Any = import_module("sparselens.cli.compare")

FIGURES = {
    "fig1_tokens", "fig2b_patterns", "fig3_kept", "fig3_kept_with_mlps", "fig4a_edges_needed",
    "fig4b_circuits", "fig4b_difference",
}  # fmt: skip
TABLES = {"table.csv", "table.md", "table.tex"}
ASKED = (
    "--dense",
    "addition",
    "--sparse",
    "addition-sparse",
    "--task",
    "addition",
    "-n",
    8,
    "--method",
    "eap",
    "--prune-runs",
    8,
)


def run(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(cli.build_app(), [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    return json.loads(result.stdout.strip().split("\n")[-1]) | {"progress": re.split("[\r\n]+", result.stderr)}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)  # in the report
        return run("compare", *ASKED, "--format", "svg", "--out", out), out


def test_it_writes_report_figures_and_numbers(ran: tuple[dict[str, Any], Path]):
    found, out = ran
    assert {path.name for path in out.iterdir()} == {"report.html", "figures", "circuits", "numbers"}
    assert {path.name for path in (out / "figures").iterdir()} == {f"{name}.svg" for name in FIGURES} | TABLES
    frame = load_comparison(out / "numbers").table()
    rows = {row["quantity"]: row for row in found["rows"]}
    assert list(rows) == list(frame.droplevel(0).index)
    assert rows["logit difference"]["dense"] == frame.droplevel(0).loc["logit difference", "dense"]
    assert rows["accuracy"]["ratio"] is None
    page = (out / "report.html").read_text()
    assert "<code>sparselens" in page and "Fig. 2a, loss against open edges, is not drawn" in page


def test_without_a_terminal_progress_is_a_line_a_part(ran: tuple[dict[str, Any], Path]):
    said = [line for line in ran[0]["progress"] if line.strip()]
    assert len(said) <= 40 and said[:3] == ["solved", "loss", "dense.attention"] and "sparse.circuits" in said


def test_circuits_are_those_of_the_comparison(ran: tuple[dict[str, Any], Path]):
    _, out = ran
    comparison = load_comparison(out / "numbers")
    for side in ("dense", "sparse"):
        wanted = comparison.circuit(side)
        for read, name in ((Circuit.load, f"{side}.json"), (read_neuronpedia, f"{side}.neuronpedia.json")):
            assert read(out / "circuits" / name).edges == wanted.edges


def test_figures_without_a_model_are_the_same(ran: tuple[dict[str, Any], Path], tmp_path: Path):
    _, out = ran
    written = run("figures", out, "--out", tmp_path, "--format", "svg")["written"]
    assert {Path(path).name for path in written} == {path.name for path in tmp_path.iterdir()}
    for path in (out / "figures").iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_same_command_again_asks_nothing_anew(ran: tuple[dict[str, Any], Path], monkeypatch: pytest.MonkeyPatch):
    found, out = ran
    for name in ("patch_activations", "keep_top", "attribute_edges", "search"):
        monkeypatch.setattr(f"sparselens.analyses.comparison.one_model.{name}", None)
    forms = list[str]()
    monkeypatch.setattr(Comparison, "figures", lambda comparison, folder, form: forms.append(form) or [])
    monkeypatch.setattr(Comparison, "save_html", lambda comparison, path: path)
    again = run("compare", *ASKED, "--out", out)
    assert again["rows"] == found["rows"] and again["report"] == found["report"] and forms == ["pdf"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("--task", "multiplication"), "multiplication"),
        (("--sparse", "no-such-folder"), "no-such-folder"),
        (("--sparse", "stories260k-sparse"), "the models differ in layers or heads"),
        (("--metric", "beauty"), "beauty"),
        (("--method", "guess"), "no such method: 'guess'"),
        (("--format", "bmp"), "no such form of a figure: 'bmp'"),
        (("--task", "ioi"), "ioi"),
    ],
)
def test_mistakes(changed: tuple[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["sparselens"])
    with pytest.raises((ValueError, OSError), match=message):
        run("compare", *ASKED, *changed, "--out", tmp_path / "out")


def test_a_folder_that_is_no_comparison(tmp_path: Path):
    with pytest.raises(ValueError, match=r"holds no comparison \(no comparison.json\)"):
        run("figures", tmp_path, "--out", tmp_path / "out")


def test_a_shipped_comparison_and_a_slim_file_are_reported_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    draw_nothing(monkeypatch)  # figures of slim comparisons: test_slim.py
    shipped = run("report", "addition/addition", "--out", tmp_path / "shipped.html")["report"]
    file = load_comparison("addition/addition").save(tmp_path / "sums.zip", slim=True)
    again = run("report", file, "--out", tmp_path / "again.html")["report"]
    assert Path(again).read_bytes() == Path(shipped).read_bytes() and "addition-sparse" in Path(shipped).read_text()


def test_a_report_stands_in_the_folder_that_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whatever it is called: beside it may be other work."""
    draw_nothing(monkeypatch)
    (tmp_path / "report.html").write_text("mine")
    folder = load_comparison("addition/addition").save(tmp_path / "numbers")
    assert run("report", folder)["report"] == str(folder / "report.html")
    assert (tmp_path / "report.html").read_text() == "mine"
    load_comparison(folder).save(folder)
    assert (folder / "report.html").exists(), "saved anew, with the report"


# the text that the loss is measured on


@pytest.fixture(scope="module")
def story_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text, and the shipped sparse model saved as if it had been trained on it, with other documents held out."""
    folder = tmp_path_factory.mktemp("models")
    stories = [f"Once upon a time, Tom had {i} red cars and {i * 7 % 90} dogs." for i in range(400)]
    (folder / "stories.txt").write_text("<|endoftext|>".join(stories))
    (folder / "other.txt").write_text("<|endoftext|>".join(stories[1:]))
    for name, seed, share in (("one", 1, 0.3), ("two", 2, 0.3), ("three", 3, 0.01)):
        model = sl.load("stories260k-sparse")
        source = Source(str(folder / "stories.txt"))
        corpus = prepare(source, model.tokenizer, folder / name / "tokens", held_out=share, seed=seed)
        sl.save(model, folder / name / "model", base_model="stories260k", data=corpus.record)
    return folder


def rows_for(folder: Path, text: str, **names: str) -> tuple[set[str], list[str]]:
    """Stories that begin in the rows, by the numbers in them, and the caveats."""
    tokenizer = load_tokenizer("stories260k")
    paths = {"dense": "stories260k"} | {role: str(folder / name / "model") for role, name in names.items()}
    batches, notes = compare_module._rows(Source(str(folder / text)), tokenizer, paths)
    read = "".join(tokenizer.decode(torch.cat(batches).flatten()))
    return set(re.findall(r"had (\d+) red cars", read)), notes


def held_out_of(folder: Path, name: str) -> set[str]:
    tokenizer = load_tokenizer("stories260k")
    read = tokenizer.decode(mapped_tokens(folder / name / "tokens" / "test.bin"))
    return set(re.findall(r"had (\d+) red cars", read))


def test_the_loss_is_on_text_that_the_run_itself_held_out(story_models: Path):
    found, notes = rows_for(story_models, "stories.txt", sparse="one")
    assert len(found) > 40 and found <= held_out_of(story_models, "one") and notes == []
    assert not found <= held_out_of(story_models, "two")
    both, notes = rows_for(story_models, "stories.txt", sparse="one", control="two")
    assert both and both <= held_out_of(story_models, "one") & held_out_of(story_models, "two") and notes == []


def test_another_text_is_all_unseen_and_the_report_says_as_far_as_known(story_models: Path):
    found, (note,) = rows_for(story_models, "other.txt", sparse="one")
    assert len(found) > 100 and "post-trained on a different text" in note


def test_text_that_some_model_has_seen_throughout_is_refused(story_models: Path):
    with pytest.raises(ValueError, match=r"none of the models \(sparse, control\) has seen, too few for one row of 64"):
        rows_for(story_models, "stories.txt", sparse="three", control="one")


def test_without_a_record_the_comparison_is_told_that_the_split_is_assumed(
    story_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: dict[str, Any] = {}

    def stop(*_: Any, **given: Any) -> None:
        asked.update(given)
        raise InterruptedError

    monkeypatch.setattr("sparselens.analyses.compare", stop)
    sparse = tmp_path / "without a record"
    sl.save(sl.load("stories260k-sparse"), sparse)
    pair = ("--dense", "stories260k", "--sparse", sparse, "--task", "gendered_pronoun")
    with pytest.raises(InterruptedError):
        run("compare", *pair, "--text", story_models / "stories.txt", "--out", tmp_path / "out")
    assert {batch.shape[1] for batch in asked["text"]} == {64}
    (note,) = asked["notes"]
    assert note.startswith("The sparse model has no record of its training text")
