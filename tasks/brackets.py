"""Brackets: does every opening bracket have its closing one?

    clean      Are these brackets balanced? ( ( ) ) ( ) Answer:     -> " yes", not " no"
    rewritten  Are these brackets balanced? ( ( ) ) ( ( Answer:
Half of the clean prompts are balanced, half are the rewritten ones. Where one bracket was changed, the numbers of
opening and closing ones differ; where two were exchanged, only their order tells.
Source: the small model of Redwood Research that classifies such strings, taken apart in the ARENA course
(learn.arena.education, chapter 1.5.1). Known circuit there: one head counts, another finds where the depth is negative.
"""

from sparselens.prompts.draw import Draw
from sparselens.prompts.pairs import PromptPair, pair
from sparselens.prompts.task import Lists, Task
from sparselens.prompts.words import Words, spaced

TEMPLATES = (
    "Are these brackets balanced? {before}{FIRST}{between}{SECOND}{after} Answer:",
    "Yes or no: is {before}{FIRST}{between}{SECOND}{after} balanced? Answer:",
    "( ) is balanced: yes. ) ( is balanced: no. {before}{FIRST}{between}{SECOND}{after} is balanced:",
    "( ( is balanced: no. ( ) ( ) is balanced: yes. {before}{FIRST}{between}{SECOND}{after} is balanced:",
)
PAIRS = (2, 3, 4, 5, 6)  # of brackets in a string


def is_balanced(brackets: str) -> bool:
    """Does every opening bracket close, none closing before it opens?

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


def rewritten(random: Draw, brackets: str) -> tuple[str, int, int]:
    """The string with one or both of two brackets changed so that it is not balanced, and where the two are.

    Half of the time two in the middle are exchanged, where that does it: then neither counts nor ends give it away.
    """
    tries = 20 if random.flip() else 0
    while True:
        tries -= 1
        first, second = sorted(random.sample(range(len(brackets)), 2))
        changed = list(brackets)
        changed[first], changed[second] = random.choice("()"), random.choice("()")
        if tries > 0:
            changed[first], changed[second] = brackets[second], brackets[first]
        at_an_end = first == 0 or second == len(brackets) - 1
        if not is_balanced("".join(changed)) and not (tries > 0 and at_an_end):
            return "".join(changed), first, second


def draw(random: Draw, words: Lists, corruption: str) -> PromptPair:  # noqa: ARG001 - of type DrawPair
    """One pair of a balanced string and one that is not, in either order."""
    good = balanced(random, random.choice(PAIRS))
    bad, first, second = rewritten(random, good)
    clean, corrupted = (good, bad) if random.flip() else (bad, good)
    right, wrong = (f" {words['answer'][is_balanced(text)]}" for text in (clean, corrupted))
    slots, changes = (_slots(text, first, second) for text in (clean, corrupted))
    return pair(random.choice(TEMPLATES), slots, changes, right, wrong)


def _slots(brackets: str, first: int, second: int) -> dict[str, str]:
    """The brackets around and between the two, spaced: else large vocabularies have tokens for several."""
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
)
