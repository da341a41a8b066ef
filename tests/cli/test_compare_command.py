"""`sparselens compare` and `sparselens figures`: what they write, that both agree, and how they refuse."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sparselens import cli, load_circuit, read_neuronpedia
from sparselens.analyses import load_comparison

FIGURES = {
    "fig1_tokens", "fig2a_loss", "fig2b_patterns", "fig3_kept", "fig3_kept_with_mlps", "fig4a_edges_needed",
    "fig4b_circuits", "fig4b_difference",
}  # fmt: skip
TABLES = {"table.csv", "table.md", "table.tex"}
ASKED = ("--dense", "addition", "--sparse", "addition-sparse", "--task", "addition", "-n", 8, "--method", "eap")


def run(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(cli.build_app(), [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    return json.loads(result.stdout.strip().split("\n")[-1])


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("compare")
    return run("compare", *ASKED, "--out", out), out


def test_it_writes_report_figures_and_numbers(ran: tuple[dict[str, Any], Path]):
    found, out = ran
    assert {path.name for path in out.iterdir()} == {"report.html", "figures", "circuits", "numbers"}
    assert {path.name for path in (out / "figures").iterdir()} == {f"{name}.pdf" for name in FIGURES} | TABLES
    frame = load_comparison(out / "numbers").table()
    rows = {row["question"]: row for row in found["rows"]}
    assert list(rows) == list(frame.droplevel(0).index)
    assert rows["logit difference"]["dense"] == frame.droplevel(0).loc["logit difference", "dense"]
    assert rows["accuracy"]["ratio"] is None
    assert "sparselens " in (out / "report.html").read_text()


def test_circuits_are_those_of_the_comparison(ran: tuple[dict[str, Any], Path]):
    _, out = ran
    comparison = load_comparison(out / "numbers")
    for side in ("dense", "sparse"):
        wanted = comparison.circuit(side)
        for read, name in ((load_circuit, f"{side}.json"), (read_neuronpedia, f"{side}.neuronpedia.json")):
            assert read(out / "circuits" / name).edges == wanted.edges


def test_figures_without_a_model_are_the_same(ran: tuple[dict[str, Any], Path], tmp_path: Path):
    _, out = ran
    written = run("figures", out, "--out", tmp_path)["written"]
    assert {Path(path).name for path in written} == {path.name for path in tmp_path.iterdir()}
    for path in (out / "figures").iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_same_command_again_asks_nothing_anew(ran: tuple[dict[str, Any], Path], monkeypatch: pytest.MonkeyPatch):
    found, out = ran
    for name in ("patch_activations", "keep_top", "attribute_edges", "faithful_circuit"):
        monkeypatch.setattr(f"sparselens.analyses.comparison.asking.{name}", None)
    assert run("compare", *ASKED, "--out", out)["rows"] == found["rows"]


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
