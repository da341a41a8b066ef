"""Do circuits survive rephrasing? Circuits of one group of prompts on the others, in a dense and a sparse model.

    python tests/benchmarks/bench_robustness.py --dense stories260k --sparse stories260k-sparse --task gendered_pronoun
    python tests/benchmarks/bench_robustness.py --dense FOLDER --sparse FOLDER --task ioi -n 24 --out ioi.json

Groups: templates (for addition the kinds of carry), other seeds, and resamples of one draw, all of the pairs that both
models solve and as many in each. Each model's circuits also run inside the other. Prints what it does, then the
table of RESULTS.md; `--out` keeps every finished line, so that a run that was interrupted goes on.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

import sparselens as sl
from sparselens import analyses
from sparselens.prompts.intervals import Interval
from sparselens.prompts.metrics import accuracy
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.tasks import TASKS
from sparselens.tasks.addition import Addition

Groups = dict[str, TokenizedPairs]
HEAD = (
    "groups",
    "number x pairs",
    "model",
    "edges",
    "on own prompts",
    "on other groups",
    "Jaccard",
    "inside the other model, own prompts",
    "other groups",
    "Jaccard with the other model's",
)


def carries(pair: sl.PromptPair) -> str:
    first, second = pair.clean.partition("=")[0].split("+")
    return Addition().kind(int(first), int(second))


def drawn(options: argparse.Namespace, models: Mapping[str, Any], many: int, seed: int) -> TokenizedPairs:
    """As many pairs as there are, up to `many`, of which those that both models solve."""
    tokenizer, task = models["dense"].tokenizer, TASKS[options.task]
    there = len(task.fitted(tokenizer).at_most(many, seed, options.corruption))
    pairs = task.tokenize(tokenizer, there or many, seed, options.corruption)
    solved = torch.ones(len(pairs), dtype=torch.bool)
    at_end = TokenizedPairs(pairs.clean[:, -1:], pairs.corrupted[:, -1:], pairs.answer, pairs.wrong_answer)
    for name, model in models.items():
        label = f"{name} answers" if options.progress else None
        logits = sl.answer_logits(model, pairs, batch_size=options.batch or 64, progress=label).cpu()
        solved &= accuracy(logits[:, None], at_end).bool()
    if not solved.any():
        raise SystemExit(f"no pair of {len(pairs)} is solved by both models")
    return pairs[solved.nonzero().flatten()]


def by_template(options: argparse.Namespace, models: Mapping[str, Any]) -> Groups:
    by = carries if options.task.startswith("addition") else None
    pairs = drawn(options, models, options.draw, 0)
    found = pairs.groups(by)
    large = sorted((name for name in found if len(found[name]) >= options.n), key=lambda name: -len(found[name]))
    if len(large) < 2:
        sizes = ", ".join(f"{len(some)} {name!r}" for name, some in found.items())
        raise SystemExit(f"want two groups of {options.n} solved pairs, have {sizes}: lower -n or raise --draw")
    return {name: found[name][: options.n] for name in large[: options.groups]}


def by_seed(options: argparse.Namespace, models: Mapping[str, Any]) -> Groups:
    found = {f"seed {seed}": drawn(options, models, 3 * options.n, 1 + seed) for seed in range(options.groups)}
    least = min(options.n, *map(len, found.values()))
    return {name: some[:least] for name, some in found.items()}


def by_resample(options: argparse.Namespace, models: Mapping[str, Any]) -> Groups:
    pairs, generator = drawn(options, models, 3 * options.n, 0)[: options.n], torch.Generator().manual_seed(0)
    rows = [torch.randint(len(pairs), (len(pairs),), generator=generator) for _ in range(options.groups)]
    return {f"resample {number}": pairs[some] for number, some in enumerate(rows)}


KINDS: dict[str, Callable[..., Groups]] = {"template": by_template, "seed": by_seed, "resample": by_resample}


def said(interval: Interval) -> str:
    known = interval.low == interval.low
    return f"{interval.mean:.2f}" + (f" [{interval.low:.2f}, {interval.high:.2f}]" if known else "")


def lines(kind: str, options: argparse.Namespace, models: Mapping[str, Any]) -> list[list[str]]:
    """A line for each model: its circuits on its own prompts and others, in itself and inside the other model."""
    start = time.perf_counter()
    groups = KINDS[kind](options, models)
    n = len(next(iter(groups.values())))
    tell = partial(print, file=sys.stderr, flush=True)
    tell(f"{kind}: {len(groups)} groups of {n} pairs, {', '.join(groups)}")
    how: dict[str, Any] = {"memory": options.memory, "batch_size": options.batch, "progress": options.progress}
    own = dict[str, analyses.Robustness]()
    for side, model in models.items():
        own[side] = analyses.robustness(model, groups, method=options.method, goal=options.goal, **how)
        tell(f"{kind}, {side}, {time.perf_counter() - start:.0f} s: {own[side]}")
    found = list[list[str]]()
    for side, other in (("dense", "sparse"), ("sparse", "dense")):
        moved = analyses.robustness(models[other], groups, circuits=own[side].circuits, **how)
        tell(f"{kind}, {side}'s inside {other}, {time.perf_counter() - start:.0f} s: {moved}")
        sizes = [len(circuit) for circuit in own[side].circuits.values()]
        edges = f"{min(sizes)} to {max(sizes)}, mean {sum(sizes) / len(sizes):.0f}"
        means = (own[side].own(), own[side].across(), own[side].overlap(), moved.own(), moved.across())
        alike = own[side].overlap_with(own[other])
        found.append([kind, f"{len(groups)} x {n}", side, edges, *map(said, (*means, alike))])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", required=True, help="folder, or name of a shipped model")
    parser.add_argument("--sparse", required=True)
    parser.add_argument("--base", help="base of a sparse model that is adapters")
    parser.add_argument("--task", required=True, choices=TASKS)
    parser.add_argument("--corruption")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("-n", type=int, default=24, help="pairs of each group")
    parser.add_argument("--draw", type=int, default=1000, help="pairs to draw, from which templates take theirs")
    parser.add_argument("--groups", type=int, default=6, help="groups of each kind at most")
    parser.add_argument("--goal", type=float, default=0.8)
    parser.add_argument("--method", default="eap-ig")
    parser.add_argument("--memory", type=int, help="bytes to work in")
    parser.add_argument("--batch", type=int, help="prompts a run, instead")
    parser.add_argument("--quiet", dest="progress", action="store_false")
    parser.add_argument("--out", type=Path, help="JSON file of the lines that are finished")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*different clean prompts")
    sparse = {"base": options.base} if options.base else {}
    models = {"dense": sl.load(options.dense), "sparse": sl.load(options.sparse, **sparse)}
    asked = {name: value for name, value in vars(options).items() if name not in ("out", "kinds", "progress")}
    kept: dict[str, Any] = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    if kept.setdefault("asked", asked) != asked:
        raise SystemExit(f"{options.out} is of another call: {kept['asked']}")
    for kind in options.kinds:
        if kind not in kept:
            kept[kind] = lines(kind, options, models)
            if options.out:
                options.out.write_text(json.dumps(kept, indent=1))
    rows = [HEAD, ["---"] * len(HEAD), *(line for kind in options.kinds for line in kept[kind])]
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))


if __name__ == "__main__":
    main()
