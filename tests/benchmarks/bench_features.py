"""How few heads carry what features do to one another, in dense models and their sparse ones: trains the transcoders.

    python tests/benchmarks/bench_features.py --text FILE --models stories260k stories260k-sparse --folder FOLDER

Cross-layer transcoders of each model are trained on the text, but for its first rows, on which they are measured; those
that FOLDER holds already are read. Prompts: `gendered_pronoun` up to the answer, and rows of the text from its held-out
beginning. Intervals are 95 %, over prompts; the ratio is of means, prompts paired.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

import sparselens as sl
from sparselens import analyses
from sparselens.analyses.features.transcoders import Transcoders
from sparselens.prompts.intervals import ratio_interval
from sparselens.tasks import TASKS

SEQ_LEN, HELD_OUT, SHARE = 64, 256, 0.8


def rows_of(model: Any, path: str) -> Tensor:
    tokens = sl.text.tokenize(sl.text.read_documents(path), model.tokenizer)
    return torch.cat(sl.text.rows(tokens, SEQ_LEN, 64))


def transcoders_of(name: str, model: Any, rows: Tensor, asked: argparse.Namespace) -> Transcoders:
    folder = asked.folder / name.replace("/", "_")
    if folder.exists():
        return analyses.load_transcoders(folder)
    start = time.process_time()
    made = analyses.train_transcoders(
        model, rows, features=asked.features, top_k=asked.top_k, steps=asked.steps, batch_size=asked.rows
    )
    print(f"{name}: {asked.steps} steps of {asked.rows} x {SEQ_LEN} tokens, {time.process_time() - start:.0f} s of CPU")
    analyses.save_transcoders(made, folder)
    return made


def prompts_of(model: Any, rows: Tensor, asked: argparse.Namespace) -> dict[str, Any]:
    text = rows[: asked.prompts * 8 : 8, : asked.length]  # eight rows apart, from other stories
    return {
        "gendered_pronoun": TASKS["gendered_pronoun"].tokenize(model.tokenizer, asked.prompts),
        f"text, {asked.length} tokens": text,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True)
    parser.add_argument("--models", nargs=2, default=("stories260k", "stories260k-sparse"), help="dense, sparse")
    parser.add_argument("--folder", type=Path, required=True, help="where transcoders are kept")
    parser.add_argument("--features", type=int, default=512, help="of each layer")
    parser.add_argument("--top-k", type=int, default=16)
    parser.add_argument("--steps", type=int, default=350)
    parser.add_argument("--rows", type=int, default=16, help="of a step")
    parser.add_argument("--prompts", type=int, default=20, help="of each kind")
    parser.add_argument("--length", type=int, default=24, help="tokens of a prompt of text")
    asked = parser.parse_args()
    found: dict[tuple[str, bool], list[analyses.FeatureHeads]] = {}
    for name in asked.models:
        model: Any = sl.load(name)
        rows = rows_of(model, asked.text)
        transcoders = transcoders_of(name, model, rows[HELD_OUT:], asked)
        print(name, transcoders, analyses.measure_transcoders(model, transcoders, rows[:HELD_OUT]), flush=True)
        for kind, prompts in prompts_of(model, rows, asked).items():
            for one_head in (False, True):
                heads = analyses.feature_heads(model, transcoders, prompts, one_head=one_head)
                found.setdefault((kind, one_head), []).append(heads)
    print(f"\n| heads for {SHARE:.0%} | {' | '.join(asked.models)} | dense / sparse |\n|---|---|---|---|")
    for (kind, one_head), (dense, sparse) in found.items():
        paths = "paths through one head" if one_head else "all paths"
        for per_target in (False, True):
            what = "one target" if per_target else "all targets at END"
            values = [
                some.needed_per_target(SHARE) if per_target else some.needed(SHARE).float() for some in (dense, sparse)
            ]
            means = [f"{some.interval(SHARE, per_target):}" for some in (dense, sparse)]
            print(f"| {kind}, {what}, {paths} | {means[0]} | {means[1]} | {ratio_interval(*values)} |")
        print(
            f"| {kind}, errors' share, {paths} | {dense.errors.mean():.1%} | {sparse.errors.mean():.1%} | |", flush=True
        )


if __name__ == "__main__":
    main()
