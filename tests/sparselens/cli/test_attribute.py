"""`sparselens attribute`: what it writes, and that the parts agree."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from sparselens import cli
from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.comparison.attributed import _read_scores, load_attribution, save_scores
from sparselens.analyses.engine.resume import BatchLog
from sparselens.circuits.circuit import Circuit
from sparselens.circuits.graph import Graph
from tests.launched import Program, launch


def run(*arguments: object) -> dict:
    result = CliRunner().invoke(cli.build_app(), ["attribute", *map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    found = json.loads(result.stdout.strip().split("\n")[-1])
    assert ("clean prompts: intervals may be too narrow; use at least 30" in result.stderr) == (
        found["clean_prompts"] < 30
    )
    return found


def test_addition(tmp_path: Path):
    found = run("--model", "addition-sparse", "--task", "addition", "-n", 20, "--method", "eap-ig", "--out", tmp_path)
    assert json.loads((tmp_path / "attribute.json").read_text()) == found
    assert found["solved"] == found["pairs"] == found["clean_prompts"] == 20
    by_share, faithful, pruned, chance = found["circuits"].values()
    assert faithful["faithfulness"] >= 0.8 and pruned["edges"] < faithful["edges"] < found["edges"]
    assert chance["edges"] <= faithful["edges"] and pruned["untested"] == 0
    low, high = chance["interval"]
    assert low <= chance["faithfulness"] <= high and chance["faithfulness"] < 0.5
    assert len(Circuit.load(tmp_path / "pruned.json")) == pruned["edges"]
    scores = load_file(tmp_path / "scores.safetensors")
    for name, expected in (("share", by_share), ("faithful", faithful)):
        circuit = Circuit.load(tmp_path / f"{name}.json")
        assert len(circuit) == expected["edges"]
        assert (circuit.scores - scores["mean"])[circuit.graph.exists].abs().max() < 1e-6
    assert scores["per_prompt"].shape == (20, *scores["mean"].shape)
    page = (tmp_path / "circuit.html").read_text()
    assert f'"faithful":{{"edges":{faithful["edges"]},"mean":{round(faithful["faithfulness"], 4)}}}' in page
    assert '"tokens":"' in page and "attention edges" in page
    figures_and_report(tmp_path)


@pytest.mark.parametrize("method", ["eap-ig", "exact"])
def test_several_processes_share_the_pairs_and_give_the_result_of_one(tmp_path: Path, method: str):
    asked = ("--model", "addition-sparse", "--task", "addition", "-n", 6, "--method", method, "--prune-runs", 4)
    asked = (*asked, "--batch-size", 2)  # three batches for two processes
    alone = run(*asked, "--out", tmp_path / "alone")
    first, second = launch(2, "sparselens", "attribute", *map(str, asked), "--json", "--out", str(tmp_path / "both"))
    together = json.loads(first.strip().split("\n")[-1])
    assert second == "" and together.keys() == alone.keys()
    numbers = [
        [(one["edges"], one["faithfulness"], *one["interval"]) for one in found["circuits"].values()]
        for found in (alone, together)
    ]
    assert numbers[1] == [pytest.approx(one, abs=1e-5, rel=0) for one in numbers[0]]
    files = [sorted(file.name for file in (tmp_path / out).iterdir()) for out in ("alone", "both")]
    assert files[0] == files[1]
    scores = [load_file(tmp_path / out / "scores.safetensors") for out in ("alone", "both")]
    for name, values in scores[0].items():
        assert (values - scores[1][name]).abs().max() < 1e-5


def figures_and_report(folder: Path):
    """What the folder is for, without the model."""
    drawn = CliRunner().invoke(cli.build_app(), ["figures", str(folder), "--out", str(folder / "f"), "--format", "svg"])
    assert drawn.exit_code == 0 and {file.name for file in (folder / "f").iterdir()} == {
        "circuit.svg",
        "edges_needed.svg",
    }
    report = ["report", str(folder), "--out", str(folder / "report.html")]
    assert CliRunner().invoke(cli.build_app(), report).exit_code == 0
    text = (folder / "report.html").read_text()
    assert "<h1>addition-sparse: sums of two numbers, character by character</h1>" in text
    assert "80% faithful" in text and text.count("<figure") == 2 and "Explore the circuit" in text
    assert re.search(r'class="finding">\d+ of 175 edges do [\d.]+ % of what addition-sparse does; random', text)
    assert CliRunner().invoke(cli.build_app(), report[:2]).exit_code == 0  # beside what it is about by default
    assert (folder / "report.html").read_text() == text
    shipped = CliRunner().invoke(cli.build_app(), ["report", "stories260k/gendered_pronoun"])
    assert isinstance(shipped.exception, ValueError) and "pass --out FILE" in str(shipped.exception)
    pruned = load_attribution(folder).pruned
    assert pruned is not None and f"Pruned to {len(pruned)} edges, the circuit does" in text
    assert load_attribution(folder).viewer.circuits[0].edges == pruned.pruned().edges
    (folder / "faithful.json").unlink()
    with pytest.raises(ValueError, match=r"does not hold a complete attribution: .*faithful\.json"):
        CliRunner().invoke(cli.build_app(), report, catch_exceptions=False)


def test_the_circuit_is_printed(tmp_path: Path):
    asked = ["attribute", "--model", "addition-sparse", "--task", "addition", "-n", "8", "--out", str(tmp_path)]
    shown = CliRunner().invoke(cli.build_app(), asked).output
    edges = Circuit.load(tmp_path / "pruned.json").edges
    assert edges and all(f" {edge} " in shown for edge in edges) and "circuit.html" in shown
    assert "The pruned circuit; positive" in shown
    shown = CliRunner().invoke(cli.build_app(), [*asked, "--prune-runs", "0"]).output
    edges = Circuit.load(tmp_path / "faithful.json").edges
    assert all(f" {edge} " in shown for edge in edges) and "The faithful circuit; positive" in shown
    assert not (tmp_path / "pruned.json").exists() and load_attribution(tmp_path).pruned is None


def killed(*arguments: str) -> None:
    """Run the command in a process that is killed at its third batch."""
    once, calls = BatchLog.once, list[int]()

    def third(*given: Any) -> Any:
        calls.append(0)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return once(*given)

    BatchLog.once = third
    cli.build_app()(arguments)


def test_a_killed_run_goes_on(tmp_path: Path):
    asked = ("--model", "addition-sparse", "--task", "addition", "-n", 8, "--memory", 0.0005, "--prune-runs", 0)
    whole = run(*asked, "--out", tmp_path / "whole")
    program = Program(killed, "attribute", *map(str, asked), "--out", str(tmp_path / "killed"))
    assert program.wait() == -signal.SIGKILL, program.errors
    left = {path.name for path in (tmp_path / "killed").iterdir()}
    assert left == {"attribute.unfinished", "run.lock"}
    with pytest.raises(ValueError, match="holds an interrupted run: pass --resume to continue it"):
        run(*asked, "--out", tmp_path / "killed")
    with pytest.raises(ValueError, match="its method is 'eap-ig', not 'eap'"):
        run(*asked, "--method", "eap", "--resume", "--out", tmp_path / "killed")
    assert run(*asked, "--resume", "--out", tmp_path / "killed") == whole
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == names
    scores, wanted = (load_file(tmp_path / folder / "scores.safetensors") for folder in ("killed", "whole"))
    assert all(torch.equal(scores[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--task", "ioy"), "no such task"),
        (("--method", "acdc"), "no such method: 'acdc'"),
        (("--metric", "x"), "no such metric"),
        (("--memory", "0.0000001"), "too small"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(change: tuple[str, str], message: str, tmp_path: Path):
    options = {"--model": "addition-sparse", "--task": "addition", "-n": "4", "--out": str(tmp_path)}
    arguments = [part for option in (options | {change[0]: change[1]}).items() for part in option]
    with pytest.raises(ValueError, match=message):
        run(*arguments)
    assert not list(tmp_path.iterdir())


def test_the_same_scores_are_the_same_bytes(tmp_path: Path):
    graph = Graph.of_shape(1, 1)
    each = torch.ones(1, *graph.exists.shape)
    written: list[bytes] = []
    for number in range(8):
        scores = EdgeScores(graph, "eap", each[0].clone(), each, torch.ones(1), torch.ones(1))
        written.append(save_scores(scores, tmp_path / f"{number}").read_bytes())
    assert len(set(written)) == 1


def test_a_folder_of_another_task_is_refused_and_a_damaged_one_said_to_be(tmp_path: Path):
    asked = ("--model", "addition-sparse", "-n", 4, "--prune-runs", 0, "--out", tmp_path)
    first = run(*asked, "--task", "addition")
    assert run(*asked, "--task", "addition") == first  # the same again
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"holds the circuit of another task, 'addition-v\d-carry.*choose a different"):
        run(*asked, "--task", "addition", "--corruption", "units")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    scores = load_attribution(tmp_path).scores
    assert torch.equal(scores.mean, load_file(tmp_path / "scores.safetensors")["mean"])
    flipped = bytearray(before["scores.safetensors"])
    flipped[-5] ^= 1
    card = json.loads(before["attribute.json"])
    damage = [
        ("scores.safetensors", bytes(flipped), "checksum"),
        ("attribute.json", json.dumps(card | {"circuits": "all"}).encode(), "'all' as circuits, want a dict"),
        ("attribute.json", json.dumps(card | {"circuits": {"mine": [1]}}).encode(), "as the circuit 'mine'"),
        ("faithful.json", b"[" * 10**5, "holds no circuit"),
    ]
    for name, content, message in damage:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_attribution(tmp_path)
        (tmp_path / name).write_bytes(before[name])


def test_prompts_that_are_alike_stay_one_observation(tmp_path: Path):
    graph = Graph.of_shape(1, 1)
    each = torch.randn(4, *graph.exists.shape, generator=torch.Generator().manual_seed(0)) * graph.exists
    alike = torch.tensor([0, 0, 2, 2])
    for number in (alike, None):
        scores = EdgeScores(graph, "eap", each.mean(0), each, torch.ones(4), torch.zeros(4), clean_prompt=number)
        read = EdgeScores(graph, "eap", **_read_scores(save_scores(scores, tmp_path / "scores")))
        assert read.interval("a0.h0->m0") == scores.interval("a0.h0->m0")
        assert (read.clean_prompt is None) == (number is None)
