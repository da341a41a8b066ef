"""Only one run per folder; no lock remains, however a run is killed."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparselens import cli
from sparselens.files.locks import locked
from tests.tiny_runs import gated, run

HOLD = """
import sys
from sparselens.files.locks import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """Another process that works in `tmp_path / "out"`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None and program.stdout.readline() == "held\n"
        yield program
        program.kill()


def test_folder_in_use_names_the_process_and_is_free_when_that_is_killed(tmp_path: Path, holder: subprocess.Popen):
    with pytest.raises(ValueError, match=rf"out is in use by process {holder.pid} .*: wait"), locked(tmp_path / "out"):
        pass
    with locked(tmp_path / "another"):
        pass
    holder.kill()
    holder.wait()
    with locked(tmp_path / "out"):
        pass


def test_one_process_may_lock_a_folder_twice(tmp_path: Path):
    for _ in range(2):
        with locked(tmp_path):
            with locked(tmp_path / ".." / tmp_path.name):
                pass
            other = subprocess.run(
                [sys.executable, "-c", HOLD, str(tmp_path)], capture_output=True, text=True, input=""
            )
            assert "is in use by process" in other.stderr
    other = subprocess.run([sys.executable, "-c", HOLD, str(tmp_path)], capture_output=True, text=True, input="")
    assert other.stdout == "held\n"


def test_of_processes_launched_together_the_first_locks_for_all(
    tmp_path: Path, holder: subprocess.Popen, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RANK", "1")
    with locked(tmp_path / "out"):
        assert holder.poll() is None


def test_post_train_does_not_touch_a_folder_in_use(tmp_path: Path, holder: subprocess.Popen):
    with pytest.raises(ValueError, match=f"is in use by process {holder.pid}"):
        run(gated(), out=tmp_path / "out", steps=1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.lock"]


COMMANDS = {
    "post-train": ("--model", "stories260k", "--data", "none.txt"),
    "attribute": ("--model", "stories260k", "--task", "ioi"),
    "compare": ("--dense", "stories260k", "--sparse", "stories260k-sparse", "--task", "ioi"),
}


def test_commands_end_before_they_load_anything(
    tmp_path: Path, holder: subprocess.Popen, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    for command, options in COMMANDS.items():
        monkeypatch.setattr(sys, "argv", ["sparselens", command, *options, "--out", str(tmp_path / "out")])
        with pytest.raises(SystemExit):
            cli.main()
        assert f"is in use by process {holder.pid}" in capsys.readouterr().err
