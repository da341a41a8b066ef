"""Which tiles suit the kernels of gated attention on this GPU: `python tests/benchmarks/tune_kernel.py`.

Each of the three kernels alone, in training with noise, over the tiles that may do: Llama-3.2-1B's heads, causal,
bfloat16. Compiling is what takes long: processes do it side by side first, and leave the results in Triton's cache.
With `--dry` two tiles of each kernel are compiled and nothing is run, which needs no GPU.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

os.environ.pop("TRITON_INTERPRET", None)
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from sparselens.gates import triton_attention
from sparselens.gates.fused import Call
from sparselens.gates.noise import RowNoise, words_of
from sparselens.gates.spans import Spans
from sparselens.gates.triton_attention import Tiles, tiles, triton_attend
from tests.benchmarks.gpu import milliseconds, resources

HEADS, KV_HEADS = 32, 8
KERNELS = ("forward", "backward_queries", "backward_keys")
# rows, columns, warps: four warps take 64 rows at a time, and of fewer rows several warps would do the same
CUTS = {
    ("forward", 64): ((64, 64, 4), (64, 128, 4), (128, 32, 8), (128, 64, 8), (128, 128, 8), (128, 64, 4)),
    ("forward", 128): ((64, 32, 4), (64, 64, 4), (64, 128, 4), (128, 32, 8), (128, 64, 8), (128, 128, 8)),
    ("backward_queries", 64): ((64, 32, 4), (64, 64, 4), (128, 32, 8), (128, 64, 8), (128, 32, 4), (64, 128, 4)),
    ("backward_queries", 128): ((64, 32, 4), (64, 64, 4), (128, 32, 8), (128, 64, 8), (64, 16, 4)),
    ("backward_keys", 64): ((64, 32, 4), (64, 64, 4), (128, 32, 8), (128, 64, 8), (64, 128, 8), (128, 128, 8)),
    ("backward_keys", 128): ((64, 32, 4), (64, 64, 4), (128, 32, 8), (128, 64, 8), (64, 64, 8), (64, 128, 8)),
}
STAGES = (2, 3)


class Trial(NamedTuple):
    kernel: str
    width: int
    tiles: Tiles


class Launch(NamedTuple):
    kernel: str
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def run(self) -> Any:
        return getattr(_kernels, self.kernel)[self.grid](*self.arguments, **self.options)

    def compile(self) -> Any:
        return getattr(_kernels, self.kernel).warmup(*self.arguments, grid=self.grid, **self.options)


_kernels: Any = triton_attention._kernel


class Spy:
    """Stands for the kernels: notes every launch, and lets it pass or not."""

    def __init__(self, passing: bool) -> None:
        self.passing = passing
        self.launches: dict[str, Launch] = {}

    def __getattr__(self, kernel: str) -> Any:
        return _Spied(self, kernel)


class _Spied:
    def __init__(self, spy: Spy, kernel: str) -> None:
        self.spy, self.kernel = spy, kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **options: Any) -> None:
            self.spy.launches[self.kernel] = Launch(self.kernel, grid, arguments, options)
            if self.spy.passing:
                self.spy.launches[self.kernel].run()

        return launch


def trials(widths: list[int], dry: bool) -> Iterator[Trial]:
    """Every tile that may do, the present ones among them."""
    for kernel, width in product(KERNELS, widths):
        cuts = [Tiles(*cut, stages) for cut, stages in product(CUTS[kernel, width], STAGES)]
        cuts = [*dict.fromkeys([tiles(kernel, width, 2), *cuts])]
        yield from (Trial(kernel, width, cut) for cut in (cuts[:2] if dry else cuts))


def launch_of(trial: Trial, batch: int, length: int, device: str) -> Launch:
    """How one kernel is called in training, with these tiles; on a CPU no kernel is."""
    spy = Spy(passing=device != "cpu")
    chosen = lambda kernel, *given: trial.tiles if kernel == trial.kernel else tiles(kernel, *given)  # noqa: E731
    triton_attention._kernel, triton_attention.tiles = spy, chosen
    try:
        make = partial(torch.zeros if device == "cpu" else torch.randn, device=device, dtype=torch.bfloat16)
        heads = (HEADS, KV_HEADS, KV_HEADS)
        query, key, value = (make(batch, n, length, trial.width, requires_grad=True) for n in heads)
        last = torch.arange(1, length + 1, dtype=torch.int32, device=device)[None]
        shape = torch.Size([batch, HEADS, length, length])
        words = words_of(RowNoise(0, 0), 0, shape, torch.device(device))
        call = Call(Spans(torch.zeros_like(last), last, length), trial.width**-0.5, 0.0, words=words)
        output, expected, _ = triton_attend(query, key, value, call)
        torch.autograd.grad(output.float().sum() + expected.sum(), (query, key, value))
    finally:
        triton_attention._kernel, triton_attention.tiles = _kernels, tiles
    return spy.launches[trial.kernel]


def compile_for(capability: int, trial: Trial, batch: int, length: int) -> tuple[int, int] | str:
    """Compile as a launch would, in a process without a GPU: registers and bytes spilled, or why not."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    torch.set_num_threads(1)
    target = GPUTarget("cuda", capability, 32)
    driver.set_active(
        SimpleNamespace(  # type: ignore[arg-type]
            get_current_target=lambda: target, get_current_device=lambda: 0, get_current_stream=lambda _: 0
        )
    )
    try:
        return resources(launch_of(trial, batch, length, "cpu").compile())
    except Exception as error:  # whatever the compiler says: these tiles are not for us
        return f"{type(error).__name__}: {str(error)[:60]}"


def timed(trial: Trial, batch: int, length: int) -> float | str:
    """Milliseconds, or why not."""
    from triton.runtime.errors import OutOfResources

    try:
        return milliseconds(launch_of(trial, batch, length, "cuda").run)
    except OutOfResources as error:
        return str(error)[:60]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128], choices=[64, 128])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--dry", action="store_true", help="compile two tiles of each kernel, run nothing")
    given = parser.parse_args()
    major, minor = (9, 0) if given.dry else torch.cuda.get_device_capability()
    start = time.monotonic()
    todo = [*trials(given.widths, given.dry)]
    with ProcessPoolExecutor(given.workers, get_context("spawn")) as pool:
        compiling = partial(compile_for, 10 * major + minor, batch=given.batch, length=given.length)
        compiled = [*pool.map(compiling, todo)]
    print(f"{len(todo)} compiled in {time.monotonic() - start:.0f} s", flush=True)
    rows: list[tuple[Trial, float, str]] = []
    for trial, told in zip(todo, compiled, strict=True):
        taken = told if given.dry or isinstance(told, str) else timed(trial, given.batch, given.length)
        fits = isinstance(told, tuple) and not isinstance(taken, str)
        note = f"{told[0]:3d} registers, {told[1]:4d} bytes spilled" if fits else str(taken)
        rows.append((trial, taken if isinstance(taken, float) else float("inf"), note))
    rows.sort(key=lambda row: (row[0].width, KERNELS.index(row[0].kernel), row[1]))
    seen: set[tuple[str, int]] = set()
    for (kernel, width, cut), taken, note in rows:
        best = "<- best" if taken < float("inf") and (kernel, width) not in seen else ""
        seen.add((kernel, width))
        now = "now" if cut == tiles(kernel, width, 2) else ""
        shape = f"{cut.rows:3d} x {cut.columns:3d}, {cut.warps} warps, {cut.stages} stages"
        print(f"{kernel:16s} d_head {width:3d}  {shape}  {taken:7.3f} ms  {note} {now:3s} {best}")
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
