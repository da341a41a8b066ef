"""Seconds per training step: dense transformers, the same model gated, and the gated TransformerBridge.

Run by hand: `python tests/benchmarks/bench_training_step.py`. One thread and its processor time, the three interleaved,
so that what else the machine does falls on all of them; the ratio of the fastest steps is the figure to compare.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tr

sys.path.insert(0, str(Path(__file__).parents[2]))

import sparselens as sl
from sparselens.gates.noise import RowNoise
from sparselens.gates.surgery import gate_settings
from sparselens.training.losses import logits_of, next_token_loss
from tests.tiny_models import bridge_of

_LLAMA = {"max_position_embeddings": 128}
SHAPES: dict[str, tuple[Callable[[], Any], int, int]] = {
    "gpt2, d_model 256": (
        lambda: tr.GPT2LMHeadModel(
            tr.GPT2Config(
                vocab_size=4096,
                n_positions=128,
                n_embd=256,
                n_layer=4,
                n_head=8,
                bos_token_id=None,
                eos_token_id=None,
                **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
                attn_implementation="eager",
            )
        ),
        4,
        128,
    ),
    "llama, d_model 256": (
        lambda: tr.LlamaForCausalLM(
            tr.LlamaConfig(
                vocab_size=4096,
                hidden_size=256,
                intermediate_size=688,
                num_hidden_layers=4,
                num_attention_heads=8,
                num_key_value_heads=8,
                **_LLAMA,
                attn_implementation="eager",
            )
        ),
        4,
        128,
    ),
    "stories260k": (
        lambda: tr.LlamaForCausalLM(
            tr.LlamaConfig(
                vocab_size=512,
                hidden_size=64,
                intermediate_size=172,
                num_hidden_layers=5,
                num_attention_heads=8,
                num_key_value_heads=4,
                **_LLAMA,
                attn_implementation="eager",
            )
        ),
        32,
        64,
    ),
}


class Trainer:
    """One training step after another of one model."""

    def __init__(self, model: Any, gated: bool) -> None:
        self.model, self.gated, self.steps = model.train(), gated, 0
        self.optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def step(self, tokens: torch.Tensor) -> float:
        start = time.process_time()
        self.steps += 1
        if self.gated:
            gate_settings(self.model).noise = RowNoise(0, self.steps)
            with sl.record_gates(self.model) as gates:
                task = next_token_loss(logits_of(self.model, tokens), tokens)
                (task + gates.expected_share()).backward()
        else:
            next_token_loss(logits_of(self.model, tokens), tokens).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.process_time() - start


def measure(shape: str, steps: int, kinds: list[str]) -> dict[str, list[float]]:
    make, batch, length = SHAPES[shape]
    makers = {
        "dense": lambda: Trainer(make(), False),
        "gated": lambda: Trainer(sl.sparsify(make()), True),
        "bridge": lambda: Trainer(sl.sparsify(bridge_of(make())), True),
    }
    trainers = {kind: makers[kind]() for kind in kinds}
    vocabulary = trainers[kinds[0]].model.config.vocab_size
    tokens = torch.randint(vocabulary, (batch, length))
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(steps + 2):
        for kind, trainer in trainers.items():
            taken = trainer.step(tokens)
            if number > 1:  # the first two warm up
                seconds[kind].append(taken)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--kinds", nargs="+", default=["dense", "gated", "bridge"])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for shape in arguments.shapes:
        seconds = measure(shape, arguments.steps, arguments.kinds)
        base = seconds[arguments.kinds[0]]
        for kind, taken in seconds.items():
            print(
                f"{shape:20} {kind:8} min {min(taken):.4f} s ({min(taken) / min(base):.2f}x)   "
                f"median {statistics.median(taken):.4f} s ({statistics.median(taken) / statistics.median(base):.2f}x)"
            )


if __name__ == "__main__":
    main()
