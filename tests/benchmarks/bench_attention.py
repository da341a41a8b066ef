"""Seconds and peak memory of one gated attention call in evaluation, on a CPU: FlexAttention against eager.

Run by hand: `python tests/benchmarks/bench_attention.py`. The shape is that of Llama-3.2-1B's attention. Each line
comes from a process of its own, which has called once before (FlexAttention is compiled then), and which gives freed
memory back.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import causal_mask_function

sys.path.insert(0, str(Path(__file__).parents[2]))

from sparselens.gates.attention import _mask_for, gated_attention
from sparselens.gates.gate import GateSettings
from sparselens.gates.statistics import GateStatistics

HEADS, KV_HEADS, D_HEAD = 32, 8, 64


class Attention(nn.Module):
    """What transformers calls a gated attention with."""

    layer_idx, is_causal = 0, True

    def __init__(self, implementation: str) -> None:
        super().__init__()
        self._sparselens_gate = GateSettings(0.0, n_layers=1, implementation=implementation)
        self.statistics = GateStatistics(self._sparselens_gate)
        self._sparselens_gate.recorders.append(self.statistics)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.statistics.clear()
        batch, length = len(query), query.shape[2]
        mask: Any = _mask_for(
            self._sparselens_gate.implementation,
            batch_size=batch,
            q_length=length,
            kv_length=length,
            mask_function=causal_mask_function,
            device=query.device,
        )
        return gated_attention(self, query, key, value, mask)[0]


def inputs(
    length: int, device: str = "cpu", dtype: torch.dtype = torch.float32, batch: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, heads, length, D_HEAD) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    query, key, value = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    return query, key, value


def memory(which: str) -> float:
    """In MiB: VmRSS now, VmHWM at its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) / 1024


def measure(implementation: str, length: int, repeats: int) -> None:
    attention, given = Attention(implementation).eval(), inputs(length)
    seconds: list[float] = []
    with torch.no_grad():
        start = time.perf_counter()
        attention(*given)
        first = time.perf_counter() - start
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from here
        before = memory("VmRSS")
        for _ in range(repeats):
            start = time.perf_counter()
            attention(*given)
            seconds.append(time.perf_counter() - start)
    peak, opened = memory("VmHWM") - before, attention.statistics.share_of_visible_pairs
    print(
        f"{implementation:6} T {length:5}   {min(seconds):8.3f} s (first call {first:6.1f} s)   "
        f"peak {peak:8.1f} MiB   open {opened:.6f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--eager-up-to", type=int, default=1024, help="longer ones need gigabytes")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--one", nargs=2, help="only this implementation and length, in this process")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.one:
        measure(given.one[0], int(given.one[1]), given.repeats)
        return
    # without this glibc keeps what was freed, and the next call seems to need nothing
    surroundings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    for length in given.lengths:
        for implementation in ("eager", "flex"):
            if implementation == "flex" or length <= given.eager_up_to:
                command = [sys.executable, __file__, "--one", implementation, str(length)]
                subprocess.run([*command, "--repeats", str(given.repeats)], check=True, env=surroundings)


if __name__ == "__main__":
    main()
