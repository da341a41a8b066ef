"""Peak memory and tokens per second of a billion parameters: training steps by what is trained, and EAP.

Run by hand: `python tests/benchmarks/bench_adapters.py`. The shape is Llama-3.2-1B's with two of its sixteen layers and
random weights. Each kind runs in a process of its own, since the peak of a process never falls.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers as tr

sys.path.insert(0, str(Path(__file__).parents[2]))

import sparselens as sl
from sparselens.analyses import attribute_edges
from sparselens.gates.noise import RowNoise
from sparselens.gates.surgery import gate_settings
from sparselens.models.adapters import add_lora
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.training.losses import logits_of, next_token_loss
from sparselens.training.trained import choose_trained, trained_parameters
from tests.tiny_models import bridge_of

LENGTH, PROMPT = 64, 16  # tokens of a row, and of a prompt
KINDS = ("lora", "attention", "all", "eap")
GIB = 2**30


def one_billion(layers: int) -> Any:
    """Llama-3.2-1B but for its depth."""
    config = tr.LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    return tr.LlamaForCausalLM(config)


def attribute(layers: int, rows: int) -> None:
    """Print one line about EAP over random pairs of prompts."""
    model = bridge_of(one_billion(layers).eval())
    sl.sparsify(model)
    clean, corrupted = torch.randint(model.cfg.d_vocab, (2, rows, PROMPT))
    pairs = TokenizedPairs(clean, corrupted, *torch.randint(model.cfg.d_vocab, (2, rows)))
    start = time.perf_counter()
    scores = attribute_edges(model, pairs, method="eap", progress=False)
    taken = time.perf_counter() - start
    print(
        f"{'eap':10} {scores.graph.n_edges:8,} edges   peak {peak():5.2f} GiB   {rows * PROMPT / taken:7.1f} tokens/s",
        flush=True,
    )


def peak() -> float:
    """GiB at most so far in this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB  # Linux counts in KiB


def measure(kind: str, layers: int, rows: int, steps: int, rank: int) -> None:
    """Print one line about one kind."""
    model = one_billion(layers)
    if kind == "lora":
        add_lora(model, rank)
    else:
        choose_trained(model, kind)
    sl.sparsify(model).train()
    trained = trained_parameters(model)
    optimizer = torch.optim.AdamW(trained, 1e-4)
    tokens = torch.randint(model.config.vocab_size, (rows, LENGTH))
    seconds: list[float] = []
    for step in range(steps + 1):
        start = time.perf_counter()
        gate_settings(model).noise = RowNoise(0, step)
        with sl.record_gates(model) as gates:
            (next_token_loss(logits_of(model, tokens), tokens) + gates.expected_share()).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    count = sum(parameter.numel() for parameter in trained) / 1e6
    fastest = min(seconds[1:])  # the first step makes the optimiser's state
    print(
        f"{kind:10} {count:8.1f} M trained   peak {peak():5.2f} GiB   {rows * LENGTH / fastest:7.1f} tokens/s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kind", choices=KINDS, help="only this one, in this process")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    if given.kind == "eap":
        attribute(given.layers, given.rows)
        return
    if given.kind:
        measure(given.kind, given.layers, given.rows, given.steps, given.rank)
        return
    for kind in KINDS:
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--kind", kind], check=True)


if __name__ == "__main__":
    main()
