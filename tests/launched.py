"""Functions and programs in processes of their own, several at once as `accelerate launch` and torchrun start them.

Each is forked from one process that has the libraries loaded: to load them takes longer than what is run.
"""

import multiprocessing
import os
import runpy
import shutil
import socket
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(
    [
        "accelerate",
        "datasets",
        "peft",
        "torch.distributed.fsdp",
        "transformer_lens.model_bridge",
        "transformers.masking_utils",
    ]
)


class Program:
    """A function that runs in a process of its own, from the repository's root."""

    def __init__(
        self, function: Callable[..., Any], *arguments: Any, environment: dict[str, str] | None = None
    ) -> None:
        told = Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, told, ignore_errors=True)
        self._output, self._errors = told / "output", told / "errors"
        self.process = _FORKED.Process(
            target=_run, args=(function, arguments, environment or {}, self._output, self._errors)
        )
        self.process.start()

    def wait(self, timeout: float = 300) -> int | None:
        """How it ended: 0, what it exited with, or minus the signal that ended it."""
        self.process.join(timeout)
        return self.process.exitcode

    @property
    def output(self) -> str:
        return self._output.read_text(encoding="utf-8")

    @property
    def errors(self) -> str:
        return self._errors.read_text(encoding="utf-8")


def _run(
    function: Callable[..., Any], arguments: tuple[Any, ...], environment: dict[str, str], output: Path, errors: Path
) -> None:
    for file, number in ((output, 1), (errors, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.environ.update(environment)
    os.chdir(ROOT)
    function(*arguments)


def run_module(module: str, *arguments: str) -> None:
    """As `python -m`."""
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def launch(number: int, module: str, *arguments: str) -> list[str]:
    """Run a module in so many processes that find each other by gloo; what each of them printed."""
    shared = {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    shared |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    programs = [
        Program(run_module, module, *arguments, environment=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(number)
    ]
    ended = [program.wait() for program in programs]
    assert ended == [0] * number, "\n".join(program.errors for program in programs)
    return [program.output for program in programs]
