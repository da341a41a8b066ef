"""What gated attention costs on a GPU, as one table: `python tests/benchmarks/gpu.py`.

Forward and backward of one attention call of Llama-3.2-1B's shape: our kernel, FlexAttention and eager gates, against
dense attention by torch's SDPA. Then training steps of a small model: tokens per second and peak memory, gated against
dense. Without a GPU it does what needs none: it compiles the kernels for two generations of GPUs and tells what of the
hardware they take (nothing is measured then).
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as tr
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

import sparselens as sl
from sparselens.gates.fused import why_no_triton
from sparselens.gates.noise import RowNoise
from sparselens.gates.surgery import gate_settings
from sparselens.training.losses import logits_of, next_token_loss
from tests.benchmarks.bench_attention import D_HEAD, HEADS, KV_HEADS, Attention, inputs

LENGTHS = [256, 1024, 2048, 4096, 8192]
TOKENS = 16384  # of a call: fewer leave a large GPU waiting for Python
KINDS = ["dense", "triton", "flex", "eager"]
SHAPES = ((64, "bf16"), (80, "bf16"), (128, "bf16"), (256, "bf16"), (64, "fp32"))  # width of a head, numbers
GIB = 2**30
Row = tuple[str, ...]


def milliseconds(call: Callable[[], Any], repeats: int = 10) -> float:
    """The median on the GPU's own clock, after two calls that warm up."""
    for _ in range(2):
        call()
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, end in pairs:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return sorted(start.elapsed_time(end) for start, end in pairs)[repeats // 2]


def peak(call: Callable[[], Any]) -> float:
    """GiB above what was there before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / GIB


def attention_of(kind: str) -> Callable[..., Any]:
    """Queries, keys and values to an output, and to the expected edges where there are gates."""
    if kind == "dense":
        return lambda *given: (
            torch.nn.functional.scaled_dot_product_attention(*given, is_causal=True, enable_gqa=True),
            None,
        )
    attention = Attention(kind).train()
    attention._sparselens_gate.noise = RowNoise(0, 0)
    return lambda *given: (attention(*given), attention.statistics.expected.sum())


def attention_rows(lengths: list[int], kinds: list[str], dtype: torch.dtype) -> Iterator[Row]:
    for length in lengths:
        dense = 0.0
        for kind in kinds:
            given = [t.requires_grad_() for t in inputs(length, "cuda", dtype, max(1, TOKENS // length))]
            attend = attention_of(kind)

            def both(attend: Any = attend, given: list[Tensor] = given) -> None:
                output, expected = attend(*given)
                loss = output.float().sum() if expected is None else output.float().sum() + expected
                torch.autograd.grad(loss, given)

            try:
                with torch.no_grad():
                    forward = milliseconds(lambda a=attend, g=given: a(*g))
                whole, most = milliseconds(both), peak(both)
            except torch.OutOfMemoryError:
                yield f"attention, T {length}", kind, "out of memory", "", "", ""
                continue
            dense = dense or whole
            numbers = (f"{forward:.3f} ms", f"{whole:.3f} ms", f"{whole / dense:.2f}x", f"{most:.3f} GiB")
            yield f"attention, T {length}", kind, *numbers


def training_rows(length: int, rows: int, kinds: list[str], steps: int = 10) -> Iterator[Row]:
    config = tr.LlamaConfig(
        vocab_size=32000,
        hidden_size=HEADS * D_HEAD,
        intermediate_size=8192,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=length,
        attn_implementation="sdpa",
    )
    tokens = torch.randint(config.vocab_size, (rows, length), device="cuda")
    dense = 0.0
    for kind in kinds:
        model: Any = tr.LlamaForCausalLM(config).cuda().train()
        if kind != "dense":
            sl.sparsify(model, 5.0, implementation=kind)  # type: ignore[arg-type]
        optimizer = torch.optim.AdamW(model.parameters(), 1e-5)

        def step(model: Any = model, kind: str = kind, optimizer: Any = optimizer) -> None:
            with torch.autocast("cuda", torch.bfloat16):
                if kind == "dense":
                    loss = next_token_loss(logits_of(model, tokens), tokens)
                else:
                    gate_settings(model).noise = RowNoise(0, 0)
                    with sl.record_gates(model) as gates:
                        loss = next_token_loss(logits_of(model, tokens), tokens)
                    loss = loss + gates.expected_share()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        try:
            taken, most = milliseconds(step, steps), peak(step)
        except torch.OutOfMemoryError:
            yield f"training, T {length}", kind, "out of memory", "", "", ""
            continue
        dense = dense or taken
        speed = f"{tokens.numel() / taken * 1e3:.0f} tokens/s"
        yield f"training, T {length}", kind, speed, f"{taken:.1f} ms", f"{taken / dense:.2f}x", f"{most:.2f} GiB"
        del model, optimizer


def compiled_rows(shapes: Sequence[tuple[int, str]] = SHAPES, generations: Sequence[int] = (80, 90)) -> Iterator[Row]:
    """The kernels, compiled for GPUs that need not be here: registers, spills, shared memory."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sparselens.gates import triton_kernel
    from sparselens.gates.triton_attention import tiles

    for kernel in (triton_kernel.forward, triton_kernel.backward_queries, triton_kernel.backward_keys):
        for head, number in shapes:
            width = 1 << (head - 1).bit_length()
            cut = tiles(kernel.__name__, width, 2 if number == "bf16" else 4)
            fixed = {"HEADS": 32, "GROUP": 4, "HEAD": head, "WIDTH": width, "ROWS": cut.rows, "COLUMNS": cut.columns}
            fixed |= {"MEMBERS": 4, "NOISY": True, "HAS_CAP": False, "HAS_SINKS": False, "PRECISION": "tf32"}
            fixed = {name: value for name, value in fixed.items() if name in kernel.arg_names}
            types = {name: _type_of(name, number) for name in kernel.arg_names}
            source = ASTSource(kernel, types | dict.fromkeys(fixed, "constexpr"), fixed)
            for generation in generations:
                options = {"num_warps": cut.warps, "num_stages": cut.stages}
                built = triton.compile(source, target=GPUTarget("cuda", generation, 32), options=options)
                registers, spilled = resources(built)
                shared = f"{built.metadata.shared / 1024:.0f} KiB shared"
                where = f"{kernel.__name__}, d_head {head}, {number}"
                yield where, f"sm_{generation}", f"{registers} registers", f"{spilled} bytes spilled", shared, ""


def resources(built: Any) -> tuple[int, int]:
    """Of a compiled kernel: the registers of a thread, and the bytes for which there was none left."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(built.asm["cubin"])
        told = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, spilled = (int(re.search(rf"{what}:(\d+)", told)[1]) for what in ("REG", "STACK"))  # type: ignore[index]
    return registers, spilled


def _type_of(argument: str, number: str) -> str:
    """The type of a kernel's argument, as Triton writes it."""
    if argument in ("FIRST", "LAST", "WORDS", "SEEING"):
        return "*i32"
    if argument in ("LSE", "EXPECTED", "OPENED", "INNER", "D_EXPECTED", "SINKS"):
        return "*fp32"
    if argument.isupper():
        return f"*{number}"
    return "fp32" if argument in ("scale", "bias", "slope", "softcap") else "i32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS, help="dense first, for the ratios")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--out", type=Path, help="also write the table there, as Markdown")
    given = parser.parse_args()
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        missing = why_no_triton(torch.device("cuda"))
        if missing:
            raise SystemExit(f"nothing to measure: {missing}")
        dtype = getattr(torch, given.dtype)
        in_training = [kind for kind in given.kinds if kind != "flex"]
        rows = [*attention_rows(given.lengths, given.kinds, dtype), *training_rows(2048, 4, in_training)]
        header = (f"{name}, {given.dtype}", "", "forward", "forward and backward", "against dense", "peak memory")
    else:
        os.environ.pop("TRITON_INTERPRET", None)
        rows = list(compiled_rows())
        header = ("compiled, not run: there is no GPU here", "", "", "", "", "")
    lines = ["| " + " | ".join(row) + " |" for row in (header, ("---",) * len(header), *rows)]
    print("\n".join(lines))
    if given.out:
        given.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
