"""Tests of the figure of a run: its content, its legibility, and live updates in a notebook."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparselens import analyses
from sparselens.analyses.figures.paper import style
from sparselens.analyses.figures.training_drawing import draw_training
from sparselens.training.evaluation import Evaluation
from sparselens.training.result import PostTrainResult
from tests.analyses.figures.legible import assert_legible

EVERYTHING = ["held-out loss", "open edges", "multiplier", "gate bias", "learning rate", "open edges by layer"]


def history(n: int = 31, every: int = 200, layers: int = 4) -> list[dict[str, Any]]:
    """A typical run: back to its target quickly, then slowly sparser, with one miss."""
    records = []
    for place in range(n):
        done = place / max(1, n - 1)
        shares = [0.9 * math.exp(-done * (3 + layer)) for layer in range(layers)]
        loss = 1.7 + 2.5 * math.exp(-20 * done) + 0.02 * math.sin(7 * place)
        records.append(
            {
                "step": place * every,
                "loss": loss,
                "share_of_visible_pairs": sum(shares) / layers,
                "share_per_layer": shares,
                "dense_loss": 1.7,
                "target": 1.71,
                "feasible": loss <= 1.71,
                "multiplier": 10 ** (2 * math.sin(6 * done)),
                "gate_bias": 2 - 2 * min(1, 2 * done),
                "learning_rate": 5e-4 * (1 - done),
            }
        )
    return records


def drawn(records: list[dict[str, Any]], step: int | None = None, width: float = 6.75) -> Any:
    with style():
        return draw_training(records, step, width)


def titles(figure: Any) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]


def panel(figure: Any, title: str) -> Any:
    (axes,) = [axes for axes in figure.axes if axes.get_title(loc="left") == title]
    return axes


def curve(axes: Any) -> np.ndarray:
    """The points of the panel's own line."""
    (line,) = [line for line in axes.lines if line.get_linestyle() == "-" and line.get_zorder() == 3]
    return line.get_xydata()


def test_every_number_of_the_records_is_drawn():
    records = history()
    figure = drawn(records)
    assert titles(figure) == EVERYTHING
    for title, key in zip(EVERYTHING[1:4], ("share_of_visible_pairs", "multiplier", "gate_bias"), strict=True):
        assert curve(panel(figure, title)) == pytest.approx(np.array([[r["step"], r[key]] for r in records]))
    above = np.array([[record["step"], record["loss"] - 1.7] for record in records])
    assert curve(panel(figure, "held-out loss")) == pytest.approx(above)
    rates = np.array([[record["step"], record["learning_rate"] / 1e-4] for record in records])
    assert curve(panel(figure, "learning rate")) == pytest.approx(rates)
    assert panel(figure, "learning rate").get_ylabel() == "× 10⁻⁴"  # noqa: RUF001 - a multiplication sign
    (mesh,) = panel(figure, "open edges by layer").collections
    assert np.allclose(mesh.get_array(), np.array([record["share_per_layer"] for record in records]).T)
    scales = [panel(figure, title).get_yscale() for title in EVERYTHING]
    assert scales == ["symlog", "log", "log", "linear", "linear", "linear"]
    layers = panel(figure, "open edges by layer").get_ylim()
    assert layers[0] < layers[1]  # upward, as everywhere


def test_met_missed_and_returned_states_are_told_apart():
    records = history()
    figure = drawn(records, step=4000)
    axes = panel(figure, "open edges")
    filled, open_ = (
        {x for line in axes.lines if line.get_marker() == "s" and (line.get_markerfacecolor() == "white") is missed
         for x in line.get_xdata()}
        for missed in (False, True)
    )  # fmt: skip
    assert filled == {record["step"] for record in records if record["feasible"]}
    assert open_ == {record["step"] for record in records if not record["feasible"]}
    (star,) = [line for line in axes.lines if line.get_marker() == "*"]
    assert star.get_xydata().tolist() == [[4000, records[20]["share_of_visible_pairs"]]]
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == [
        "meets the target", "misses the target", "returned state (step 4,000)", "target 1.7100", "dense model 1.7000",
    ]  # fmt: skip


def test_events_are_lines_through_every_panel():
    records = history()
    records[7]["event"] = "back to step 600, multiplier 3"
    figure = drawn(records)
    for title in titles(figure):
        assert [1400, 1400] in [list(line.get_xdata()) for line in panel(figure, title).lines]
    assert figure.legends[0].get_texts()[-1].get_text() == "back to step 600, multiplier 3"
    records[9]["event"] = "back again"
    assert drawn(records).legends[0].get_texts()[-1].get_text() == "2 events, see the log"


