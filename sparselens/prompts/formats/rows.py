"""Turn the rows of a file into pairs, with errors that name the row; shared by all formats."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from sparselens.prompts.pairs import PromptPair

Row = TypeVar("Row")


def pairs_from(path: Path, rows: Iterable[tuple[int, Row]], make: Callable[[Row], PromptPair]) -> list[PromptPair]:
    """Make a pair from every numbered row.

    Raises:
        ValueError: a row is broken, or there are none.
    """
    pairs: list[PromptPair] = []
    for number, row in rows:
        try:
            pairs.append(make(row))
        except KeyError as error:
            raise ValueError(f"{path}, row {number} has no {error}") from error
        except (ValueError, TypeError, IndexError, AttributeError, SyntaxError) as error:
            raise ValueError(f"{path}, row {number}: {error}") from error
    if not pairs:
        raise ValueError(f"{path} holds no pairs")
    return pairs


def only(answers: Sequence[str], pair: PromptPair) -> str:
    """The single answer.

    Raises:
        ValueError: there are several.
    """
    if len(answers) != 1:
        raise ValueError(
            f"this format holds a single answer, but {pair.clean!r} has {len(answers)}, such as {answers[0]!r} and "
            f"{answers[1]!r}: use another format"
        )
    return answers[0]
