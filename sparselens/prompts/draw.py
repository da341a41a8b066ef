"""Random choices that are reproducible from a seed on every machine and in every version of Python."""

import random
from collections.abc import Sequence
from numbers import Integral
from typing import Any, TypeVar

Item = TypeVar("Item")


class Draw:
    """A seeded source of random choices.

    Uses only `Random.random()`, the one stream that Python keeps the same across versions for an integer seed.
    """

    def __init__(self, seed: Any) -> None:
        if not isinstance(seed, Integral) or seed < 0:
            raise ValueError(f"seed must be an integer, 0 or more, not {seed!r}")
        self._uniform = random.Random(int(seed)).random

    def below(self, n: int) -> int:
        """An integer from 0 to n - 1."""
        if n < 1:
            raise ValueError(f"cannot choose from {n} items")
        return int(self._uniform() * n)

    def choice(self, items: Sequence[Item]) -> Item:
        """One of the items."""
        return items[self.below(len(items))]

    def sample(self, items: Sequence[Item], k: int) -> list[Item]:
        """K items at different positions, in random order."""
        if k > len(items):
            raise ValueError(f"cannot choose {k} of {len(items)} items")
        places: dict[int, None] = {}
        while len(places) < k:
            places[self.below(len(items))] = None
        return [items[place] for place in places]

    def shuffle(self, items: Sequence[Item]) -> list[Item]:
        """All items in random order."""
        shuffled = list(items)
        for last in range(len(shuffled) - 1, 0, -1):
            other = self.below(last + 1)
            shuffled[last], shuffled[other] = shuffled[other], shuffled[last]
        return shuffled

    def flip(self) -> bool:
        """True or False with equal probability."""
        return self._uniform() < 0.5
