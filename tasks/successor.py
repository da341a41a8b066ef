"""Successor: what comes next in a sequence that everyone knows?

    clean     Monday, Tuesday, Wednesday,    -> " Thursday", not " Sunday"
    shifted   Thursday, Friday, Saturday,
    last      Monday, Tuesday, Saturday,
Source: Gould et al. 2023, "Successor Heads", arXiv 2312.09230. Known circuit: successor heads in the second half of a
model map a token to the next of its kind, reading features of an element's index that MLP 0 provides.
"""

from collections.abc import Sequence

from sparselens.prompts.draw import Draw
from sparselens.prompts.pairs import PromptPair, pair
from sparselens.prompts.task import Lists, Task
from sparselens.prompts.words import Continuation, Words, spaced
from sparselens.tasks.kinds import usable_kinds

TEMPLATES = (
    "{FIRST}, {SECOND}, {THIRD},",
    "In order: {FIRST}, {SECOND}, {THIRD},",
    "The list goes on like this: {FIRST}, {SECOND}, {THIRD},",
    "{FIRST} and {SECOND} and {THIRD} and",
    "One after the other: {FIRST}, {SECOND}, {THIRD},",
    "They said together: {FIRST}, {SECOND}, {THIRD},",
)
POSITIONS: tuple[str, ...] = ("FIRST", "SECOND", "THIRD")
CORRUPTIONS = {"shifted": POSITIONS, "last": ("THIRD",)}
ROUND = {
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "month": "January February March April May June July August September October November December",
}
STRAIGHT = {
    "number": " ".join(map(str, range(1, 101))),
    "number word": """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
        sixteen seventeen eighteen nineteen twenty""",
    "tens": "ten twenty thirty forty fifty sixty seventy eighty ninety",
    "ordinal": "first second third fourth fifth sixth seventh eighth ninth tenth",
    "letter": "a b c d e f g h i j k l m n o p q r s t u v w x y z",
    "capital letter": "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z",
}

Run = tuple[str, ...]  # three items and the one that comes next


def runs(items: Sequence[str]) -> list[Run]:
    """All runs of four consecutive items."""
    return [tuple(items[i : i + 4]) for i in range(len(items) - 3)]


def kinds() -> dict[str, Words]:
    """The runs of each kind; days and months wrap around."""
    found = {kind: runs(items.split()) for kind, items in STRAIGHT.items()}
    found |= {kind: runs(items.split() + items.split()[:3]) for kind, items in ROUND.items()}
    return {kind: Words(entries, _single_tokens, need=0) for kind, entries in found.items()}


def draw(random: Draw, words: Lists, corruption: str) -> PromptPair:
    """One pair from one kind of sequence. The corrupted prompt shows another run, or differs only in its last item."""
    run, other = random.sample(random.choice(usable_kinds(words))[1], 2)
    items, others = (dict(zip(POSITIONS, those, strict=False)) for those in (run, other))
    changes = {name: others[name] for name in CORRUPTIONS[corruption]}
    return pair(random.choice(TEMPLATES), items, changes, f" {run[3]}", f" {other[3]}")


def _single_tokens(run: Run) -> tuple[Continuation, ...]:
    return tuple(spaced(item)[0] for item in run)


successor = Task(
    "successor",
    "what comes next in a sequence that everyone knows?",
    draw,
    words=kinds(),
    corruptions=CORRUPTIONS,
    source="Gould et al. 2023, arXiv 2312.09230",
    circuit="MLP 0 and successor heads in the later half of the model",
    version=2,
)
