"""Prompt pairs as strings: a clean and a corrupted prompt, the answers that a metric compares, and named positions.

    pair("{IO} and {S1} went to the {place}. {S2} gave a drink to",
         {"IO": "Mary", "S1": "John", "S2": "John", "place": "park"}, {"S2": "Mary"}, " Mary", " John")
Upper-case slots become named positions. Loads neither torch nor a tokenizer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from string import Formatter

Span = tuple[int, int]  # first character, and the one after the last


@dataclass(frozen=True)
class PromptPair:
    """Two prompts that differ in what the task depends on, and the answers that a metric compares.

    Answers are written as they continue the prompt, including a leading space. `END` is the position whose logits give
    the answer: the prompt's last character, unless `positions` names another.

    >>> PromptPair("The boys", "The boy", (" are",), (" is",))

    Raises:
        ValueError: a string is empty, the prompts are equal, an answer is both right and wrong, or a position is
            outside its prompt.
    """

    clean: str
    corrupted: str
    answers: tuple[str, ...]  # right continuations of the clean prompt
    wrong_answers: tuple[str, ...]
    positions: Mapping[str, Span] = field(default_factory=dict[str, Span])
    corrupted_positions: Mapping[str, Span] = field(default_factory=dict[str, Span])
    template: str = field(default="", compare=False)  # the template of both prompts, if known

    def __post_init__(self) -> None:
        if not all((self.clean, self.corrupted, self.answers, self.wrong_answers)):
            raise ValueError(f"a prompt or its answers are empty: {self.clean!r}, {self.corrupted!r}, {self.answers!r}")
        for name, strings in (("answers", self.answers), ("wrong_answers", self.wrong_answers)):
            if type(strings) is not tuple or {*map(type, strings)} != {str}:
                raise ValueError(f"{name} of {self.clean!r} must be a tuple of strings, not {strings!r}")
            if len(set(strings)) < len(strings):
                raise ValueError(f"{name} of {self.clean!r} contain a string twice: {strings!r}")
        if "" in self.answers + self.wrong_answers:
            raise ValueError(f"an answer to {self.clean!r} is empty")
        if self.clean == self.corrupted:
            raise ValueError(f"clean and corrupted prompt are the same: {self.clean!r}")
        both = set(self.answers) & set(self.wrong_answers)
        if both:
            raise ValueError(f"{min(both)!r} is both answer and wrong answer to {self.clean!r}")
        if set(self.positions) != set(self.corrupted_positions):
            raise ValueError(f"the two prompts have different position names: {self.clean!r}")
        object.__setattr__(self, "positions", _with_end(self.clean, self.positions))
        object.__setattr__(self, "corrupted_positions", _with_end(self.corrupted, self.corrupted_positions))

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        """The clean prompt with its answers, as in the list of tasks."""
        return f"{self.clean} -> {some(self.answers)}, not {some(self.wrong_answers)}"

    @property
    def key(self) -> tuple[str, str, tuple[str, ...], tuple[str, ...]]:
        """Identifies the pair: pairs with equal keys are equal."""
        return self.clean, self.corrupted, self.answers, self.wrong_answers


def pair(
    template: str,
    words: Mapping[str, str],
    changes: Mapping[str, str],
    answer: str | tuple[str, ...],
    wrong_answer: str | tuple[str, ...],
    after: Sequence[str] = (),
) -> PromptPair:
    """Fill a template with `words` for the clean prompt; `changes` override some of them in the corrupted prompt.

    >>> pair("{A} gave it to", {"A": "Mary"}, {"A": "John"}, " Anna", " Tom")

    Args:
        after: positions whose following word is named, too: `S1` gives `S1+1`

    Raises:
        ValueError: a slot has no word, a change names no slot, or the pair is invalid (see `PromptPair`).
    """
    unknown = set(changes) - set(words)
    if unknown:
        raise ValueError(f"no such slot: {min(unknown)!r} (the template has {', '.join(words)})")
    (clean, positions), (corrupted, others) = fill(template, words), fill(template, {**words, **changes})
    for name in after:
        positions[f"{name}+1"], others[f"{name}+1"] = (
            next_word(clean, positions[name]),
            next_word(corrupted, others[name]),
        )
    return PromptPair(clean, corrupted, _tuple(answer), _tuple(wrong_answer), positions, others, template)


def fill(template: str, words: Mapping[str, str]) -> tuple[str, dict[str, Span]]:
    """The text with a word in every `{slot}`, and the spans of upper-case slots.

    Raises:
        ValueError: a slot has no word, or an upper-case slot occurs twice.
    """
    text, positions = "", dict[str, Span]()
    for literal, slot in _parse(template):
        text += literal
        if slot is None:
            continue
        if slot not in words:
            raise ValueError(f"no word for {{{slot}}} in {template!r}")
        start, text = len(text), text + words[slot]
        if slot.isupper():
            if slot in positions:
                raise ValueError(f"{{{slot}}} occurs twice in {template!r}: give the second a different name")
            positions[slot] = (start, len(text))
    return text, positions


def next_word(text: str, span: Span) -> Span:
    """The word or punctuation mark after a span.

    >>> next_word("Mary and John", (0, 4))
    (5, 8)
    """
    start = span[1]
    while start < len(text) and text[start].isspace():
        start += 1
    end = start + 1
    while text[start:end].isalnum() and text[end : end + 1].isalnum():
        end += 1
    return start, end


@lru_cache(maxsize=1024)
def _parse(template: str) -> tuple[tuple[str, str | None], ...]:
    return tuple((literal, slot) for literal, slot, _, _ in Formatter().parse(template))


def _tuple(answer: str | tuple[str, ...]) -> tuple[str, ...]:
    return (answer,) if isinstance(answer, str) else answer


def _with_end(text: str, positions: Mapping[str, Span]) -> dict[str, Span]:
    whole = {**positions, "END": positions.get("END", (len(text) - 1, len(text)))}
    for name, (start, end) in whole.items():
        if not 0 <= start < end <= len(text):
            raise ValueError(
                f"position {name!r}, characters {start} to {end}, is outside {text!r} ({len(text)} characters)"
            )
    return whole


def some(answers: Sequence[str]) -> str:
    """The first few answers, for printing."""
    shown = ", ".join(map(repr, answers[:3]))
    return shown if len(answers) <= 3 else f"{shown}, ... ({len(answers)})"
