"""Runs that are asked to stop, or killed, as often as it pleases, and go on as if nothing had been."""

import itertools
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparselens.training.checkpoint import load_checkpoint
from sparselens.training.losses import next_token_loss
from sparselens.training.stopping import stop_requests
from tests.sparselens.training.test_resume import AUTO, DROPOUT, log_steps
from tests.tiny_runs import counting_rows, gated, run


class KilledError(Exception):
    """Stands for `kill -9`: nothing of the program runs after it."""


def kill() -> None:
    raise KilledError


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def loss_that(way: Callable[[], None], call: int) -> Any:
    """The usual loss, but at one of its calls, be it in training or in an evaluation, something happens."""
    calls = itertools.count()

    def loss(logits: Tensor, batch: Tensor) -> Tensor:
        if next(calls) == call:
            way()
        return next_token_loss(logits, batch)

    return loss


def stopped_again_and_again(out: Path, **options: Any) -> tuple[int, Any, Any]:
    """How often a run was stopped at a random moment, and its result and model once nothing stopped it."""
    chance = random.Random(0)
    for stops in itertools.count():
        model = gated(**DROPOUT)
        loss = loss_that(chance.choice([kill, interrupt, terminate]), chance.randrange(1, 7))
        try:
            return stops, run(model, out=out, loss=loss, resume=True, **options), model
        except (KilledError, KeyboardInterrupt):
            pass
    raise AssertionError("counting has no end")


def test_twenty_kills_change_nothing(tmp_path: Path):
    options: dict[str, Any] = {"steps": 50, "evaluate_every": 2, "checkpoint_every": 3}
    whole = gated(**DROPOUT)
    expected = run(whole, out=tmp_path / "whole", loss=loss_that(kill, -1), **options)
    stops, result, model = stopped_again_and_again(tmp_path / "stopped", **options)
    assert stops >= 20
    assert any("event" in record for record in result.history)
    assert result == expected
    for name, value in model.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name
    last = [load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("stopped", "whole")]
    torch.testing.assert_close(last[0]["model"], last[1]["model"], atol=0, rtol=0)
    torch.testing.assert_close(last[0]["optimizer"]["state"], last[1]["optimizer"]["state"], atol=0, rtol=0)
    assert last[0]["geco"] == last[1]["geco"]
    assert log_steps(tmp_path / "stopped") == log_steps(tmp_path / "whole")  # none twice, none missing


@pytest.mark.parametrize("way", [interrupt, terminate])
def test_a_signal_ends_the_run_after_its_step(tmp_path: Path, way: Callable[[], None]):
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]

    def batches(index: int) -> Tensor:
        if index == 6:
            way()
        return counting_rows(index)

    with pytest.raises(KeyboardInterrupt, match=r"stopped after step 7; resume=True continues from .*checkpoint\.pt"):
        run(gated(), out=tmp_path, batches=batches, steps=20, checkpoint_every=1000)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 7
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_ends_the_dense_control_and_leaves_the_weights(tmp_path: Path):
    model = gated()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt, match="stopped in the dense control, before the first step"):
        run(model, out=tmp_path, loss=loss_that(terminate, 3), **AUTO)  # after two evaluations of the dense model
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not (tmp_path / "checkpoint.pt").exists()


def test_without_a_folder_ctrl_c_is_what_it_was():
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(gated(), loss=loss_that(interrupt, 8))
    assert "resume" not in str(stopped.value)


def test_the_second_signal_stops_at_once(capfd: pytest.CaptureFixture):
    with pytest.raises(KeyboardInterrupt), stop_requests() as stop:
        interrupt()
        assert stop.received
        assert "Ctrl-C again to stop at once, without one" in capfd.readouterr().err
        terminate()


def test_ignored_signals_stay_ignored():
    """As under nohup, or in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_requests() as stop:
            interrupt()
            assert not stop.received
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_threads_can_run_too(tmp_path: Path):
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(run(gated(), out=tmp_path, steps=2)))
    thread.start()
    thread.join()
    assert results[0].history[-1]["step"] == 2


@pytest.mark.parametrize(("minutes", "written"), [(1.0, [3, 6, 9, 12]), (0.3, [*range(1, 13)]), (9.0, [12])])
def test_checkpoints_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float, written: list[int]):
    saved: list[int] = []
    seconds = 0.0

    def slow_batches(index: int) -> Tensor:
        nonlocal seconds
        seconds += 20.5
        return counting_rows(index)

    monkeypatch.setattr("sparselens.training.run.time", SimpleNamespace(monotonic=lambda: seconds))
    monkeypatch.setattr("sparselens.training.run.save_checkpoint", lambda _, state: saved.append(state["step"]))
    run(gated(), out=tmp_path, batches=slow_batches, checkpoint_every=1000, checkpoint_minutes=minutes)
    assert saved == written


def test_how_often_checkpoints_are_written_may_change_in_a_resumed_run(tmp_path: Path):
    run(gated(), out=tmp_path, steps=2)
    run(gated(), out=tmp_path, steps=2, resume=True, checkpoint_every=7, checkpoint_minutes=3.0)
