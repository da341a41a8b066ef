"""Seconds for 10,000 pairs of every task, drawn and tokenized, and for importing the tasks.

Run by hand: `python tests/benchmarks/bench_tasks.py --tokenizer FOLDER`. Processor time of one thread, best of three.
The floor of tokenizing is the tokenizer itself on the clean and the corrupted prompts.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parents[2]))

from sparselens.models.folder import load_tokenizer
from sparselens.tasks import TASKS

N = 10_000


def best(call: Callable[[], Any]) -> float:
    taken: list[float] = []
    for _ in range(3):
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return min(taken)


def seconds_to_import(module: str) -> float:
    code = f"import time, sys; start = time.process_time(); import {module}; print(time.process_time() - start)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    return min(float(run.stdout) for run in runs)


def floor(pairs: list[Any], tokenizer: Any) -> float:
    texts = [
        text for p in pairs for text in (p.clean, p.corrupted, p.clean + p.answers[0], p.clean + p.wrong_answers[0])
    ]
    return best(lambda: tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", default="stories260k")
    tokenizer = load_tokenizer(parser.parse_args().tokenizer)
    print(f"import sparselens.tasks {seconds_to_import('sparselens.tasks'):.3f} s")
    for name, task in TASKS.items():
        there = len(task.at_most(N))
        line = f"{name:32} {there:6} pairs drawn in {best(lambda t=task, n=there: t.pairs(n)):.3f} s"
        try:
            n = len(task.fitted(tokenizer).at_most(N)) or N
            taken = best(lambda t=task, n=n: t.tokenize(tokenizer, n))
            at_least = floor(task.fitted(tokenizer).pairs(n), tokenizer)
            line += (
                f", {n:6} tokenized in {taken:.3f} s ({taken / at_least:.2f} of the tokenizer's own {at_least:.3f} s)"
            )
        except ValueError as error:
            line += f", refused: {str(error)[:60]}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
