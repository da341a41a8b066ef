"""Indirect object identification: to whom is something given?

    clean     After Mary and John came to the park, John handed a book to     -> " Mary", not " John"
    abc       After Mary and John came to the park, Anna handed a book to
    s2_io     After Mary and John came to the park, Mary handed a book to
Source: Wang et al. 2022, "Interpretability in the Wild", arXiv 2211.00593. Known circuit (GPT-2 small): duplicate-token
and induction heads mark S2, S-inhibition heads keep the name movers at END from attending to S, name movers copy IO.
"""

from collections.abc import Sequence
from functools import partial

from sparselens.prompts.draw import Draw
from sparselens.prompts.pairs import PromptPair, pair
from sparselens.prompts.task import Lists, Task
from sparselens.prompts.words import Words, spaced
from sparselens.tasks.names import NAMES

# The indirect object comes first (ABBA); BABA has the two names the other way round.
ABBA = (
    "After {IO} and {S1} came to the {place}, {S2} handed a {object} to",
    "When {IO} and {S1} met at the {place}, {S2} passed the {object} to",
    "Yesterday {IO} and {S1} spent an hour at the {place}, and {S2} brought a {object} to",
    "While {IO} and {S1} were waiting near the {place}, {S2} offered the {object} to",
    "The neighbours {IO} and {S1} walked to the {place} together. There {S2} sold a {object} to",
    "Because {IO} and {S1} worked at the {place}, {S2} often lent the {object} to",
    "On Sunday {IO} and {S1} had lunch at the {place}. Afterwards {S2} showed a {object} to",
    "At the {place}, {IO} and {S1} talked for a long time. In the end {S2} gave the {object} to",
    "Friends say that {IO} and {S1} argued at the {place}, until {S2} returned the {object} to",
    "Once {IO} and {S1} had found the {place}, {S2} threw a {object} to",
    "It was raining when {IO} and {S1} reached the {place}, so {S2} carried the {object} to",
    "Last week {IO} and {S1} were seen at the {place}, where {S2} delivered a {object} to",
    "Before {IO} and {S1} left the {place}, {S2} had promised a {object} to",
    "As soon as {IO} and {S1} entered the {place}, {S2} sent the {object} over to",
    "Since {IO} and {S1} lived near the {place}, {S2} often brought the {object} to",
)
# In the plain English of stories for small children, which models of a few million parameters can handle. No prompt
# begins with a name: without a space before it, it would be another token than in the answer.
STORIES = (
    "Long ago, {IO} and {S1} were best friends. One day, {S2} gave a {object} to",
    "Once upon a time, {IO} and {S1} were friends. One day, {S2} gave a {object} to",
    "One day, {IO} and {S1} were playing in the {place}. Then {S2} gave a {object} to",
    "One day, {IO} and {S1} went to the {place}. {S2} wanted to give a {object} to",
    "Every day, {IO} and {S1} liked to play together. One day, {S2} gave a {object} to",
)
PLACES = tuple(
    "station library restaurant hospital museum market theatre beach airport hotel castle bakery cinema stadium".split()
)
OBJECTS = tuple("book ring watch letter camera ticket bottle basket newspaper photograph map coin guitar lamp".split())
STORY_PLACES = tuple("park garden house forest kitchen yard".split())
STORY_OBJECTS = tuple("ball cookie toy flower book hat cake doll car box".split())


CORRUPTIONS = {"abc": ("S2",), "s2_io": ("S2",), "random_names": ("IO", "S1", "S2")}


def swapped(template: str) -> str:
    """The template with the indirect object second (BABA)."""
    return template.replace("{IO}", "{*}").replace("{S1}", "{IO}").replace("{*}", "{S1}")


def draw(templates: Sequence[str], random: Draw, words: Lists, corruption: str) -> PromptPair:
    """One pair; the new names of `abc` and `random_names` do not occur in the clean prompt.

    With the same seed, every corruption has the same clean prompts.
    """
    io, s, *others = random.sample(words["name"], min(5, len(words["name"])))
    changed: dict[str, dict[str, str]] = {
        "abc": dict(zip(("S2",), others, strict=False)),
        "s2_io": {"S2": io},
        "random_names": dict(zip(("IO", "S1", "S2"), others, strict=False)),
    }
    if len(changed[corruption]) < len(CORRUPTIONS[corruption]):
        raise ValueError(
            f"corruption {corruption!r} needs more names than the {len(words['name'])} that are single tokens in this "
            "tokenizer: use s2_io"
        )
    place, thing = (random.choice(words[name]) for name in ("place", "object"))
    slots = {"IO": io, "S1": s, "S2": s, "place": place, "object": thing}
    return pair(random.choice(templates), slots, changed[corruption], f" {io}", f" {s}", after=("S1",))


def _task(name: str, description: str, templates: Sequence[str], version: int, **words: Sequence[str]) -> Task:
    both_orders = (*templates, *map(swapped, templates))
    return Task(
        name,
        description,
        partial(draw, both_orders),
        words={"name": Words(NAMES, spaced), **words},
        corruptions=CORRUPTIONS,
        source="Wang et al. 2022, arXiv 2211.00593",
        circuit="duplicate-token, induction, S-inhibition and name-mover heads (GPT-2 small)",
        version=version,
    )


ioi = _task("ioi", "to whom is something given?", ABBA, 2, place=PLACES, object=OBJECTS)
ioi_stories = _task(
    "ioi_stories",
    "to whom is something given, in a children's story?",
    STORIES,
    2,
    place=STORY_PLACES,
    object=STORY_OBJECTS,
)
