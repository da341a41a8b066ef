"""A task: how to draw prompt pairs and score answers to them. Holds no model, tokenizer or device.

    def draw(random, words, corruption):
        big, small = random.sample(words["animal"], 2)
        return pair("The {A} is ...", {"A": big}, {"A": small}, answer=" ...", wrong_answer=" ...")

    task = Task("sizes", "Which animal is bigger?", draw, words={"animal": Words(ANIMALS, spaced)})
    task.pairs(100, seed=0); task.dataset(100); task.tokenize(tokenizer, 100)
Loads torch and transformers only when they are needed.
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

MOST = 10**6  # pairs that can be drawn at once; more would take gigabytes
_AT_ONCE = 512  # candidates that are fitted to a tokenizer together


@dataclass(frozen=True, repr=False)
class Task:
    """How to draw prompt pairs of a task, and what is known about it.

    >>> pairs = TASKS["ioi"].tokenize(model.tokenizer, n=100, seed=0)
    >>> pairs.clean.shape, pairs.answers.shape  # [batch pos], [batch k]

    Args:
        draw: makes one pair, given a source of random choices, the word lists and the name of a corruption
        words: word lists by name; `Words` if entries must be single tokens, else any sequence
        corruptions: name of each corruption -> positions at which clean and corrupted prompt differ; the first is the
            default
        metric: the default metric: a name in `sparselens.prompts.metrics`, or a function
        source: the publication that introduced the task
        circuit: what is known about how models solve it
        version: increased whenever the same seed gives different pairs
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

        No clean prompt repeats before all have occurred; a warning says if there are fewer than n.

        Raises:
            ValueError: n is not positive, above a million, or larger than the number of different pairs; or there is no
                such corruption.
        """
        return self._exactly(n, seed, corruption).pairs

    def at_most(self, n: int, seed: int = 0, corruption: str | None = None) -> list[PromptPair]:
        """Like `pairs`, but returns all pairs if there are fewer than n; possibly none, if none fits the tokenizer."""
        return self._draw(n, seed, corruption).pairs

    def count_prompts(self, corruption: str | None = None, most: int = 2000) -> int:
        """Number of different clean prompts, counted up to `most`.

        Beyond that number, pairs repeat clean prompts with other corrupted prompts or wrong answers.
        """
        return len(self._draw(most, 0, corruption, repeats=False).pairs)

    def dataset(self, n: int, seed: int = 0, corruption: str | None = None) -> "Dataset":
        """The pairs as a Hugging Face dataset with explicit features and the task's `fingerprint`.

        Raises:
            ValueError: as for `pairs`.
        """
        from sparselens.prompts.task_data import to_dataset

        pairs = self.pairs(n, seed, corruption)
        return to_dataset(pairs, self.fingerprint(n, seed, corruption), self.description)

    def fitted(self, tokenizer: Any, bos: bool | None = None, equal_length: bool = True) -> "Task":
        """The same task, restricted to words and pairs that fit a tokenizer.

        Args:
            bos: whether to prepend the tokenizer's BOS. Default: as the tokenizer does
            equal_length: require clean and corrupted prompt to have the same number of tokens, and the same positions

        Raises:
            ValueError: too few words fit. Lists those that do.
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

        Words that do not fit the tokenizer are never drawn. Arguments as in `fitted`.

        Raises:
            ValueError: as for `pairs` and `fitted`; or too few pairs fit the tokenizer.
        """
        from sparselens.prompts.tokenizing import stack

        fitted = self.fitted(tokenizer, bos, equal_length)
        drawn = fitted._exactly(n, seed, corruption)
        assert fitted.fit is not None
        return stack(drawn.pairs, drawn.encoded, fitted.fit.vocabulary)

    def solved_by(self, model: "nn.Module", n: int, seed: int = 0, **options: Any) -> "TokenizedPairs":
        """The pairs, out of n, that the model solves (`metrics.accuracy`), as commonly used to find circuits.

        Args:
            options: further arguments of `sparselens.evaluate`

        Raises:
            ValueError: the model solves none.
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
        """A task with given pairs: PromptPairs, or mappings with `clean`, `corrupted`, `answer` and `wrong_answer`.

        Answers are strings or lists of strings. Optional `positions` map names to character spans; an optional
        `template` is used by `TokenizedPairs.groups`. Like any task it draws at random, so `tokenize` changes the order
        of the records (see `TokenizedPairs.prompts`); `sl.tokenize_pairs(pairs, tokenizer)` keeps it.

        Args:
            options: other fields of `Task`

        Raises:
            ValueError: there are no records, or one is broken.
        """
        from sparselens.prompts.task_data import pairs_of

        pairs = pairs_of(records)
        words = {"record": Words(pairs, need=1)}
        return cls(name, description or f"{len(pairs)} given pairs", _given, words, **options)

    def find_corruption(self, name: str | None) -> str:
        """The corruption of that name; None: the default.

        Raises:
            ValueError: there is none of that name.
        """
        if name is None:
            return next(iter(self.corruptions))
        if name not in self.corruptions:
            raise unknown(f"corruption of {self.name!r}", name, self.corruptions)
        return name

    def fingerprint(self, n: int, seed: int, corruption: str | None = None) -> str:
        """Identifies the result of `pairs`: task, version, corruption, words that fit the tokenizer, seed and n."""
        from sparselens.prompts.task_data import digest

        whole = self.fit is None and self.draw is not _given  # then name and version determine the words
        left = "" if whole else f"-{digest([list(_as_words(w).entries) for w in self.words.values()])}"
        return f"{self.name}-v{self.version}-{self.find_corruption(corruption)}{left}-seed{seed}-n{n}"

    def _exactly(self, n: int, seed: int, corruption: str | None) -> "_Drawn":
        drawn = self._draw(n, seed, corruption)
        if len(drawn.pairs) < n:
            raise ValueError(self._too_few(n, drawn))
        if drawn.misfits and self.draw is _given:
            warnings.warn(
                f"{drawn.misfits.total()} records do not fit this tokenizer and are left out: {drawn.reasons}",
                stacklevel=3,
            )
        self._warn_of_repeats(drawn.pairs)
        return drawn

    def _warn_of_repeats(self, pairs: Sequence[PromptPair]) -> None:
        """Warn if there are fewer clean prompts than pairs; not for given pairs, which the user chose."""
        different = len({pair.clean for pair in pairs})
        if different < len(pairs) and self.draw is not _given:
            here = " with this tokenizer" if self.fit else ""
            warnings.warn(
                f"{self.name!r} has {different} different clean prompts{here}: {len(pairs)} pairs repeat some of "
                "them with other wrong answers, which adds little information",
                stacklevel=4,
            )

    def _draw(self, n: int, seed: int, corruption: str | None, repeats: bool = True) -> "_Drawn":
        """Up to n different pairs that fit, and the reasons why others do not; fewer if no more are found.

        Args:
            repeats: once all clean prompts have occurred, repeat them with other corrupted prompts
        """
        if not isinstance(n, Integral) or n < 1:
            raise ValueError(f"{n} pairs: want at least 1, a whole number")
        if n > MOST:
            raise ValueError(
                f"{n:,} pairs would not fit into memory: draw at most {MOST:,} at once, and more with another seed"
            )
        corruption = self.find_corruption(corruption)
        lists = {name: _as_words(entries).entries for name, entries in self.words.items()}
        candidates = Candidates(lambda random: self.draw(random, lists, corruption), seed)
        drawn, at_once = _Drawn([], [], Counter()), min(n, _AT_ONCE)
        while len(drawn.pairs) < n and drawn.misfits.total() <= 2000 + 50 * len(drawn.pairs):
            fresh = candidates.fresh(at_once)
            drawn.take(fresh, self.fit)
            if len(fresh) < at_once and not candidates.next_round({pair.clean for pair in drawn.pairs}):
                break
            if candidates.repeats and not repeats:
                break
        return _Drawn(drawn.pairs[:n], drawn.encoded[:n], drawn.misfits)

    def _too_few(self, n: int, drawn: "_Drawn") -> str:
        found = len(drawn.pairs)
        if not drawn.misfits:
            return f"{self.name!r} has {found} different pairs, {n} were requested"
        tried = f"{found} of {found + drawn.misfits.total()} pairs drawn of {self.name!r}"
        return f"{tried} fit this tokenizer, {n} were requested: {drawn.reasons}"


class _Drawn(NamedTuple):
    pairs: list[PromptPair]
    encoded: list[Encoded]  # one per pair, if there is a tokenizer to fit
    misfits: Counter[str]  # reasons why other pairs do not fit

    @property
    def reasons(self) -> str:
        """The most common reasons why pairs do not fit."""
        return "; ".join(f"{reason} ({count} times)" for reason, count in self.misfits.most_common(3))

    def take(self, candidates: list[PromptPair], fit: Fit | None) -> None:
        """Add the candidates that fit, and count the reasons why others do not."""
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
