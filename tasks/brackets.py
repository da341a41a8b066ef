"""Brackets: does every opening bracket have its closing one?

    clean      Are these brackets balanced? ( ( ) ) ( ) Answer:     -> " yes", not " no"
    rewritten  Are these brackets balanced? ( ( ) ) ( ( Answer:
Half of the clean prompts are balanced, half are unbalanced rewritings. Half of the rewritings have as many opening as
closing brackets but two swapped in the middle, so only the order gives them away; in the other half the numbers
differ, so counting is enough.
Source: the small model of Redwood Research that classifies such strings, analysed in the ARENA course
(learn.arena.education, chapter 1.5.1). Known circuit there: one head counts, another finds where the depth is negative.
"""

from sparselens.prompts.draw import Draw
from sparselens.prompts.pairs import PromptPair, pair
from sparselens.prompts.task import Lists, Task
from sparselens.prompts.words import Words, spaced

TEMPLATES = (
    "Are these brackets balanced? {before}{FIRST}{between}{SECOND}{after} Answer:",
    "Yes or no: is {before}{FIRST}{between}{SECOND}{after} balanced? Answer:",
    "Question: Does every bracket close in {before}{FIRST}{between}{SECOND}{after} ? Answer:",
    "Does every bracket in {before}{FIRST}{between}{SECOND}{after} have its partner? Answer:",
    "( ) is balanced: yes. ) ( is balanced: no. {before}{FIRST}{between}{SECOND}{after} is balanced:",
    "( ( is balanced: no. ( ) ( ) is balanced: yes. {before}{FIRST}{between}{SECOND}{after} is balanced:",
)
PAIRS = (4, 5, 6, 7, 8)  # number of bracket pairs in a string; with fewer there are too few balanced strings


def is_balanced(brackets: str) -> bool:
    """Whether every opening bracket is closed, and no bracket closes before it opens.

    >>> is_balanced("(()())"), is_balanced("())("), is_balanced("(()")
    (True, False, False)
    """
    depth = 0
    for bracket in brackets:
        depth += 1 if bracket == "(" else -1
        if depth < 0:
            return False
    return depth == 0


def balanced(random: Draw, n: int) -> str:
    """A balanced string of n pairs."""
    brackets = ""
    for _ in range(n):
        place = random.below(len(brackets) + 1)
        brackets = brackets[:place] + "()" + brackets[place:]
    return brackets


def exchanged(brackets: str) -> list[tuple[int, int]]:
    """Pairs of places to swap so that the string is unbalanced, although neither counts nor ends give it away."""
    inner = range(1, len(brackets) - 1)
    places = [(i, j) for i in inner for j in inner if i < j and brackets[i] != brackets[j]]
    return [(i, j) for i, j in places if not is_balanced(_with(brackets, {i: brackets[j], j: brackets[i]}))]


def rewritten(random: Draw, brackets: str, counts: bool) -> tuple[str, int, int] | None:
    """The string with one or both of two brackets changed so that it is unbalanced, and the places of the two.

    None if that is not possible.

    Args:
        counts: make the numbers of opening and closing brackets differ; otherwise swap two brackets in the middle
    """
    if counts:
        first, second = sorted(random.sample(range(len(brackets)), 2))
        other = {"(": ")", ")": "("}
        both = random.flip() and brackets[first] == brackets[second]
        changed = (first, second) if both else (random.choice((first, second)),)
        return _with(brackets, {place: other[brackets[place]] for place in changed}), first, second
    places = exchanged(brackets)
    if not places:
        return None
    first, second = random.choice(places)
    return _with(brackets, {first: brackets[second], second: brackets[first]}), first, second


def _with(brackets: str, changes: dict[int, str]) -> str:
    return "".join(changes.get(place, bracket) for place, bracket in enumerate(brackets))


def draw(random: Draw, words: Lists, corruption: str) -> PromptPair:  # noqa: ARG001 - of type DrawPair
    """One pair: a balanced and an unbalanced string, in either order."""
    counts, found, good = random.flip(), None, ""
    while found is None:
        good = balanced(random, random.choice(PAIRS))
        found = rewritten(random, good, counts)
    bad, first, second = found
    clean, corrupted = (good, bad) if random.flip() else (bad, good)
    right, wrong = (f" {words['answer'][is_balanced(text)]}" for text in (clean, corrupted))
    slots, changes = (_slots(text, first, second) for text in (clean, corrupted))
    return pair(random.choice(TEMPLATES), slots, changes, right, wrong)


def _slots(brackets: str, first: int, second: int) -> dict[str, str]:
    """The brackets before, between and after the two. Spaced, since large vocabularies merge adjacent brackets."""
    before, between, after = brackets[:first], brackets[first + 1 : second], brackets[second + 1 :]
    return {
        "before": "".join(f"{bracket} " for bracket in before),
        "FIRST": brackets[first],
        "between": " " + "".join(f"{bracket} " for bracket in between),
        "SECOND": brackets[second],
        "after": "".join(f" {bracket}" for bracket in after),
    }


brackets = Task(
    "brackets",
    "does every opening bracket have its closing one?",
    draw,
    words={"answer": Words(("no", "yes"), spaced, need=2)},
    corruptions={"rewritten": ("FIRST", "SECOND")},
    source="balanced brackets, Redwood Research; in the ARENA course",
    circuit="one head counts, another finds where the depth falls below zero (small model trained on it)",
    version=2,
)
