"""Addition of two numbers, one token per character: `53+21=?????` in, `53+21=00074` out.

The toy task of the paper's Fig. 1. Both numbers are zero-padded to `digits`, the sum to `2 * digits + 1` places (five
for two digits, as in the figure), most significant digit first.
Bidirectional (as in the figure): the model reads the `?` and fills in all of them at once, each at its own position.
Causal: the model reads `53+21=0007` and predicts `00074` at the last five positions, each as the next character.

As a task of pairs, only one digit of the answer is evaluated:
    clean     47+28=?????     -> "7" in the tens place
    carry     41+28=?????     -> "6": another units digit, and no carry into the tens
    units     48+28=?????     evaluated in the units place: "5" becomes "6"
Source: the toy of Draye et al. 2025, arXiv 2512.05865, Fig. 1. Circuit there: layer 0 reads the digits of each column,
layer 1 the carry.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from sparselens.prompts.draw import Draw
from sparselens.prompts.pairs import PromptPair, Span
from sparselens.prompts.task import Lists, Task

ALPHABET = "0123456789+=?"
KINDS = ("no carry", "one carry", "separate carries", "propagated carry")


@dataclass(frozen=True)
class Addition:
    """The strings and labels of the addition task. A problem is a pair of integers (a, b) of at most `digits` digits.

    >>> task = Addition()
    >>> task.prompt(53, 21), task.answer(53, 21), task.kind(53, 21)
    ('53+21=?????', '00074', 'no carry')
    """

    digits: int = 2
    causal: bool = False

    def __post_init__(self) -> None:
        if self.digits < 1:
            raise ValueError(f"digits = {self.digits}: want 1 or more")

    @property
    def answer_width(self) -> int:
        """Number of places in the answer. A sum needs only digits + 1; the figure has five for two digits."""
        return 2 * self.digits + 1

    @property
    def length(self) -> int:
        """Number of characters in a full problem."""
        return len(self.full(0, 0))

    @property
    def answer_positions(self) -> tuple[int, ...]:
        """Positions whose logits predict the answer's characters, most significant first."""
        first = 2 * self.digits + 2 - self.causal  # a causal model predicts at the position before
        return tuple(range(first, first + self.answer_width))

    def problems(self) -> list[tuple[int, int]]:
        """All pairs in order: (0, 0), (0, 1), ...; 10,000 for two digits."""
        below = 10**self.digits
        return [(a, b) for a in range(below) for b in range(below)]

    def sample(self, n: int, seed: int = 0) -> list[tuple[int, int]]:
        """Draw n pairs uniformly, with replacement. The first k of them are the same for every n >= k."""
        below = 10**self.digits
        # random() is the only method whose numbers Python promises to keep across versions, given an integer seed
        uniform = random.Random(seed).random
        return [(int(uniform() * below), int(uniform() * below)) for _ in range(n)]

    def prompt(self, a: int, b: int) -> str:
        """What the model reads: the question and a `?` for each place, or if causal all but the last character."""
        return self.full(a, b)[:-1] if self.causal else self._question(a, b) + "?" * self.answer_width

    def answer(self, a: int, b: int) -> str:
        """What the model should predict at `answer_positions`."""
        return f"{a + b:0{self.answer_width}}"

    def full(self, a: int, b: int) -> str:
        """Question and answer."""
        return self._question(a, b) + self.answer(a, b)

    def carries(self, a: int, b: int) -> tuple[bool, ...]:
        """Whether each column overflows. Units first, so entry i is the column of 10**i."""
        self._check(a, b)
        return tuple(a % 10**column + b % 10**column >= 10**column for column in range(1, self.digits + 1))

    def carry_arrows(self, a: int, b: int) -> tuple[tuple[int, int], ...]:
        """For every carry, the positions that predict the overflowing column and the column that it carries into."""
        places = self.answer_positions[::-1]  # units first
        return tuple((places[i], places[i + 1]) for i, overflows in enumerate(self.carries(a, b)) if overflows)

    def kind(self, a: int, b: int) -> str:
        """One of KINDS.

        "propagated carry": some column overflows into a column that overflows too. "separate carries": several carries,
        none of which goes into a column that overflows; this takes at least three digits.
        """
        carries = self.carries(a, b)
        if any(low and high for low, high in pairwise(carries)):
            return "propagated carry"
        return KINDS[min(sum(carries), 2)]

    def _question(self, a: int, b: int) -> str:
        self._check(a, b)
        return f"{a:0{self.digits}}+{b:0{self.digits}}="

    def _check(self, a: int, b: int) -> None:
        for number in (a, b):
            if not 0 <= number < 10**self.digits:
                raise ValueError(f"{number} does not fit in {self.digits} digits: want 0 to {10**self.digits - 1}")


def draw(addition: Addition, random: Draw, words: Lists, corruption: str) -> PromptPair:  # noqa: ARG001 - of DrawPair
    """One pair. Only the units digit of the first number differs; answers agree before the digit evaluated."""
    place = {"carry": 10, "units": 1}[corruption]
    while True:
        a, b = (random.below(10**addition.digits) for _ in range(2))
        other = a - a % 10 + random.below(10)
        if (a + b) // (10 * place) == (other + b) // (10 * place) and (a + b) // place != (other + b) // place:
            return _pair(addition, a, other, b, place)


def _pair(addition: Addition, a: int, other: int, b: int, place: int) -> PromptPair:
    end = addition.answer_positions[-len(str(place))]
    read = end + 1 if addition.causal else addition.length
    right, wrong = (addition.answer(first, b)[-len(str(place))] for first in (a, other))
    clean, corrupted = (
        (addition.full if addition.causal else addition.prompt)(first, b)[:read] for first in (a, other)
    )
    spans = _digits(addition)
    if not addition.causal:
        spans[f"S{len(str(place)) - 1}"] = (end, end + 1)  # this place of the sum must be a single token
    spans["END"] = (end, end + 1)
    return PromptPair(clean, corrupted, (right,), (wrong,), spans, spans)


def _digits(addition: Addition) -> dict[str, Span]:
    """The positions of the digits of both numbers, named by power of ten: A1, A0, B1, B0."""
    width = addition.digits
    starts = {"A": 0, "B": width + 1}
    return {
        f"{name}{width - 1 - i}": (first + i, first + i + 1) for name, first in starts.items() for i in range(width)
    }


def addition_task(addition: Addition) -> Task:
    """The pairs of an addition problem as a task."""
    return Task(
        "addition_causal" if addition.causal else "addition",
        "sums of two numbers, character by character" + (", left to right" if addition.causal else ""),
        partial(draw, addition),
        corruptions={"carry": ("A0",), "units": ("A0",)},
        source="Draye et al. 2025, arXiv 2512.05865, Fig. 1",
        circuit="layer 0 reads the digits of each column, layer 1 the carry (sparse model)",
        version=2,
    )


def ids(text: str) -> list[int]:
    """The token id of every character: its index in ALPHABET."""
    unknown = set(text) - set(ALPHABET)
    if unknown:
        raise ValueError(f"no such character: {min(unknown)!r} (want one of {ALPHABET})")
    return [ALPHABET.index(character) for character in text]


def text(ids: Sequence[int]) -> str:
    """The characters of token ids: the inverse of `ids`."""
    return "".join(ALPHABET[i] for i in ids)
