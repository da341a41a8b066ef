"""Writes docs/tasks.md: which tasks fit which tokenizers, what a model can do of them, and three pairs of each.

Run by hand: `python tests/benchmarks/table_of_tasks.py --gpt2 FOLDER --model FOLDER`, with the tokenizer of GPT-2 and a
model; ten minutes of processor time for 80 pairs of every task with a model of 135 M parameters.

Llama 3, Gemma and Qwen are told by their rule for digits, which is what decides most: up to three of them a token
(Llama 3), or one (Gemma, Qwen), never with a space. The words are GPT-2's there, a smaller vocabulary than theirs.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parents[2]))

import tokenizers
import transformers as tr
from tokenizers import pre_tokenizers

import sparselens as sl
from sparselens.prompts.capability import Capability
from sparselens.prompts.pairs import PromptPair
from sparselens.prompts.task import Task
from sparselens.tasks import TASKS

MANY = 1000  # clean prompts, to which they are counted
CHECKED = ("gpt2", "model")  # the other tokenizers are told by rule
HEAD = """# Tasks

All tasks that ship, listed by [`table_of_tasks.py`](../tests/benchmarks/table_of_tasks.py). The column of a
tokenizer shows how many different clean prompts a task has (counted up to {many:,}), or "no" if the task does not
fit; the reasons are below the table. GPT-2 and {name} are checked pair by pair. **Llama 3, Gemma and Qwen are
predicted by rule**: GPT-2's words, with digits split as these tokenizers split them (up to three per token; one per
token), and "yes" where the task then fits. Their vocabularies are larger, so more words may fit than with GPT-2.

Accuracy: the right answer against the wrong ones, on {n} pairs (seed 0), in %, with Wilson's 95 % interval over
clean prompts; bold where the interval is above chance, that is, above guessing among the answers. {above} of the
{asked} tasks that fit {name} are above chance.

| task | asks | GPT-2 | {name} | Llama 3 | Gemma, Qwen | chance | accuracy of {name} | metric |
|---|---|---|---|---|---|---|---|---|
"""


def with_digits(tokenizer: Any, digits: str) -> Any:
    """GPT-2's words, with digits cut by a rule of their own before anything else."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    cut = pre_tokenizers.Split(tokenizers.Regex(digits), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tr.PreTrainedTokenizerFast(tokenizer_object=backend)


def fits(task: Task, tokenizer: Any, most: int) -> tuple[int, str]:
    """How many different clean prompts there are, and why there is none."""
    try:
        fitted = task.fitted(tokenizer)
        there = fitted.count_prompts(most=most)
        if not there:
            fitted.pairs(1)
        return there, ""
    except ValueError as error:
        return 0, str(error)


def counted(there: int) -> str:
    return "no" if not there else f"{MANY:,} or more" if there == MANY else f"{there:,}"


def measured(model: Any, task: Task, n: int) -> Capability | None:
    try:
        there = len(task.fitted(model.tokenizer).at_most(n))
        return sl.evaluate(model, task, there or n, progress=False)
    except ValueError:
        return None


def accuracy(found: Capability) -> str:
    known = found.accuracy
    text = f"{100 * known.mean:.0f} [{100 * known.low:.0f}, {100 * known.high:.0f}]"
    return f"**{text}**" if known.low > found.chance else text


def cells(found: Capability | None) -> tuple[str, str, str]:
    if found is None:
        return "", "", ""
    number = found.metric
    metric = f"{found.metric_name.replace('_', ' ')} {number.mean:.2f} [{number.low:.2f}, {number.high:.2f}]"
    return f"{100 * found.chance:.0f}", accuracy(found), metric


def written(text: str) -> str:
    """A string as code in a table or list."""
    return f"`` {text!r} ``" if "`" in text else f"`{text!r}`"


def example(pair: PromptPair) -> str:
    right, wrong = (_some(answers) for answers in (pair.answers, pair.wrong_answers))
    return f"- {written(pair.clean)}: {right}, not {wrong}; corrupted {written(pair.corrupted)}"


def _some(answers: tuple[str, ...]) -> str:
    return ", ".join(map(written, answers[:3])) + (", ..." if len(answers) > 3 else "")


def row(name: str, counts: Mapping[str, tuple[int, str]], found: Capability | None) -> str:
    by_rule = ["yes" if counts[rule][0] else "no" for rule in ("llama 3", "gemma, qwen")]
    shown = (f"`{name}`", TASKS[name].description, counted(counts["gpt2"][0]), counted(counts["model"][0]), *by_rule)
    return f"| {' | '.join((*shown, *cells(found)))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpt2", required=True, help="folder of GPT-2's tokenizer")
    parser.add_argument("--model", required=True, help="folder of a model")
    parser.add_argument("--name", default="SmolLM2-135M", help="of the model, in the table")
    parser.add_argument("-n", type=int, default=80, help="pairs of each task")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "docs" / "tasks.md")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*different clean prompts")  # the table says how many
    gpt2, model = tr.AutoTokenizer.from_pretrained(options.gpt2), sl.load(options.model)
    readers = {
        "gpt2": gpt2,
        "model": model.tokenizer,
        "llama 3": with_digits(gpt2, r"\p{N}{1,3}"),
        "gemma, qwen": with_digits(gpt2, r"\p{N}"),
    }
    titles = {"gpt2": "GPT-2", "model": options.name, "llama 3": "Llama 3", "gemma, qwen": "Gemma and Qwen"}
    rows, why, examples = list[str](), list[str](), list[str]()
    results = dict[str, Capability]()
    for name, task in TASKS.items():
        counts = {kind: fits(task, reader, MANY if kind in CHECKED else 1) for kind, reader in readers.items()}
        found = measured(model, task, options.n)
        if found is not None:
            results[name] = found
        rows.append(row(name, counts, found))
        why += [f"- `{name}`, {titles[kind]}: {reason}" for kind, (_, reason) in counts.items() if reason]
        examples += [f"\n## {name}\n", *map(example, task.pairs(3)), f"\nSource: {task.source}."]
        print(rows[-1], flush=True)
    above = sum(found.accuracy.low > found.chance for found in results.values())
    head = HEAD.format(many=MANY, name=options.name, n=options.n, above=above, asked=len(results))
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(
        head + "\n".join([*rows, "\nWhat does not fit, and why:\n", *why, *examples]) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
