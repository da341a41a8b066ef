"""The order in which a task's pairs come: no pair twice, and no clean prompt again before all have come once.

1. Pairs are drawn at random until new ones are rare.
2. Then, if few enough remain, all combinations of choices that the task can make are enumerated, so that the last pairs
   need not be found by chance.
"""

from collections.abc import Callable, Collection, Iterator
from itertools import islice
from typing import Any

from sparselens.prompts.draw import Draw, Item
from sparselens.prompts.pairs import PromptPair

DrawOne = Callable[[Draw], PromptPair]

RETRIES = 3  # rounds for clean prompts whose pairs did not fit: with another corrupted prompt they may
_PATIENCE = 1000  # draws without anything new, before what is left is enumerated
_MOST_CHOICES = 200  # of one pair; a draw that makes more may be one that never ends


class Candidates:
    """Different pairs of a task, in rounds: each clean prompt comes once at first, and again only in the last round."""

    def __init__(self, draw: DrawOne, seed: int) -> None:
        self._draw, self._random = draw, Draw(seed)
        self._seen = set[Any]()  # keys of pairs
        self._barred: set[str] | None = set()  # clean prompts that may not come again; None: all may
        self._kept, self._retries = 0, 0
        self._misses, self._all_misses, self._ask_at = 0, 0, _PATIENCE  # in a row; in the last round
        self._rest: Iterator[PromptPair] | None = None  # everything that is left, once it is known

    def fresh(self, n: int) -> list[PromptPair]:
        """Up to n pairs; fewer when the round is over."""
        found: list[PromptPair] = []
        while len(found) < n and self._rest is None and self._misses < self._patience():
            candidate = self._draw(self._random)
            if self._is_new(candidate):
                found.append(self._taken(candidate))
            else:
                self._misses += 1
                self._ask_what_is_left()
        return found if self._rest is None else [*found, *islice(self._rest, n - len(found))]

    def next_round(self, kept: Collection[str]) -> bool:
        """Begin another round, if there is one.

        Args:
            kept: clean prompts of all pairs that have been of use so far; the others get another chance
        """
        if self._barred is None:
            return False
        again = len(self._barred) > len(kept) > self._kept and self._retries < RETRIES
        self._barred = set(kept) if again else None
        self._kept, self._retries, self._misses = len(kept), self._retries + 1, 0
        return True

    @property
    def repeats(self) -> bool:
        """Is this the round in which clean prompts come again?"""
        return self._barred is None

    def _patience(self) -> int:
        return _PATIENCE + (20 * len(self._seen) if self._barred is None else 5 * len(self._barred))

    def _is_new(self, pair: PromptPair) -> bool:
        return pair.key not in self._seen and (self._barred is None or pair.clean not in self._barred)

    def _taken(self, pair: PromptPair) -> PromptPair:
        self._seen.add(pair.key)
        if self._barred is not None:
            self._barred.add(pair.clean)
        self._misses = 0
        return pair

    def _ask_what_is_left(self) -> None:
        """In the last round, now and then, go through all choices, if that takes no longer than drawing did."""
        self._all_misses += self._barred is None
        if self._all_misses < self._ask_at:
            return
        self._ask_at *= 2
        pairs = every_pair(self._draw, 2 * (self._all_misses + len(self._seen)))
        if pairs is not None:
            rest = {pair.key: pair for pair in pairs if pair.key not in self._seen}
            self._rest = iter(self._random.shuffle(list(rest.values())))


def every_pair(draw: DrawOne, most: int) -> list[PromptPair] | None:
    """What a task draws for every series of choices, repetitions included; None if there are more than `most` series.

    >>> every_pair(lambda random: pair("{A}", {"A": random.choice("xy")}, {"A": "z"}, "1", "2"), 10)  # two pairs
    """
    script: list[int] = []
    found: list[PromptPair] = []
    while len(found) < most:
        choices = _Scripted(script)
        try:
            found.append(draw(choices))
        except _EndlessError:
            return None
        script = choices.following()
        if not script:
            return found
    return None


class _EndlessError(Exception):
    """One pair took too many choices."""


class _Scripted(Draw):
    """Choices that follow a script, and after its end are the first of what there is."""

    def __init__(self, script: list[int]) -> None:
        self._script, self._made = script, list[tuple[int, int]]()  # what was chosen, of how many

    def below(self, n: int) -> int:
        if n < 1:
            raise ValueError(f"there is nothing to choose from ({n} items)")
        place = len(self._made)
        if place == _MOST_CHOICES:
            raise _EndlessError
        self._made.append((self._script[place] if place < len(self._script) else 0, n))
        return self._made[-1][0]

    def sample(self, items: "Collection[Item]", k: int) -> list[Item]:
        if k > len(items):
            raise ValueError(f"cannot choose {k} of {len(items)} items")
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in range(k)]

    def flip(self) -> bool:
        return self.below(2) == 0

    def following(self) -> list[int]:
        """The script of the next series of choices; empty after the last."""
        while self._made:
            chosen, n = self._made.pop()
            if chosen + 1 < n:
                return [*(choice for choice, _ in self._made), chosen + 1]
        return []
