"""Addition of two numbers, one token per character: `53+21=?????` in, `53+21=00074` out.

The toy of the paper's Fig. 1. Both numbers are zero-padded to `digits`, the sum to `2 * digits + 1` places (five for
two digits, as in the figure), most significant digit first.
Bidirectional (the figure): the model reads the `?`, and all of them are filled at once, each at its own position.
Causal: the model reads `53+21=0007` and predicts `00074` at the last five positions, each as the next character.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

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
            raise ValueError(f"digits = {self.digits}: want at least 1")

    @property
    def answer_width(self) -> int:
        """Places of the answer. A sum needs digits + 1 of them; the figure has five for two digits."""
        return 2 * self.digits + 1

    @property
    def length(self) -> int:
        """Characters of a full problem."""
        return len(self.full(0, 0))

    @property
    def answer_positions(self) -> tuple[int, ...]:
        """Positions whose logits predict the answer's characters, most significant first."""
        first = 2 * self.digits + 2 - self.causal  # a causal model predicts at the position before
        return tuple(range(first, first + self.answer_width))

    def problems(self) -> list[tuple[int, int]]:
        """All pairs in order: (0, 0), (0, 1), ... for two digits 10,000 of them."""
        below = 10**self.digits
        return [(a, b) for a in range(below) for b in range(below)]

    def sample(self, n: int, seed: int = 0) -> list[tuple[int, int]]:
        """N pairs drawn uniformly, with replacement. The first k of them are the same for every n >= k."""
        below = 10**self.digits
        # Random.random() is the one stream that Python promises to keep, for an integer seed, across versions
        uniform = random.Random(seed).random
        return [(int(uniform() * below), int(uniform() * below)) for _ in range(n)]

    def prompt(self, a: int, b: int) -> str:
        """What the model reads: the question and the open places, or for a causal model all but the last character."""
        return self.full(a, b)[:-1] if self.causal else self._question(a, b) + "?" * self.answer_width

    def answer(self, a: int, b: int) -> str:
        """What the model has to say at `answer_positions`."""
        return f"{a + b:0{self.answer_width}}"

    def full(self, a: int, b: int) -> str:
        """Question and answer."""
        return self._question(a, b) + self.answer(a, b)

    def carries(self, a: int, b: int) -> tuple[bool, ...]:
        """Does each column overflow? Units first, so entry i is the column of 10**i."""
        self._check(a, b)
        return tuple(a % 10**column + b % 10**column >= 10**column for column in range(1, self.digits + 1))

    def carry_arrows(self, a: int, b: int) -> tuple[tuple[int, int], ...]:
        """For every carry, from the position that answers the overflowing column to the one that it is carried to."""
        places = self.answer_positions[::-1]  # units first
        return tuple((places[i], places[i + 1]) for i, overflows in enumerate(self.carries(a, b)) if overflows)

    def kind(self, a: int, b: int) -> str:
        """One of KINDS.

        "propagated carry": some column overflows into a column that overflows too. "separate carries": several carries,
        none of which enters a column that overflows; it takes three digits.
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
                raise ValueError(f"{number} is no number of {self.digits} digits: want 0 to {10**self.digits - 1}")


def ids(text: str) -> list[int]:
    """The token id of every character: its place in ALPHABET."""
    unknown = set(text) - set(ALPHABET)
    if unknown:
        raise ValueError(f"no such character: {min(unknown)!r} (want one of {ALPHABET})")
    return [ALPHABET.index(character) for character in text]


def text(ids: Sequence[int]) -> str:
    """The characters of token ids: the inverse of `ids`."""
    return "".join(ALPHABET[i] for i in ids)
