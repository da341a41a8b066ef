"""Interrupted runs: killed at any moment, cut short on disk, or continued with other settings."""

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sparselens.files.whole import whole_file, write_json
from sparselens.training import checkpoint
from sparselens.training.checkpoint import load_checkpoint, save_checkpoint
from sparselens.training.evaluation import evaluate
from sparselens.training.losses import next_token_loss
from sparselens.training.trained import choose_trained
from tests.launched import Program, run_module
from tests.tiny_runs import HELD_OUT, gated, run, trained

AUTO = {"learning_rate": "auto", "control_steps": 2}
DROPOUT = {"resid_pdrop": 0.2, "attn_pdrop": 0.2}


def start_program(out: Path, kind: str, family: str, model: dict[str, Any], pause: float) -> Program:
    given = {"kind": kind, "family": family, "model": model, "out": str(out), "options": {"checkpoint_every": 2}}
    return Program(run_module, "tests.tiny_runs", json.dumps([{**given, "pause": pause}]))


def kill_in_the_middle(program: Program, out: Path) -> None:
    """`kill -9` at a random moment after the first checkpoint."""
    deadline = time.monotonic() + 240
    while not (out / "checkpoint.pt").exists():
        assert program.process.is_alive(), program.errors
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(random.SystemRandom().uniform(0, 0.6))
    program.process.kill()
    assert program.wait() == -signal.SIGKILL


def log_steps(out: Path) -> list[tuple[int, bool]]:
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [(record["step"], record.get("evaluation", False)) for record in records]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "family", "model"), [("transformers", "gpt2", DROPOUT), ("bridge", "llama", {})])
def test_killed_run_ends_as_if_it_had_not_been(tmp_path: Path, kind: str, family: str, model: dict[str, Any]):
    program = start_program(tmp_path / "killed", kind, family, model, pause=0.1)
    whole, killed = gated(kind, family, **model), gated(kind, family, **model)
    expected = run(whole, out=tmp_path / "whole", checkpoint_every=2)
    kill_in_the_middle(program, tmp_path / "killed")
    assert load_checkpoint(tmp_path / "killed" / "checkpoint.pt")["step"] < 12

    result = run(killed, out=tmp_path / "killed", checkpoint_every=2, resume=True)
    assert result == expected
    for name, value in killed.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name
    last = [load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("killed", "whole")]
    assert last[0]["history"] == last[1]["history"]
    for name in ("model", "step", "geco", "learning_rate"):
        torch.testing.assert_close(last[0][name], last[1][name], atol=0, rtol=0)
    assert log_steps(tmp_path / "killed") == log_steps(tmp_path / "whole")  # none twice, none missing
    assert not list(tmp_path.glob("*/.*"))


def failing(model: Any, at: int) -> Any:
    """A loss that ends the run in its training batch of that number."""
    batches = 0

    def loss(logits: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        nonlocal batches
        batches += model.training
        if batches == at:
            raise KeyboardInterrupt
        return next_token_loss(logits, batch)

    return loss


@pytest.mark.parametrize(
    ("stop", "options"), [(1, {}), (6, {"accumulation": 2}), (8, {"distillation": 0.5}), (9, AUTO)]
)
def test_run_stopped_by_an_error_goes_on(tmp_path: Path, stop: int, options: dict[str, Any]):
    whole, stopped = gated(), gated()
    expected = run(whole, out=tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        run(stopped, out=tmp_path / "stopped", loss=failing(stopped, stop * options.get("accumulation", 1)), **options)
    fresh = gated()
    assert run(fresh, out=tmp_path / "stopped", resume=True, **options) == expected
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), whole.parameters(), strict=True))
    assert log_steps(tmp_path / "stopped") == log_steps(tmp_path / "whole")


def test_stopped_run_can_be_ended_where_it_is_and_gone_on_with(tmp_path: Path):
    expected = run(gated(), out=tmp_path / "whole", evaluate_every=2)
    stopped, ended = gated(), gated()
    options: dict[str, Any] = {"out": tmp_path / "stopped", "evaluate_every": 2, "checkpoint_every": 4}
    with pytest.raises(KeyboardInterrupt):
        run(stopped, loss=failing(stopped, 9), **options)
    found = run(ended, finish=True, **options)
    kept = load_checkpoint(tmp_path / "stopped" / "checkpoint.pt")["best"]
    assert found.step == kept["step"] and len(found.history) == 1 + 8 // 2
    assert all(torch.equal(ended.state_dict()[name], value) for name, value in kept["model"].items())
    assert not ended.training and "ended after step 8 of 12" in found.notes[-1]
    assert run(gated(), resume=True, **options) == expected


