"""MIB's rows as JSON lines: {"prompt", "choices", "answerKey", "NAME_counterfactual": {the same three}}.

Choices have no leading space. The counterfactual's answerKey points to a wrong answer, which MIB compares with the
right one. It is the correct answer to the counterfactual prompt if the corruption reverses the answer, but not in ioi's
`abc`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparselens.prompts.formats.rows import only, pairs_from
from sparselens.prompts.pairs import PromptPair

_COUNTERFACTUAL = "_counterfactual"


def read(path: Path) -> list[PromptPair]:
    """The pairs in a file, each with its first counterfactual."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return pairs_from(path, ((n, line) for n, line in enumerate(lines, 1) if line.strip()), _pair)


def _pair(line: str) -> PromptPair:
    row: Mapping[str, Any] = json.loads(line)
    other = next((row[key] for key in row if key.endswith(_COUNTERFACTUAL)), None)
    if other is None:
        raise ValueError(f"no key ends in {_COUNTERFACTUAL!r}")
    right = row["choices"][_key(row)]
    wrong = [choice for choice in row["choices"] if choice != right]
    return PromptPair(row["prompt"], other["prompt"], (f" {right}",), tuple(f" {answer}" for answer in wrong))


def _key(item: Mapping[str, Any]) -> int:
    key = item["answerKey"]
    if not isinstance(key, int) or not 0 <= key < len(item["choices"]):
        raise ValueError(f"answerKey is {key!r}, but there are {len(item['choices'])} choices")
    return key


def content(pairs: Sequence[PromptPair], name: str) -> bytes:
    """The content of a file with these pairs, which must have one right answer each; `name` is the corruption."""
    return b"".join(json.dumps(_row(pair, name), ensure_ascii=False).encode() + b"\n" for pair in pairs)


def _row(pair: PromptPair, name: str) -> dict[str, Any]:
    answers = [only(pair.answers, pair), *pair.wrong_answers]
    if not all(answer.startswith(" ") for answer in answers):
        raise ValueError(f"mib needs answers with a leading space, unlike those of {pair.clean!r}: use another format")
    choices = [answer[1:] for answer in answers]
    other = {"prompt": pair.corrupted, "choices": choices, "answerKey": 1}
    return {"prompt": pair.clean, "choices": choices, "answerKey": 0, name + _COUNTERFACTUAL: other}
