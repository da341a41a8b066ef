"""Gendered pronouns: which pronoun refers back to a first name?

    clean         Of course, Karen is a good dancer, isn't     -> " she", not " he"
    other_gender  Of course, Frank is a good dancer, isn't
The answer is the pronoun that English texts mostly use after a name; it says nothing about any person.
Source: Mathwin et al. 2023, "Identifying a preliminary circuit for predicting gendered pronouns in GPT-2 small". Known
circuit there: heads in early layers move the gender of NAME to the words after it, late heads move it to END.
"""

from sparselens.prompts.draw import Draw
from sparselens.prompts.pairs import PromptPair, pair
from sparselens.prompts.task import Lists, Task
from sparselens.prompts.words import Words, spaced
from sparselens.tasks.names import FEMALE, MALE

# The first half are tag questions, as in the source; the second half is in the plain English of children's stories.
TEMPLATES = (
    "Of course, {NAME} is a {quality} dancer, isn't",
    "Well, {NAME} is a very {quality} person, isn't",
    "As we know, {NAME} has always been {quality}, hasn't",
    "Yes, {NAME} was very {quality} at school, wasn't",
    "In the end, {NAME} became a {quality} person, didn't",
    "After all, {NAME} can be {quality}, can't",
    "One day, {NAME} was {quality} because",
    "One day, {NAME} felt {quality} and said that",
    "There was a child named {NAME}. Every day,",
    "Once upon a time, there was a {quality} child named {NAME}. One day,",
    "One day, {NAME} went to the {place} because",
    "One day, {NAME} went to the {place} and played. Then",
)
QUALITIES = tuple("happy kind quiet careful famous busy proud funny lucky clever nice brave good sad tired".split())
PLACES = tuple("park beach garden forest kitchen lake yard zoo school store".split())
# Names used for both genders, or short for names of either.
UNCLEAR = ("Sam", "Max", "Kelly", "Ashley", "Tyler", "Jerry", "Kyle", "Carol", "Joan")


def draw(random: Draw, words: Lists, corruption: str) -> PromptPair:  # noqa: ARG001 - there is but one
    """One pair; both genders equally often."""
    she, he = random.choice(words["female"]), random.choice(words["male"])
    slots = {"quality": random.choice(QUALITIES), "place": random.choice(PLACES)}
    template = random.choice(TEMPLATES)
    if random.flip():
        return pair(template, {**slots, "NAME": she}, {"NAME": he}, " she", " he")
    return pair(template, {**slots, "NAME": he}, {"NAME": she}, " he", " she")


def _names(names: tuple[str, ...]) -> Words:
    return Words([name for name in names if name not in UNCLEAR], spaced, need=1)


gendered_pronoun = Task(
    "gendered_pronoun",
    "which pronoun refers back to a first name?",
    draw,
    words={
        "female": _names(FEMALE),
        "male": _names((*MALE, "Timmy")),
        "pronoun": Words(("he", "she"), spaced),
    },
    corruptions={"other_gender": ("NAME",)},
    source="Mathwin et al. 2023, Identifying a preliminary circuit for predicting gendered pronouns in GPT-2 small",
    circuit="early heads move the gender of the name to the words after it, late heads to the end (GPT-2 small)",
    version=3,
)
