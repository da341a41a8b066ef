"""A task: how to draw prompt pairs, and how to score answers to them. Owns no model, tokenizer or device.

    def draw(random, words, corruption):
        big, small = random.sample(words["animal"], 2)
        return pair("The {A} is ...", {"A": big}, {"A": small}, answer=" ...", wrong_answer=" ...")

    task = Task("sizes", "Which animal is bigger?", draw, words={"animal": Words(ANIMALS, spaced)})
    task.pairs(100, seed=0); task.dataset(100); task.tokenize(tokenizer, 100)
Loads neither torch nor a tokenizer until one is needed.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

from sparselens.names import unknown
from sparselens.prompts.candidates import Candidates
from sparselens.prompts.draw import Draw
from sparselens.prompts.fitting import Encoded, Fit, MisfitError
from sparselens.prompts.pairs import PromptPair
from sparselens.prompts.words import Words

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn

    from sparselens.prompts.tokenized import TokenizedPairs

Lists = Mapping[str, Sequence[Any]]  # name of a word list -> its entries
DrawPair = Callable[[Draw, Lists, str], PromptPair]

MOST = 10**6  # pairs drawn at once: more take gigabytes
_AT_ONCE = 512  # candidates fitted to a tokenizer together


@dataclass(frozen=True, repr=False)
class Task:
    """How to draw pairs, and what is known about the task.

    >>> pairs = TASKS["ioi"].tokenize(model.tokenizer, n=100, seed=0)
    >>> pairs.clean.shape, pairs.answers.shape  # [batch pos], [batch k]

    Args:
        draw: makes one pair from random choices, word lists and the name of a corruption
        words: word lists by name; `Words` where tokens matter, else any sequence
        corruptions: for each, the names of the positions at which clean and corrupted prompt differ; the first is the
            default
        metric: the default metric: a name in `sparselens.prompts.metrics`, or a function
        source: the publication that introduced the task
        circuit: what is known about how models do it
        version: increased when the same seed gives other pairs
        fit: the tokenizer that pairs must fit; set by `fitted`
    """

    name: str
    description: str
    draw: DrawPair
    words: Mapping[str, Words | Sequence[Any]] = field(default_factory=dict[str, Words])
    corruptions: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"default": ()})
    metric: str | Callable[..., Any] = "logit_difference"
    source: str = ""
    circuit: str = ""
    version: int = 1
    fit: Fit | None = None

    def __repr__(self) -> str:
        return f"Task({self.name!r}: {self.description})"

    def pairs(self, n: int, seed: int = 0, corruption: str | None = None) -> list[PromptPair]:
        """N different pairs, the same on every machine; a smaller n gives the first of them.

        No clean prompt comes twice before all have come; a warning says where there are fewer than n.

        Raises:
            ValueError: n is not positive, above a million, or larger than the number of different pairs; no such
                corruption.
        """
        return self._exactly(n, seed, corruption).pairs

    def at_most(self, n: int, seed: int = 0, corruption: str | None = None) -> list[PromptPair]:
        """As `pairs`, but all of them where there are fewer than n; possibly none that fits the tokenizer."""
        return self._draw(n, seed, corruption).pairs

    def count_prompts(self, corruption: str | None = None, most: int = 2000) -> int:
        """How many different clean prompts there are; `most` where there are more.

        Past that number pairs only ask them again with other corrupted prompts and wrong answers.
        """
        return len(self._draw(most, 0, corruption, repeats=False).pairs)

    def dataset(self, n: int, seed: int = 0, corruption: str | None = None) -> "Dataset":
        """The pairs as a Hugging Face dataset with explicit features, and `fingerprint` as its fingerprint.

        Raises:
            ValueError: as `pairs`.
        """
        from sparselens.prompts.task_data import to_dataset

        pairs = self.pairs(n, seed, corruption)
        return to_dataset(pairs, self.fingerprint(n, seed, corruption), self.description)

    def fitted(self, tokenizer: Any, bos: bool | None = None, equal_length: bool = True) -> "Task":
        """The same task, restricted to words and pairs that fit a tokenizer.

        Args:
            bos: put the tokenizer's BOS first. Default: as the tokenizer itself does
            equal_length: clean and corrupted prompt must have as many tokens, with every position at the same one

        Raises:
            ValueError: too few words fit. Says which do.
        """
        fit = Fit(tokenizer, bos, equal_length)
        words = {name: fit.keep(self.name, name, _as_words(entries)) for name, entries in self.words.items()}
        return replace(self, words=words, fit=fit)

    def tokenize(
        self,
        tokenizer: Any,
        n: int,
        seed: int = 0,
        corruption: str | None = None,
        bos: bool | None = None,
        equal_length: bool = True,
    ) -> "TokenizedPairs":
        """N pairs as token ids: single-token answers, positions as token indices, shorter prompts padded on the left.

        Words that do not fit the tokenizer are never drawn. See `fitted` for the arguments.

        Raises:
            ValueError: as `pairs` and `fitted`, or too few pairs fit the tokenizer. Says why.
        """
        from sparselens.prompts.tokenizing import stack

        fitted = self.fitted(tokenizer, bos, equal_length)
        drawn = fitted._exactly(n, seed, corruption)
        assert fitted.fit is not None
        return stack(drawn.pairs, drawn.encoded, fitted.fit.vocabulary)

    def solved_by(self, model: "nn.Module", n: int, seed: int = 0, **options: Any) -> "TokenizedPairs":
        """Those of n pairs that the model solves (`metrics.accuracy`), as circuit studies use them.

        Args:
            options: of `sparselens.evaluate`

        Raises:
            ValueError: it solves none.
        """
        from sparselens.prompts.capability import evaluate

        found = evaluate(model, self, n, seed, **options)
        if not found.correct.any():
            raise ValueError(f"the model solves none of {n} pairs of {self.name!r}")
        return found.pairs[found.correct]

    @classmethod
    def from_records(
        cls, name: str, records: Iterable[PromptPair | Mapping[str, Any]], description: str = "", **options: Any
    ) -> "Task":
        """A task whose pairs are given: PromptPairs, or mappings with `clean`, `corrupted`, `answer`, `wrong_answer`.

        Answers may be strings or lists of them. Positions, if any, map names to character spans. A `template`, if any,
        is what `TokenizedPairs.groups` groups pairs by. Like any task it draws at random: `tokenize` of all records
        has them in another order, that of `TokenizedPairs.prompts` (`sl.tokenize_pairs(pairs, tokenizer)` keeps yours).

        Args:
            options: other fields of `Task`

        Raises:
            ValueError: there is no record, or one is broken. Says which.
        """
        from sparselens.prompts.task_data import pairs_of

        pairs = pairs_of(records)
        words = {"record": Words(pairs, need=1)}
        return cls(name, description or f"{len(pairs)} given pairs", _given, words, **options)

    def find_corruption(self, name: str | None) -> str:
        """The corruption of that name; the default for None.

        Raises:
            ValueError: there is none.
        """
        if name is None:
            return next(iter(self.corruptions))
        if name not in self.corruptions:
            raise unknown(f"corruption of {self.name!r}", name, self.corruptions)
        return name

    def fingerprint(self, n: int, seed: int, corruption: str | None = None) -> str:
        """Identifies the result of `pairs`: task, version, corruption, words that a tokenizer left, seed and n."""
        from sparselens.prompts.task_data import digest

        whole = self.fit is None and self.draw is not _given  # then name and version say what the words are
        left = "" if whole else f"-{digest([list(_as_words(w).entries) for w in self.words.values()])}"
        return f"{self.name}-v{self.version}-{self.find_corruption(corruption)}{left}-seed{seed}-n{n}"

    def _exactly(self, n: int, seed: int, corruption: str | None) -> "_Drawn":
        drawn = self._draw(n, seed, corruption)
        if len(drawn.pairs) < n:
            raise ValueError(self._too_few(n, len(drawn.pairs), drawn.misfits))
        if drawn.misfits and self.draw is _given:
            why = "; ".join(f"{count} times {reason}" for reason, count in drawn.misfits.most_common(3))
            warnings.warn(
                f"{drawn.misfits.total()} records do not fit this tokenizer and are left out: {why}", stacklevel=4
            )
        self._tell_repeats(drawn.pairs)
        return drawn

    def _tell_repeats(self, pairs: Sequence[PromptPair]) -> None:
        """Warn when there are fewer clean prompts than pairs; not for given pairs, whose user knows."""
        different = len({pair.clean for pair in pairs})
        if different < len(pairs) and self.draw is not _given:
            here = " with this tokenizer" if self.fit else ""
            warnings.warn(
                f"{self.name!r} has {different} different clean prompts{here}: {len(pairs)} pairs repeat some of "
                "them with other wrong answers, which adds little information",
                stacklevel=5,
            )

    def _draw(self, n: int, seed: int, corruption: str | None, repeats: bool = True) -> "_Drawn":
        """Up to n different pairs that fit, and why others do not; fewer when no further one turns up.

        Args:
            repeats: let clean prompts come again, with another corrupted prompt, when all have come
        """
        if not isinstance(n, Integral) or n < 1:
            raise ValueError(f"{n} pairs: want at least 1, a whole number")
        if n > MOST:
            raise ValueError(
                f"{n:,} pairs do not fit into memory, if {self.name!r} has so many: draw at most {MOST:,} at once, and "
                "others with another seed"
            )
        corruption = self.find_corruption(corruption)
        lists = {name: _as_words(entries).entries for name, entries in self.words.items()}
        candidates = Candidates(lambda random: self.draw(random, lists, corruption), seed)
        drawn, asked = _Drawn([], [], Counter()), min(n, _AT_ONCE)
        while len(drawn.pairs) < n and drawn.misfits.total() <= 2000 + 50 * len(drawn.pairs):
            fresh = candidates.fresh(asked)
            drawn.take(fresh, self.fit)
            if len(fresh) < asked and not candidates.next_round({pair.clean for pair in drawn.pairs}):
                break
            if candidates.repeats and not repeats:
                break
        return _Drawn(drawn.pairs[:n], drawn.encoded[:n], drawn.misfits)

    def _too_few(self, n: int, found: int, misfits: Counter[str]) -> str:
        if not misfits:
            return f"{self.name!r} has {found} different pairs, {n} were requested"
        why = "; ".join(f"{count} times {reason}" for reason, count in misfits.most_common(3))
        drawn = found + misfits.total()
        return f"{found} of {drawn} pairs drawn of {self.name!r} fit this tokenizer, {n} were requested: {why}"


class _Drawn(NamedTuple):
    pairs: list[PromptPair]
    encoded: list[Encoded]  # of every pair, if there is a tokenizer to fit
    misfits: Counter[str]  # reasons why others do not fit, with counts

    def take(self, candidates: list[PromptPair], fit: Fit | None) -> None:
        """Add those that fit."""
        if fit is None:
            self.pairs.extend(candidates)
            return
        for candidate, found in zip(candidates, fit.check(candidates), strict=True):
            if isinstance(found, MisfitError):
                self.misfits[str(found)] += 1
            else:
                self.pairs.append(candidate)
                self.encoded.append(found)


def _given(random: Draw, words: Lists, corruption: str) -> PromptPair:  # noqa: ARG001 - of type DrawPair
    return random.choice(words["record"])


def _as_words(entries: Words | Sequence[Any]) -> Words:
    return entries if isinstance(entries, Words) else Words(entries)
