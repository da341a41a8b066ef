"""All heads patched over all positions: processor time and memory beside TransformerLens' own function.

Run by hand: `python tests/benchmarks/bench_activation_patching.py`. The shape of GPT-2 small with random weights. One
thread and its processor time; both arms go through the prompts batch after batch in turn, so that what else the machine
does falls on both. The two prompts of a pair differ at every position, so that no patch can be left out, or, with
`--common 9`, from the tenth token on: in `ioi` two thirds of a prompt are the same in both.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import torch
import transformers as tr

sys.path.insert(0, str(Path(__file__).parents[2]))

import sparselens as sl
from sparselens.analyses import patch_heads
from sparselens.analyses.engine.partial_runs import peak_bytes
from tests.tiny_models import bridge_of


def make_model(layers: int) -> torch.nn.Module:
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = tr.GPT2Config(n_layer=layers, bos_token_id=None, eos_token_id=None, attn_implementation="eager", **dropout)
    return bridge_of(tr.GPT2LMHeadModel(config).eval())


def make_pairs(n: int, length: int, common: int) -> sl.TokenizedPairs:
    clean, corrupted = torch.randint(50257, (2, n, length))
    corrupted[:, :common] = clean[:, :common]
    answer = torch.randint(50256, (n,))
    return sl.TokenizedPairs(clean, corrupted, answer, answer + 1)


def theirs(model: torch.nn.Module, pairs: sl.TokenizedPairs) -> torch.Tensor:
    from transformer_lens.patching import get_act_patch_attn_head_out_all_pos

    with torch.no_grad():
        _, cache = model.run_with_cache(pairs.clean, names_filter=lambda name: name.endswith("hook_z"))
        return get_act_patch_attn_head_out_all_pos(
            model, pairs.corrupted, cache, lambda logits: sl.metrics.logit_difference(logits, pairs).mean()
        )


def ours(model: torch.nn.Module, pairs: sl.TokenizedPairs, memory: int) -> torch.Tensor:
    return patch_heads(model, pairs, base="corrupted", ablation="clean", memory=memory, progress=False).mean


def timed(call) -> tuple[torch.Tensor, float]:
    start = time.process_time()
    return call(), time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8, help="prompts that each arm does in one turn")
    parser.add_argument("--length", type=int, default=15)
    parser.add_argument("--common", type=int, default=0, help="first tokens that the prompts of a pair share")
    parser.add_argument("--memory", type=int, default=2**29)
    parser.add_argument("--ours-only", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = make_model(arguments.layers)
    pairs = make_pairs(arguments.prompts, arguments.length, arguments.common)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = {"ours": 0.0, "theirs": 0.0}
    worst = 0.0
    for start in range(0, arguments.prompts, arguments.batch):
        some = pairs[start : start + arguments.batch]
        mine, taken = timed(lambda some=some: ours(model, some, arguments.memory))
        seconds["ours"] += taken
        print(f"ours {taken:.1f} s; peak of the process grew by {grown(before):.0f} MiB", flush=True)
        if not arguments.ours_only:
            peer, taken = timed(lambda some=some: theirs(model, some))
            seconds["theirs"] += taken
            worst = max(worst, float((mine - peer).abs().max()))
    _, peak = peak_bytes(lambda: ours(model, pairs[: min(4, len(pairs))], arguments.memory))
    print(f"{seconds}; ratio {seconds['theirs'] / seconds['ours']:.2f}; largest difference {worst:.1e}")
    print(f"tensors of ours, 4 prompts: {peak / 2**20:.0f} MiB of a budget of {arguments.memory / 2**20:.0f}")


def grown(before: int) -> float:
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


if __name__ == "__main__":
    main()
