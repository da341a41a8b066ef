"""Convert prompt pairs to and from records and Hugging Face datasets."""

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparselens.prompts.pairs import PromptPair, Span

if TYPE_CHECKING:
    from datasets import Dataset

_SPAN = ("start", "end", "corrupted_start", "corrupted_end")


def to_dataset(pairs: Sequence[PromptPair], fingerprint: str, description: str = "") -> "Dataset":
    """A dataset with columns `clean`, `corrupted`, `answers`, `wrong_answers`, `positions` (spans) and `template`."""
    import datasets
    import pyarrow as pa

    features = datasets.Features(
        {
            "clean": datasets.Value("string"),
            "corrupted": datasets.Value("string"),
            "answers": datasets.Sequence(datasets.Value("string")),
            "wrong_answers": datasets.Sequence(datasets.Value("string")),
            "positions": [{"name": datasets.Value("string"), **dict.fromkeys(_SPAN, datasets.Value("int32"))}],
            "template": datasets.Value("string"),
        }
    )
    table = pa.Table.from_pylist([record(pair) for pair in pairs], schema=features.arrow_schema)
    info = datasets.DatasetInfo(description=f"{fingerprint}: {description}", features=features)
    # fingerprints of datasets have at most 64 characters
    name = fingerprint if len(fingerprint) <= 64 else f"{fingerprint[:51]}-{digest(fingerprint)}"
    return datasets.Dataset(table, info=info, fingerprint=name)


def record(pair: PromptPair) -> dict[str, Any]:
    """A pair as a dictionary of plain lists and strings."""
    positions = [
        dict(zip(("name", *_SPAN), (name, *span, *pair.corrupted_positions[name]), strict=True))
        for name, span in pair.positions.items()
    ]
    return {
        "clean": pair.clean,
        "corrupted": pair.corrupted,
        "answers": list(pair.answers),
        "wrong_answers": list(pair.wrong_answers),
        "positions": positions,
        "template": pair.template,
    }


def pairs_of(records: Iterable[PromptPair | Mapping[str, Any]]) -> list[PromptPair]:
    """The pairs in records, without duplicates (a warning says how many there were).

    Raises:
        ValueError: there are no records, or one is broken.
    """
    unique: dict[Any, PromptPair] = {}
    n = 0
    for number, item in enumerate(records):
        n += 1
        pair = item if isinstance(item, PromptPair) else _pair(item, number)
        unique.setdefault(pair.key, pair)
    if not unique:
        raise ValueError("there are no records")
    if len(unique) < n:
        warnings.warn(f"{n - len(unique)} of {n} records are duplicates and are left out", stacklevel=3)
    return list(unique.values())


def digest(value: Any) -> str:
    """A hash of twelve hexadecimal digits, the same on every machine."""
    text = json.dumps(value, default=lambda pair: pair.key)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _pair(item: Mapping[str, Any], number: int) -> PromptPair:
    try:
        absent = [name for name in ("clean", "corrupted") if name not in item]
        absent += [name for name in ("answer", "wrong_answer") if name not in item and f"{name}s" not in item]
        if absent:
            raise ValueError(f"no {' and no '.join(absent)} (want clean, corrupted, answer, wrong_answer)")
        clean, corrupted = _spans(item.get("positions") or {}, item.get("corrupted_positions"))
        right, wrong = (_answers(item, name) for name in ("answer", "wrong_answer"))
        return PromptPair(item["clean"], item["corrupted"], right, wrong, clean, corrupted, item.get("template") or "")
    except (KeyError, TypeError, AttributeError) as error:
        wanted = "clean, corrupted, answer, wrong_answer"
        raise ValueError(f"record {number} is broken: {error!r} (want {wanted})") from error
    except ValueError as error:
        raise ValueError(f"record {number}: {error}") from error


def _answers(item: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = item[name] if name in item else item[f"{name}s"]
    answers = (found,) if isinstance(found, str) else tuple(found)
    if not all(isinstance(answer, str) for answer in answers):
        raise TypeError(f"{name}: want strings, not {answers}")
    return answers


def _spans(positions: Any, corrupted: Any) -> tuple[dict[str, Span], dict[str, Span]]:
    """Clean and corrupted positions, from a mapping of names to spans or from the rows of a dataset."""
    if isinstance(positions, Mapping):
        clean = {name: (span[0], span[1]) for name, span in positions.items()}
        return clean, clean if corrupted is None else {name: (span[0], span[1]) for name, span in corrupted.items()}
    both = {row["name"]: tuple(row[key] for key in _SPAN) for row in positions}
    return {name: span[:2] for name, span in both.items()}, {name: span[2:] for name, span in both.items()}
