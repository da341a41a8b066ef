"""EAP-IG's CSV files: ,clean,corrupted,corrupted_hard,correct_idx,incorrect_idx with answers as token ids.

Some of its tables name the answer columns differently. Its greater-than table has only the last two digits of a year:
all larger two-digit endings are right and the others wrong, if they are single tokens after the prompt ("00" often is
not).
"""

import ast
import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparselens.prompts.fitting import Fit, text_of
from sparselens.prompts.formats.rows import only, pairs_from
from sparselens.prompts.pairs import PromptPair

_ID_COLUMNS = (  # right and wrong token ids
    ("correct_idx", "incorrect_idx"),  # ioi
    ("clean_answer_idx", "corrupted_answer_idx"),  # gender-bias
    ("answers_idx", "corrupted_answers_idx"),  # hypernymy
    ("country_idx", "corrupted_country_idx"),  # fact-retrieval
)
_ENDINGS = tuple(f"{ending:02}" for ending in range(100))

Row = Mapping[str, str]
Answers = tuple[tuple[str, ...], tuple[str, ...]]


def read(path: Path, tokenizer: Any) -> list[PromptPair]:
    """The pairs in a table; the tokenizer turns token ids into strings."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or ())
        answers = _answers(columns, path, tokenizer)
        return pairs_from(path, _rows(reader, path, len(columns)), lambda row: _pair(row, answers(row)))


def _pair(row: Row, answers: Answers) -> PromptPair:
    return PromptPair(row["clean"], row["corrupted"], *answers)


def _rows(reader: Any, path: Path, width: int) -> Iterator[tuple[int, Row]]:
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"{path}, line {reader.line_num}: want {width} fields")
        yield reader.line_num, row


def _answers(columns: Sequence[str], path: Path, tokenizer: Any) -> Callable[[Row], Answers]:
    """A function that returns the right and wrong answers of a row, depending on the table's columns."""
    for needed in ("clean", "corrupted"):
        if needed not in columns:
            raise ValueError(f"{path} has no column {needed!r}; it has {', '.join(columns)}")
    for right, wrong in _ID_COLUMNS:
        if right in columns and wrong in columns:
            _need(tokenizer)
            return lambda row: (_texts(row[right], tokenizer), _texts(row[wrong], tokenizer))
    if "correct_idx" in columns:
        _need(tokenizer)
        fit = Fit(tokenizer)
        return lambda row: _split(int(row["correct_idx"]), fit.single_tokens(row["clean"], _ENDINGS))
    wanted = ", or ".join(" and ".join(both) for both in _ID_COLUMNS)
    raise ValueError(f"{path} has no columns of right and wrong answers (want {wanted}), only {', '.join(columns)}")


def _split(year: int, endings: Sequence[str]) -> Answers:
    """Two-digit endings above that of a year, and all others."""
    right = tuple(ending for ending in endings if int(ending) > year)
    return right, tuple(ending for ending in endings if ending not in right)


def _texts(cell: str, tokenizer: Any) -> tuple[str, ...]:
    """The distinct strings of a token id, or of a list of ids."""
    ids = ast.literal_eval(cell)
    return tuple(dict.fromkeys(text_of(tokenizer, token) for token in (ids if isinstance(ids, list) else [ids])))


def content(pairs: Sequence[PromptPair], tokenizer: Any, hard: Sequence[PromptPair] | None) -> bytes:
    """The content of a table with these pairs, which must have one right and one wrong answer each."""
    _need(tokenizer)
    if hard is not None and [pair.clean for pair in hard] != [pair.clean for pair in pairs]:
        raise ValueError("`hard` must have the same clean prompts as `pairs`")
    text = io.StringIO(newline="")
    columns = ["", "clean", "corrupted", *(["corrupted_hard"] if hard else []), "correct_idx", "incorrect_idx"]
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    for number, (pair, ids) in enumerate(zip(pairs, Fit(tokenizer).encode(pairs), strict=True)):
        for answers in (pair.answers, pair.wrong_answers):
            only(answers, pair)
        more = [hard[number].corrupted] if hard else []
        table.writerow([number, pair.clean, pair.corrupted, *more, *ids.answers, *ids.wrong_answers])
    return text.getvalue().encode()


def _need(tokenizer: Any) -> None:
    if tokenizer is None:
        raise ValueError("eap-ig files hold token ids: pass the tokenizer of their model")
