"""auto-circuit's JSON files: {"prompts": [{"clean", "corrupt", "answers", "wrong_answers"}]}."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparselens.prompts.formats.rows import pairs_from
from sparselens.prompts.pairs import PromptPair


def read(path: Path) -> list[PromptPair]:
    """The pairs in a file."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["prompts"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path}: want a JSON object with a list "prompts" ({error!r})') from error
    if not isinstance(rows, list):
        raise ValueError(f'{path}: "prompts" is not a list')
    return pairs_from(path, enumerate(rows), _pair)


def _pair(row: Mapping[str, Any]) -> PromptPair:
    right, wrong = row["answers"], row["wrong_answers"]
    if not isinstance(right, list) or not isinstance(wrong, list):
        raise ValueError(f"answers must be lists, not {right!r} and {wrong!r}")
    return PromptPair(row["clean"], row["corrupt"], tuple(right), tuple(wrong))


def content(pairs: Sequence[PromptPair], _name: str) -> bytes:
    """The content of a file with these pairs."""
    rows = [
        {"clean": p.clean, "corrupt": p.corrupted, "answers": p.answers, "wrong_answers": p.wrong_answers}
        for p in pairs
    ]
    return json.dumps({"prompts": rows}, ensure_ascii=False, indent=1).encode()
