"""The order of a task's pairs: no pair occurs twice, and no clean prompt repeats before all have occurred once.

1. Draw pairs at random until new ones are rare.
2. Then, if few enough remain, enumerate all combinations of the task's random choices, so that the last pairs need not
   be found by chance.
"""

from collections.abc import Callable, Collection, Iterator
from itertools import islice
from typing import Any

from sparselens.prompts.draw import Draw, Item
from sparselens.prompts.pairs import PromptPair

DrawOne = Callable[[Draw], PromptPair]

RETRIES = 3  # extra rounds for clean prompts whose pairs did not fit, since another corrupted prompt might
_PATIENCE = 1000  # unsuccessful draws before the remaining pairs are enumerated
_MOST_CHOICES = 200  # random choices per pair; a task that makes more may never stop


class Candidates:
    """Distinct pairs of a task, in rounds: clean prompts occur once at first, and repeat only in the last round."""

    def __init__(self, draw: DrawOne, seed: int) -> None:
        self._draw, self._random = draw, Draw(seed)
        self._seen = set[Any]()  # keys of pairs
        self._barred: set[str] | None = set()  # clean prompts that must not repeat; None: all may
        self._kept, self._retries = 0, 0
        self._misses = 0  # unsuccessful draws in a row
        self._all_misses, self._enumerate_at = 0, _PATIENCE  # in the last round
        self._rest: Iterator[PromptPair] | None = None  # all remaining pairs, once they are enumerated

    def fresh(self, n: int) -> list[PromptPair]:
        """Up to n new pairs; fewer if the round ends."""
        found: list[PromptPair] = []
        while len(found) < n and self._rest is None and self._misses < self._patience():
            candidate = self._draw(self._random)
            if self._is_new(candidate):
                found.append(self._taken(candidate))
            else:
                self._misses += 1
                self._try_to_enumerate()
        return found if self._rest is None else [*found, *islice(self._rest, n - len(found))]

    def next_round(self, kept: Collection[str]) -> bool:
        """Begin another round; returns whether there is one.

        Args:
            kept: clean prompts of all pairs accepted so far; all other prompts get another chance
        """
        if self._barred is None:
            return False
        again = len(self._barred) > len(kept) > self._kept and self._retries < RETRIES
        self._barred = set(kept) if again else None
        self._kept, self._retries, self._misses = len(kept), self._retries + 1, 0
        return True

    @property
    def repeats(self) -> bool:
        """Whether this is the round in which clean prompts may repeat."""
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

    def _try_to_enumerate(self) -> None:
        """In the last round, now and then, enumerate all pairs if that takes no longer than drawing has so far."""
        self._all_misses += self._barred is None
        if self._all_misses < self._enumerate_at:
            return
        self._enumerate_at *= 2
        pairs = every_pair(self._draw, 2 * (self._all_misses + len(self._seen)))
        if pairs is not None:
            rest = {pair.key: pair for pair in pairs if pair.key not in self._seen}
            self._rest = iter(self._random.shuffle(list(rest.values())))


def every_pair(draw: DrawOne, most: int) -> list[PromptPair] | None:
    """The pair drawn for every sequence of random choices, with repetitions; None if there are `most` or more.

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
    """Choices that follow a script and, after its end, always take the first option."""

    def __init__(self, script: list[int]) -> None:
        self._script, self._made = script, list[tuple[int, int]]()  # chosen index, number of options

    def below(self, n: int) -> int:
        if n < 1:
            raise ValueError(f"cannot choose from {n} items")
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
        """The script of the next sequence of choices; empty after the last."""
        while self._made:
            chosen, n = self._made.pop()
            if chosen + 1 < n:
                return [*(choice for choice, _ in self._made), chosen + 1]
        return []
