"""What a run tells: lines that can be followed without a terminal, the log, the history, and what went wrong."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import sparselens as sl
from sparselens.gates.modes import OPEN_BIAS
from sparselens.training.evaluation import evaluate
from sparselens.training.loop import post_train
from sparselens.training.progress import Journal
from sparselens.training.result import notes_on
from sparselens.training.step import StepMeans
from tests.tiny_runs import HELD_OUT, counting_rows, gated, run, settings

RECORD = {"loss": 1.5, "share_of_visible_pairs": 0.25, "multiplier": 2.0}
NUMBERS = r"loss \d\.\d{4} \(target \d\.\d{4}\)  open \d+\.\d\d%  multiplier [\d.e+-]+"


def told(capsys: pytest.CaptureFixture, config: sl.PostTrainConfig, first: int = 0) -> list[str]:
    """The lines of a run in which nothing happens."""
    journal = Journal(config, 1.25, first, out=None, live=True)
    for step in range(first, config.steps + 1):
        if step > first:
            journal.step(step, StepMeans(1.5, 0.3, 0.1), 2.0, 100)
        if step % config.evaluate_every == 0 or step == config.steps:
            journal.evaluation({"step": step, **RECORD})
    journal.close()
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(("steps", "every"), [(6000, 250), (3000, 10), (4000, 1), (103, 7), (39, 1), (1, 1)])
@pytest.mark.parametrize("first", [0, 1])
def test_at_most_forty_lines_with_the_first_and_the_last(
    capsys: pytest.CaptureFixture, steps: int, every: int, first: int
):
    lines = told(capsys, sl.PostTrainConfig(steps=steps, evaluate_every=every), first)
    evaluations = len({*range(0, steps + 1, every), steps} - {*range(first)})
    assert min(evaluations, 20) <= len(lines) <= 40
    assert f"step {steps}/{steps}" in lines[-1]
    assert all(re.match(r"\d\d:\d\d:\d\d  step [\d]+/", line) for line in lines)


def test_a_line_says_how_fast_and_how_long(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    seconds = 0.0
    monkeypatch.setattr("sparselens.training.progress.time.monotonic", lambda: seconds)
    journal = Journal(sl.PostTrainConfig(steps=6000), 1.25, 1000, out=None, live=True)
    for step in range(1001, 2001):
        seconds += 2.0
        journal.step(step, StepMeans(1.5, 0.3, 0.1), 2.0, 2048)
    journal.evaluation({"step": 2000, **RECORD})
    journal.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line[10:] == (
        "step 2000/6000  loss 1.5000 (target 1.2500)  open 25.00%  multiplier 2  1,024 tokens/s  2:13:20 left"
    )


def test_a_terminal_has_one_live_line(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    journal = Journal(sl.PostTrainConfig(steps=3, evaluate_every=1), 1.25, 0, out=None, live=True)
    for step in (1, 2, 3):
        journal.step(step, StepMeans(1.5, 0.3, 0.1), 2.0, 100)
        journal.evaluation({"step": step, **RECORD})
    journal.event(3, "back to step 1, multiplier 3")
    journal.close()
    shown = capsys.readouterr().err
    assert "3/3" in shown and "loss 1.5000, target 1.2500" in shown
    assert "  step 3: back to step 1, multiplier 3\n" in shown
    assert "tokens/s" not in shown


def test_silence_can_be_had(capsys: pytest.CaptureFixture):
    journal = Journal(sl.PostTrainConfig(steps=1), 1.25, 0, out=None, live=False)
    journal.step(1, StepMeans(1.5, 0.3, 0.1), 2.0, 100)
    journal.evaluation({"step": 1, **RECORD})
    journal.event(1, "a rule acted")
    journal.close()
    assert capsys.readouterr() == ("", "")


def test_a_run_shorter_than_its_warm_up_says_so():
    options = settings(evaluate_every=1, learning_rate=0.01, steps=2, warmup=5)
    result = post_train(gated(), counting_rows, options, held_out=HELD_OUT, progress=False)
    assert result.history[0]["event"] == "learning rate 0.01, not reached: the warm-up takes 5 steps"


def test_a_run_tells_its_evaluations_and_what_it_decided(tmp_path: Path, capsys: pytest.CaptureFixture):
    options = {"evaluate_every": 1, "learning_rate": 0.01, "steps": 9}
    seen: list[list[dict[str, Any]]] = []
    result = post_train(
        gated(), counting_rows, settings(**options), held_out=HELD_OUT, out=tmp_path, on_evaluation=seen.append
    )
    events = {record["step"]: record["event"] for record in result.history if "event" in record}
    assert events == {0: "learning rate 0.01"}
    lines = [line[10:] for line in capsys.readouterr().err.splitlines()]
    assert re.fullmatch(f"step 0/9  {NUMBERS}", lines[0])
    assert re.fullmatch(rf"step 9/9  {NUMBERS}  [\d,]+ tokens/s  0:00:00 left", lines[-1])
    assert [line for line in lines if ": " in line] == [f"step {step}: {text}" for step, text in events.items()]
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {record["step"]: record["event"] for record in log if record.keys() == {"step", "event"}} == events
    assert [len(history) for history in seen] == list(range(1, 11))
    assert seen[-1] == result.history  # with what was decided after the evaluation


def test_the_history_has_all_that_is_drawn():
    model = gated()
    result = run(model, learning_rate=0.5, warmup=4)
    for record in result.history:
        assert record["dense_loss"] == result.dense.loss
        assert record["target"] == result.target
        assert record["gate_bias"] == 2.0
        assert len(record["share_per_layer"]) == 2
        mean = sum(record["share_per_layer"]) / 2  # layers see as many pairs
        assert mean == pytest.approx(record["share_of_visible_pairs"])
    config = settings(learning_rate=0.5, warmup=4)
    rates = [record["learning_rate"] for record in result.history]
    assert rates == [0.0, *(0.5 * config.rise_at(step - 1) * config.fall_at(step - 1) for step in (4, 8, 12))]


def test_shares_of_layers_are_what_is_open_in_them():
    model = gated()
    with sl.record_gates(model) as gates:
        found = evaluate(model, HELD_OUT)
    expected = gates.open.sum(-1) / gates.visible_pairs.sum(-1)
    assert found.share_per_layer == pytest.approx(expected.tolist())
    assert found.share_per_layer[0] != found.share_per_layer[1]
    weighted = evaluate(model, HELD_OUT, layer_cost=3.0)
    assert weighted.cost == pytest.approx((expected[0] + 3 * expected[1]).item() / 2)


def record(step: int, loss: float, edges: float, feasible: bool, gate_bias: float = 0.0) -> dict[str, Any]:
    found = {
        "step": step,
        "loss": loss,
        "open_edges": edges,
        "feasible": feasible,
        "share_of_visible_pairs": edges / 100,
    }
    return {**found, "target": 1.1, "dense_loss": 1.0, "gate_bias": gate_bias}


START = record(0, 1.5, 40.0, False)


@pytest.mark.parametrize(
    ("history", "kept", "notes"),
    [
        ([START, record(4, 1.05, 9.0, True)], 4, []),
        ([record(0, 1.0, 40.0, True), record(4, 1.25, 9.0, False)], 0, ["step 0", "never met the target of 1.1000"]),
        ([START, record(4, 1.05, 40.0, True)], 4, ["no attention edge was closed: 40.0 open"]),
        ([record(0, 1.5, 40.0, False, OPEN_BIAS), record(4, 1.05, 40.0, True, OPEN_BIAS)], 4, []),  # a dense control
        (
            [START, record(4, 1.05, 30.0, True), record(8, 1.11234, 3.0, False)],
            4,
            [r"\(step 8\) has 3\.00% of .* open, 10 times fewer .* by 0\.0123 nats: --finish --margin 0\.1124 "],
        ),
        ([START, record(4, 1.05, 5.0, True), record(8, 1.11234, 3.0, False)], 4, []),  # no great loss
        ([START, record(4, 1.05, 30.0, True), record(8, 1.3, 3.0, False)], 4, []),  # far off
        ([START, record(4, 1.05, 30.0, True), record(8, 1.15, 0.0, False)], 4, []),  # nothing left to look at
        ([START, record(4, 1.05, 30.0, True), record(8, 1.09, 3.0, True)], 4, []),  # met, but dearer by `layer_cost`
        ([START, record(4, 1.4, 9.0, False)], 4, [r"after step 0: 1\.4000 at best \(step 4\)"]),
        (
            [START, record(4, 9.0, 9.0, False), record(8, 3.1, 9.0, False)],
            0,
            ["step 0", "at best", "learning_rate=0.7"],
        ),
        ([START, record(4, 9.0, 9.0, False), record(8, 2.9, 9.0, False)], 0, ["step 0", r"2\.9000 at best \(step 8\)"]),
    ],
)
def test_what_went_wrong_is_said(history: list[dict[str, Any]], kept: int, notes: list[str]):
    found = notes_on(history, kept, 0.7)
    assert len(found) == len(notes)
    assert all(re.search(part, note) for part, note in zip(notes, found, strict=True)), found


def test_a_last_state_without_a_checkpoint_is_said_to_be_lost():
    near = [START, record(4, 1.05, 30.0, True), record(8, 1.11234, 3.0, False)]
    (note,) = notes_on(near, 4, 0.7, checkpoint=False)
    assert note.endswith("by 0.0123 nats: without `out` it is lost")


def test_a_learning_rate_that_breaks_the_model_is_named():
    result = run(gated(), learning_rate=100.0, target=4.3)
    assert "(step 0)" in result.notes[0]
    assert "learning_rate=100 is too high" in result.notes[-1]
    assert run(gated(), margin=0.5, multiplier_range=1e4).notes == []
