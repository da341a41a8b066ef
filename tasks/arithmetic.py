"""Arithmetic: sums of numbers of one to three digits, in digits or words, as text.

    clean     three plus four is     -> " seven", not " nine"
    second    three plus six is
    both      one plus eight is
    clean     3+4=                   -> "7", not "9"
No number is zero, since the sum could then be copied.
Source: language models have been evaluated on such sums since Brown et al. 2020, arXiv 2005.14165. Known circuits:
early MLPs encode the operands, attention moves them to END, late MLPs produce the result (Stolfo et al. 2023, arXiv
2305.15054), by a bag of heuristics (Nikankin et al. 2024, arXiv 2410.21272). `addition` is the toy version with one
token per character.
"""

from sparselens.prompts.draw import Draw
from sparselens.prompts.pairs import PromptPair, pair
from sparselens.prompts.task import Lists, Task
from sparselens.prompts.words import Continuation, Words
from sparselens.tasks.kinds import usable_kinds

TEMPLATES = (
    "{A} plus {B} is",
    "{A} plus {B} equals",
    "The sum of {A} and {B} is",
    "If you add {B} to {A}, you get",
    "Question: what is {A} plus {B}? Answer:",
    "{A} and {B} make",
)
BARE = ("{A}+{B}=",)  # the only form with one-token answers if every digit is a token of its own
NUMBER_WORDS = tuple(
    """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty""".split()
)
Sum = tuple[int, str]  # the number, and its text in the answer


def _kind(sums: range, words: bool = False, bare: bool = False) -> Words:
    before = "" if bare else " "
    entries = [(n, before + (NUMBER_WORDS[n] if words else str(n))) for n in sums]
    return Words(entries, _after_equals if bare else _after_text, need=0)


def _after_equals(entry: Sum) -> tuple[Continuation, ...]:
    return (("=", entry[1]),)


def _after_text(entry: Sum) -> tuple[Continuation, ...]:
    return (entry[1],)


KINDS = {
    "words": _kind(range(2, 21), words=True),
    "small": _kind(range(2, 21)),
    "two digits": _kind(range(21, 100)),
    "three digits": _kind(range(100, 1000)),
    "bare small": _kind(range(2, 21), bare=True),
    "bare two digits": _kind(range(21, 100), bare=True),
    "bare three digits": _kind(range(100, 1000), bare=True),
}


def draw(random: Draw, words: Lists, corruption: str) -> PromptPair:
    """One pair with different sums; the corrupted prompt changes the second number or both.

    The sums are drawn first and then split into two numbers, so each sum is right as often as it is wrong.
    """
    kind, sums = random.choice(usable_kinds(words))
    (right, answer), (wrong, wrong_answer) = random.sample(sums, 2)
    a = 1 + random.below(min(right, wrong) - 1)
    fresh = 1 + random.below(wrong - 1)
    other = fresh if corruption == "both" else a
    show = NUMBER_WORDS.__getitem__ if kind == "words" else str
    slots = {"A": show(a), "B": show(right - a)}
    changes = {"A": show(other), "B": show(wrong - other)}
    template = random.choice(BARE if kind.startswith("bare") else TEMPLATES)
    return pair(template, slots, changes, answer, wrong_answer)


arithmetic = Task(
    "arithmetic",
    "sums of numbers of one to three digits, in digits or words",
    draw,
    words=KINDS,
    corruptions={"second": ("B",), "both": ("A", "B")},
    source="Brown et al. 2020, arXiv 2005.14165",
    circuit="operands in early MLPs, moved to END by attention, the sum in late MLPs (arXiv 2305.15054)",
    version=2,
)
