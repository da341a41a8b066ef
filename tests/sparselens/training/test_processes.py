"""Two processes on one machine are one run: same multiplier, same curve, same weights as a single process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sparselens.training.batches import rows_of_process
from sparselens.training.processes import accelerator_for
from tests.tiny_runs import THREE, assert_histories_close, gated, ragged_rows, run

ROOT = Path(__file__).parents[3]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def run_two(out: Path, kind: str, family: str, options: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    """The states of both processes after a run in two."""
    given = json.dumps({"kind": kind, "family": family, "out": str(out), "options": options, **more})
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    shared |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    programs = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.tiny_runs", given],
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [program.communicate(timeout=300)[1] for program in programs]
    assert [program.returncode for program in programs] == [0, 0], "\n".join(errors)
    return [torch.load(out / f"result-{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "family", "options"),
    [("transformers", "llama", {"accumulation": 2, "distillation": 0.5}), ("bridge", "gpt2", {"steps": 8})],
)
def test_two_processes_are_one_run(tmp_path: Path, kind: str, family: str, options: dict[str, Any]):
    first, second = run_two(tmp_path, kind, family, options)
    alone = gated(kind, family)
    history = run(alone, **options).history

    assert first["history"] == second["history"]  # the multiplier is in it
    assert_histories_close(first["history"], history, rel=1e-5, by=1e-5)
    for name, value in alone.state_dict().items():
        assert torch.equal(first["model"][name], second["model"][name]), name
        torch.testing.assert_close(first["model"][name], value, atol=1e-5, rtol=1e-4, msg=name)
    assert (tmp_path / "log.jsonl").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_two_processes_weigh_their_tokens(tmp_path: Path):
    options = {"distillation": 0.5, "steps": 8}
    first, _ = run_two(tmp_path, "transformers", "llama", options, hidden_by="labels")
    alone = gated("transformers", "llama")
    history = run(alone, batches=ragged_rows, **options).history
    assert_histories_close(first["history"], history, rel=1e-4, by=1e-5)


@pytest.mark.slow
def test_two_processes_that_share_one_model_are_one_run(tmp_path: Path):
    first, second = run_two(tmp_path, "transformers", "llama", {"distillation": 0.5}, fsdp=True)
    alone = gated("transformers", "llama")
    history = run(alone, distillation=0.5, held_out=THREE).history
    assert first["history"] == second["history"]
    assert_histories_close(first["history"], history, rel=1e-5, by=1e-5)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(first["model"][name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_rows_are_split_evenly():
    batch = {"input_ids": torch.arange(8).view(4, 2), "labels": torch.arange(4).view(4, 1)}
    (first, at), (second, then) = (rows_of_process(batch, rank, 2) for rank in range(2))
    assert (at, then) == (0, 2)
    for name, value in batch.items():
        assert torch.equal(torch.cat([first[name], second[name]]), value)
    with pytest.raises(ValueError, match="a batch of 4 rows cannot be split evenly over 3 process"):
        rows_of_process(batch, 0, 3)


def test_runs_of_different_precision_follow_each_other():
    for precision in ("no", "bf16", "no"):
        assert accelerator_for(precision).mixed_precision == precision
