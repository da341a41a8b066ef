"""How results show themselves: a line, a small table, a tidy frame, a plot, parts by their names."""

from typing import Any

import pytest
import torch

import sparselens as sl
from sparselens.circuits.circuit import Circuit
from sparselens.circuits.graph import Graph
from sparselens.models.folder import load_tokenizer
from sparselens.tasks import TASKS
from sparselens.training.evaluation import Evaluation

CIRCUIT = Circuit(Graph.of_shape(1, 2), ["input->m0", "a0.h1->logits"], torch.arange(32.0).reshape(4, 8) - 15)
PAIRS = TASKS["addition"].tokenize(load_tokenizer("addition"), 12)
HOSTILE = "<script>alert('$x$')</script>"


def post_trained() -> sl.PostTrainResult:
    dense, sparse = Evaluation(1.0, 90.0, 1.0, 0.5, 5.0, 1.0), Evaluation(1.01, 9.0, 0.1, 0.05, 0.5, 0.1)
    history = [{"step": i, "loss": 1.0 + i, "open_edges": 9.0 - i, "multiplier": 10.0} for i in range(3)]
    return sl.PostTrainResult(dense, sparse, 2, True, 1.02, [*history, {**history[0], "step": 3, "event": "back"}])


def capability(task: str = "sums") -> sl.Capability:
    right = torch.tensor([True] * 9 + [False] * 3)
    return sl.Capability(task, "logit_difference", PAIRS, right, torch.arange(12.0), 0.5)


RESULTS: dict[str, tuple[Any, str, int]] = {
    "circuit": (CIRCUIT, "Circuit(2 of 13 edges, 1 layer of 2 heads)", 2),
    "pairs": (PAIRS, "TokenizedPairs(12 pairs of 11 tokens, positions A1, A0, B1, B0, S1, END)", 12),
    "capability": (
        capability(),
        "Capability(sums, 12 pairs: accuracy 0.75 [0.468, 0.911], chance 0.5, logit_difference 5.5 ",
        12,
    ),
    "run": (
        post_trained(),
        "PostTrainResult(step 2: loss 1.0100 (dense 1.0000, target 1.0200), 10.00% of visible pairs open)",
        4,
    ),
}


@pytest.mark.parametrize(("result", "line", "rows"), RESULTS.values(), ids=RESULTS)
def test_a_result_is_a_line_a_table_and_a_frame(result: Any, line: str, rows: int):
    assert repr(result).startswith(line) and "\n" not in repr(result)
    assert len(result.to_frame()) == rows
    shown = result._repr_html_()
    assert shown.count("<tr") == 1 + min(rows, 10) and len(shown) < 4000
    assert ("more rows" in shown) == (rows > 10)


@pytest.mark.parametrize("name", ["circuit", "capability", "run"])
def test_a_plot_has_every_row(name: str):
    result, _, rows = RESULTS[name]
    traces = result.plot().data
    drawn = sum(len(trace.x) for trace in traces)
    assert drawn == rows * (3 if name == "run" else 1)


def test_what_is_shown_is_escaped():
    shown = capability(HOSTILE)
    assert "<script" not in shown._repr_html_() and "&lt;script" in shown._repr_html_()
    assert "<script" not in shown.plot().layout.title.text


def test_a_table_begins_with_the_largest():
    shown = CIRCUIT._repr_html_()
    assert shown.index("input-&gt;m0") < shown.index("a0.h1-&gt;logits")  # -9 before 8


def test_a_circuit_is_read_by_names():
    scores = dict(zip(CIRCUIT.edges, [-9.0, 8.0], strict=True))
    assert {edge: CIRCUIT[edge] for edge in CIRCUIT} == scores
    assert CIRCUIT["a0.h1", "logits"] == CIRCUIT["a0.h1->logits"]
    assert "input->m0" in CIRCUIT and "input->logits" not in CIRCUIT
    assert (CIRCUIT - "input->m0").edges == ["a0.h1->logits"] and len(CIRCUIT - CIRCUIT.edges) == 0
    with pytest.raises(ValueError, match=r"no such source: 'a9\.h1'"):
        CIRCUIT["a9.h1->logits"]


def test_labels_are_what_all_prompts_share():
    assert PAIRS.labels[:6] == ("0 A1", "1 A0", "2 +", "3 B1", "4 B0", "5 =")
    assert PAIRS[:1].labels[0] == f"0 {PAIRS.token_strings[0][0]}"
    plain = sl.TokenizedPairs(torch.ones(1, 2).long(), torch.zeros(1, 2).long(), torch.tensor([1]), torch.tensor([0]))
    assert plain.labels == ("0", "1")


def test_tasks_list_themselves_with_examples():
    lines = repr(TASKS).splitlines()
    assert len(lines) == len(TASKS) == 24 and max(map(len, lines)) <= 120
    assert lines[2].startswith("ioi ") and lines[2].endswith("not ' Ryan'")
    assert TASKS._repr_html_().count("<tr") == 1 + len(TASKS)
    assert repr(TASKS["ioi"]) == "Task('ioi': to whom is something given?)"


def test_a_mistyped_task_is_told_the_nearest():
    for error in (KeyError, ValueError):
        with pytest.raises(error, match=r"^no such task: 'iio', did you mean 'ioi'\? \(want addition, "):
            TASKS["iio"]
    assert TASKS.get("iio") is None and "iio" not in TASKS
