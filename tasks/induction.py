"""Induction: what came after this word last time?

    clean     Say it twice: mom friend little day happy mom friend little     -> " day", not one of the other words
    answer    Say it twice: mom friend little big happy mom friend little
    previous  Say it twice: mom friend big day happy mom friend little
Every word has a space before it; without one, many tokenizers would give the first word another token than its copy.
With names in prose (`induction_text`):
    clean     Yesterday Lily Brown and Tom Snow went to the park. Then somebody called Lily     -> " Brown", not " Snow"
    surnames  Yesterday Lily Snow and Tom Brown went to the park. Then somebody called Lily
    name      Yesterday Lily Brown and Tom Snow went to the park. Then somebody called Tom
Source: Olsson et al. 2022, "In-context learning and induction heads", arXiv 2209.11895. Known circuit (two layers and
more): previous-token heads write each word into the place after it, induction heads at END find it there and copy.
"""

from functools import cache

from sparselens.prompts.draw import Draw
from sparselens.prompts.pairs import PromptPair, pair
from sparselens.prompts.task import Lists, Task
from sparselens.prompts.words import Words, spaced
from sparselens.tasks.names import NAMES

WORDS = tuple(
    """
mom day friend play time little big happy park ball dog cat tree house car book water food sun red blue toy box cake
bird fish hat bed door hand home school garden flower rain snow boat king game song story apple bread milk chair table
window river road stone star moon night morning ship fire wind sea hill horse cow bear duck frog lion egg
up on with was very but once had said saw name so they one for
""".split()
)
BEFORE = "Say it twice:"
SHORTEST, LONGEST = 5, 8  # number of words before the repetition
CORRUPTIONS = {"answer": ("NEXT",), "previous": ("PREVIOUS",)}

SURNAMES = tuple(
    """
Brown Smith Snow Bird Little Wood Stone King Young Green White Black Hill Fox Wolf Baker Cook Fisher Hunter Carter
Miller Taylor Wilson Moore Clark Lewis Walker Hall Allen Wright Adams Nelson Campbell Mitchell Roberts Turner Phillips
Parker Evans Edwards Collins Stewart Morris Murphy Cooper Peterson Reed Bailey Howard Ward Watson Brooks Price
Bennett Foster Russell Griffin Hayes
""".split()
)
TEXTS = (
    "Yesterday {FIRST} {LAST} and {FIRST2} {LAST2} went to the {place}. Then somebody called {END}",
    "Once upon a time, {FIRST} {LAST} and {FIRST2} {LAST2} met at the {place}. One of them was sad. It was {END}",
    "Near the {place} lived {FIRST} {LAST}. Next door lived {FIRST2} {LAST2}. Everybody liked {END}",
    "One day, {FIRST} {LAST} saw {FIRST2} {LAST2} at the {place}. They played, and the first to go home was {END}",
    "The letter was for {FIRST} {LAST}, not for {FIRST2} {LAST2}. At the {place} we asked for {END}",
    "At the {place} there were {FIRST} {LAST} and {FIRST2} {LAST2}. My mom gave a cake to {END}",
)
PLACES = tuple("park house garden school lake store farm zoo market station".split())


def draw(random: Draw, words: Lists, corruption: str) -> PromptPair:
    """One pair; the repetition has at least one word, and stops at least one word before its end."""
    *first, other = random.sample(words["word"], 1 + SHORTEST + random.below(LONGEST - SHORTEST + 1))
    asked = random.below(len(first) - 1)  # index of the prompt's last word among the first words
    slots = {f"w{place}": word for place, word in enumerate(first)}
    slots |= {"PREVIOUS": first[asked], "NEXT": first[asked + 1]}
    wrong = tuple(f" {word}" for place, word in enumerate([*first, other]) if place != asked + 1)
    changes = {CORRUPTIONS[corruption][0]: other}
    return pair(_template(len(first), asked), slots, changes, f" {first[asked + 1]}", wrong)


@cache
def _template(length: int, asked: int) -> str:
    """`{w0} {PREVIOUS} {NEXT} {w3} {w4} {w0} {w1}` for 5 words, if the prompt ends with the second one."""
    slots = [f"w{place}" for place in range(length)]
    again = slots[: asked + 1]
    slots[asked : asked + 2] = ["PREVIOUS", "NEXT"]
    return " ".join((BEFORE, *(f"{{{slot}}}" for slot in (*slots, *again))))


def draw_text(random: Draw, words: Lists, corruption: str) -> PromptPair:
    """One pair; the prompt ends with the first name of either person."""
    (first, first2), (last, last2) = (random.sample(words[name], 2) for name in ("name", "surname"))
    slots = {"FIRST": first, "LAST": last, "FIRST2": first2, "LAST2": last2, "place": random.choice(PLACES)}
    template, second = random.choice(TEXTS), random.flip()
    asked, right, other, wrong = (first2, last2, first, last) if second else (first, last, first2, last2)
    changes = {"LAST": last2, "LAST2": last} if corruption == "surnames" else {"END": other}
    return pair(template, {**slots, "END": asked}, changes, f" {right}", f" {wrong}")


SOURCE = "Olsson et al. 2022, arXiv 2209.11895"
CIRCUIT = "previous-token heads and induction heads (two layers and more)"

induction = Task(
    "induction",
    "what came after this word the last time?",
    draw,
    words={"word": Words(WORDS, spaced, need=LONGEST + 1)},
    corruptions=CORRUPTIONS,
    source=SOURCE,
    circuit=CIRCUIT,
    version=2,
)
induction_text = Task(
    "induction_text",
    "which surname came after this first name?",
    draw_text,
    words={"name": Words(NAMES, spaced), "surname": Words(SURNAMES, spaced)},
    corruptions={"surnames": ("LAST", "LAST2"), "name": ("END",)},
    source=SOURCE,
    circuit=CIRCUIT,
    version=2,
)