@pytest.mark.parametrize("absent", ["share_per_layer", "gate_bias", "learning_rate", "multiplier"])
def test_panels_without_numbers_are_left_out(absent: str):
    records = [{key: value for key, value in record.items() if key != absent} for record in history()]
    figure = drawn(records)
    assert len(titles(figure)) == 5
    assert_legible(figure)


def test_step_and_loss_are_enough():
    figure = drawn([{"step": step, "loss": 2.0 - step / 10} for step in range(5)])
    assert titles(figure) == ["held-out loss"]
    assert panel(figure, "held-out loss").get_ylabel() == "nats per token"
    assert curve(panel(figure, "held-out loss"))[:, 1].tolist() == [2.0, 1.9, 1.8, 1.7, 1.6]
    assert_legible(figure)


def diverged(records: list[dict[str, Any]]) -> None:
    for record in records[1:]:
        record["loss"] *= 40


def reached_zero(records: list[dict[str, Any]]) -> None:
    for record in records[20:]:
        record |= {"share_of_visible_pairs": 0.0, "share_per_layer": [0.0 for _ in record["share_per_layer"]]}


def below_dense(records: list[dict[str, Any]]) -> None:
    for record in records:
        record |= {"target": 0.5, "feasible": False}


def constant(records: list[dict[str, Any]]) -> None:
    for record in records:
        record |= {key: records[0][key] for key in record if key != "step"}


def nothing(records: list[dict[str, Any]]) -> None:
    """The records unchanged."""


def many_events(records: list[dict[str, Any]]) -> None:
    for record in records[::3]:
        record["event"] = "back to step 12,500, multiplier 3.14; learning rate halved to 0.00025, since the loss rose"


def one_long_event(records: list[dict[str, Any]]) -> None:
    records[0]["event"] = 2 * "back to step 12,500, multiplier 3.14; learning rate halved to 0.00025, as the loss rose "


USUAL = (25, 250, 5)
CHANGES = [nothing, diverged, reached_zero, below_dense, constant, many_events, one_long_event]


@pytest.mark.parametrize(
    ("change", "n", "every", "layers"),
    [*((change, *USUAL) for change in CHANGES), (nothing, 1, 1, 1), (constant, 2, 60, 2), (diverged, 301, 20, 48)],
)
def test_any_run_can_be_read(change: Any, n: int, every: int, layers: int):
    records = history(n, every, layers)
    change(records)
    figure = drawn(records, step=records[-1]["step"])
    words = assert_legible(figure)
    for axes in figure.axes:
        assert sum(bool(label.get_text()) for label in axes.get_yticklabels()) >= (layers > 1)
    assert {"step", *titles(figure)} <= set(words)
    numbers = [word for word in words if re.search(r"\d", word)]
    assert not any("e" in number.split()[0] or "$" in number for number in numbers if number[0].isdigit())


@pytest.mark.parametrize("width", [3.25, 4.5, 9.0])
def test_other_widths_can_be_read(width: float):
    figure = drawn(history(), step=400, width=width)
    assert figure.get_size_inches()[0] == width
    assert_legible(figure)


def result(records: list[dict[str, Any]]) -> PostTrainResult:
    state = Evaluation(1.7, 1.0, 1.0, 0.5, 1.0, 1.0)
    return PostTrainResult(state, state, 400, True, 1.71, records)


def test_files_come_out_alike(tmp_path: Path):
    """Tests .svg only; the other formats are tested in `test_plot_drawing.py`."""
    figure = analyses.training_figure(result(history()))
    assert figure.step == 400
    path = figure.save(tmp_path / "run.svg")
    assert path.read_bytes().startswith(b"<?xml") and "returned state (step 400)" in path.read_text()
    again = analyses.training_figure(result(history())).save(tmp_path / "again.svg")
    assert path.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("records", [[], [{"step": 1}], [{"step": 1, "loss": 1.0}, {"loss": 1.0}]])
def test_what_is_no_history_is_refused(records: list[dict[str, Any]]):
    with pytest.raises(ValueError, match=r"\d records: want one or more, each with a step and a loss"):
        analyses.training_figure(records)


def test_a_notebook_follows_a_run_in_one_place(monkeypatch: pytest.MonkeyPatch):
    shown: list[tuple[str, Any]] = []

    class Handle:
        def update(self, figure: Any) -> None:
            shown.append(("update", figure))

    def display(figure: Any, display_id: bool) -> Handle:
        assert display_id
        shown.append(("display", figure))
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    show, records = analyses.live_training_figure(), history()
    for n in (1, 2, 3):
        show(records[:n])
    assert [(what, len(figure.history)) for what, figure in shown] == [("display", 1), ("update", 2), ("update", 3)]
    assert shown[-1][1]._repr_png_().startswith(b"\x89PNG")