def test_a_run_that_missed_its_target_gives_its_last_state_by_another(tmp_path: Path):
    options: dict[str, Any] = {"out": tmp_path, "steps": 20, "learning_rate": 0.3, "violation_limit": 10.0}
    missed = run(trained(), margin=-0.069, **options)
    last = missed.history[-1]
    assert not missed.feasible and missed.step < last["step"] and last["loss"] > missed.target

    again = trained()
    found = run(again, margin=last["loss"] - missed.dense.loss + 1e-6, finish=True, **options)
    assert found.feasible and found.step == 20 and found.sparse.open_edges == last["open_edges"]
    judged = [{**r, "target": found.target, "feasible": r["loss"] <= found.target} for r in missed.history[:-1]]
    assert found.history[:-1] == judged
    assert f"the run was steered to {missed.target:.4f}" in found.notes[0]
    assert evaluate(again, HELD_OUT) == found.sparse
    kept = load_checkpoint(tmp_path / "checkpoint.pt")
    assert all(
        torch.equal(value, kept["model"][name]) for name, value in again.state_dict().items() if "masked" not in name
    )
    assert run(trained(), margin=-0.069, finish=True, **options) == missed  # nothing was written
    with pytest.raises(ValueError, match=r"was written with margin=-0\.069"):
        run(trained(), margin=0.5, resume=True, **options)


def test_there_must_be_something_to_end(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no run to finish: .*checkpoint\.pt does not exist"):
        run(gated(), out=tmp_path, finish=True)
    with pytest.raises(ValueError, match="finish=True needs the `out` folder"):
        run(gated(), finish=True)


def test_finished_run_gives_its_result_again(tmp_path: Path):
    first, again = gated(), gated()
    result = run(first, out=tmp_path)
    assert run(again, out=tmp_path, resume=True) == result
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_checkpoint_of_other_settings_is_refused(tmp_path: Path):
    run(gated(), out=tmp_path, steps=2)
    with pytest.raises(ValueError, match=r"checkpoint.pt was written with steps=2: resume with the same settings"):
        run(gated(), out=tmp_path, steps=4, resume=True)


def test_checkpoint_of_another_model_is_refused(tmp_path: Path):
    run(gated(), out=tmp_path, steps=2)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is from another model"):
        run(gated("transformers", "llama"), out=tmp_path, steps=2, resume=True)


def test_folder_of_an_earlier_run_is_not_overwritten(tmp_path: Path):
    run(gated(), out=tmp_path, steps=2)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match="is from an earlier run: pass resume=True"):
        run(gated(), out=tmp_path, steps=2)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_checkpoint_cut_short_is_refused(tmp_path: Path, share: float):
    run(gated(), out=tmp_path, steps=2)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match="is not a complete checkpoint"):
        run(gated(), out=tmp_path, steps=2, resume=True)


def test_other_files_are_no_checkpoints(tmp_path: Path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="is not a checkpoint of post-training"):
        run(gated(), out=tmp_path, resume=True)


def test_checkpoints_are_read_without_unpickling(tmp_path: Path):
    torch.save({"step": 1, "path": tmp_path}, tmp_path / "checkpoint.pt")  # a Path needs unpickling
    with pytest.raises(ValueError, match="is not a complete checkpoint"):
        load_checkpoint(tmp_path / "checkpoint.pt")


def test_failed_write_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1})

    def full_disk(state: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_failed_rename_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError), whole_file(tmp_path / "record.json") as file:
        file.write(b"{}")
    assert list(tmp_path.iterdir()) == []


def test_json_is_strict(tmp_path: Path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "record.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_log_cut_short_is_mended(tmp_path: Path):
    run(gated(), out=tmp_path)
    log = tmp_path / "log.jsonl"
    whole = log.read_text()
    log.write_text(whole + '{"step": 13, "lo')  # killed while writing, after the checkpoint
    run(gated(), out=tmp_path, resume=True)
    assert log.read_text() == whole


def test_frozen_weights_are_left_out_and_known_again(tmp_path: Path):
    def model(seed: int) -> Any:
        found = gated(seed=seed)
        choose_trained(found, "attention")
        return found

    trained = model(0)
    run(trained, out=tmp_path)
    state = checkpoint.load_checkpoint(tmp_path / "checkpoint.pt")
    own = {name for name, value in trained.named_parameters() if value.requires_grad}
    for kept in (state["model"], state["best"]["model"]):
        assert own == {name for name in kept if name in dict(trained.named_parameters())}
    run(model(0), out=tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is from another model: the frozen weights differ"):
        run(model(1), out=tmp_path, resume=True)
