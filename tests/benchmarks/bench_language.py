"""What a model still knows of English after post-training: BLiMP and LAMBADA, for any number of models.

    python tests/benchmarks/bench_language.py --data FOLDER --models stories260k stories260k-sparse

FOLDER holds BLiMP.zip (Warstadt et al. 2020, as published) and lambada_test_openai.jsonl (Paperno et al. 2016, as
OpenAI detokenised it). BLiMP: share of minimal pairs of which the acceptable sentence has the higher probability, mean
over the 67 sets. LAMBADA: share of passages whose last word is the model's own choice, token by token. Both by the
simple method: whole sentences after a start token, where the tokenizer has one. In brackets: two standard errors.
"""

import argparse
import json
import math
import random
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2]))

import sparselens as sl
from sparselens.models.folder import load_transformers

ROWS = 32


def log_probabilities(model: Any, rows: Sequence[list[int]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each row: the log-probability of every token but the first, and whether it was the model's choice."""
    for start in tqdm(range(0, len(rows), ROWS), leave=False, disable=not sys.stderr.isatty()):
        some = rows[start : start + ROWS]
        longest = max(map(len, some))
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in some])  # padding on the right: unseen
        with torch.no_grad():
            logits = model(tokens).logits[:, :-1].log_softmax(-1)
        told = logits.gather(-1, tokens[:, 1:, None]).squeeze(-1)
        chosen = logits.argmax(-1) == tokens[:, 1:]
        yield from ((told[i, : len(row) - 1], chosen[i, : len(row) - 1]) for i, row in enumerate(some))


def encoded(tokenizer: Any, text: str) -> list[int]:
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return start + tokenizer(text, add_special_tokens=False)["input_ids"]


def blimp(path: Path, pairs: int) -> Iterator[list[tuple[str, str]]]:
    """The minimal pairs of each set, a random choice that is always the same."""
    with zipfile.ZipFile(path) as archive:
        for name in sorted(name for name in archive.namelist() if name.endswith(".jsonl") and "/." not in name):
            found = [json.loads(line) for line in archive.read(name).decode().splitlines()]
            chosen = random.Random(0).sample(found, min(pairs, len(found)))
            yield [(pair["sentence_good"], pair["sentence_bad"]) for pair in chosen]


def blimp_accuracy(model: Any, tokenizer: Any, sets: Iterable[list[tuple[str, str]]]) -> tuple[float, float]:
    sets = list(sets)
    rows = [encoded(tokenizer, sentence) for some in sets for pair in some for sentence in pair]
    sums = [float(told.sum()) for told, _ in log_probabilities(model, rows)]
    better = iter([good > bad for good, bad in zip(sums[::2], sums[1::2], strict=True)])
    shares = [sum(next(better) for _ in some) / len(some) for some in sets]
    variance = sum(p * (1 - p) / len(some) for p, some in zip(shares, sets, strict=True)) / len(sets) ** 2
    return sum(shares) / len(sets), 2 * math.sqrt(variance)


def lambada_accuracy(model: Any, tokenizer: Any, texts: Sequence[str]) -> tuple[float, float]:
    rows = [encoded(tokenizer, text) for text in texts]
    lasts = [len(row) - len(encoded(tokenizer, text.rsplit(" ", 1)[0])) for row, text in zip(rows, texts, strict=True)]
    found = log_probabilities(model, rows)
    right = sum(bool(chosen[-last:].all()) for last, (_, chosen) in zip(lasts, found, strict=True)) / len(texts)
    return right, 2 * math.sqrt(right * (1 - right) / len(texts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--base", help="of adapters: the model they belong to")
    parser.add_argument("--pairs", type=int, default=100, help="of each of BLiMP's 67 sets")
    parser.add_argument("--texts", type=int, default=500, help="of LAMBADA")
    asked = parser.parse_args()
    sets = list(blimp(asked.data / "BLiMP.zip", asked.pairs))
    lines = (asked.data / "lambada_test_openai.jsonl").read_text(encoding="utf-8").splitlines()[: asked.texts]
    texts = [json.loads(line)["text"] for line in lines]
    for name in asked.models:
        model, tokenizer, gate_bias = load_transformers(name, base=asked.base if len(asked.models) == 1 else None)
        if gate_bias is not None:
            sl.sparsify(model, gate_bias)
        pairs, passages = blimp_accuracy(model, tokenizer, sets), lambada_accuracy(model, tokenizer, texts)
        print(
            f"{name}: BLiMP {pairs[0]:.1%} (±{pairs[1]:.1%}, {len(sets)} x {asked.pairs} pairs)  "
            f"LAMBADA {passages[0]:.1%} (±{passages[1]:.1%}, {len(texts)} passages)",
            flush=True,
        )


if __name__ == "__main__":
    main()
