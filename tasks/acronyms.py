"""Acronyms: the third letter of an abbreviation, right after the words that it abbreviates.

    clean     The Royal Music Hall (RM      -> "H", not "F"
    third     The Royal Music Fund (RM
    words     The Little Garden Fund (RM
Source: Garcia-Carrasco et al. 2024, "How does GPT-2 Predict Acronyms?", arXiv 2405.04156. Known circuit (GPT-2 small):
eight letter-mover heads attend from END to the third word and copy its initial; others carry its position.
"""

from itertools import product

from sparselens.prompts.draw import Draw
from sparselens.prompts.pairs import PromptPair, pair
from sparselens.prompts.task import Lists, Task
from sparselens.prompts.words import Continuation, Words

TEMPLATES = (
    "The {FIRST} {SECOND} {THIRD} ({ACRONYM}",
    "She joined the {FIRST} {SECOND} {THIRD} ({ACRONYM}",
    "Members of the {FIRST} {SECOND} {THIRD} ({ACRONYM}",
    "He works for the {FIRST} {SECOND} {THIRD} ({ACRONYM}",
    "Everyone in town knows the {FIRST} {SECOND} {THIRD} ({ACRONYM}",
)
# Words that make a plausible name in any combination. They are short, to be single tokens in small vocabularies.
FIRST = """
Royal National Central Global Northern Southern Western Eastern United Young Open Big Happy Joint Old New Modern Local
Junior Fine Free Daily Great Main Upper Zurich Little Kenya Victoria
"""
SECOND = """
Music Garden Dance Book Film Water Energy Insect Jazz Kite Language Nature Ocean Pet River Sun Train Village Youth
Art Bird Cat Dog Fire History Radio Peace Tree Animal Data Health Steel Zoo Video
"""
# Grouped by initial, so that each letter is the answer equally often. All have four letters, so that most small
# vocabularies split them into the same number of tokens. The initials are ones that large vocabularies rarely merge
# with the letters before them.
THIRD = """
Farm Fund Firm, Game Gang Gala, Hall Home Hunt, Jury Jazz, Kids Kite Kits, Mill Mine Mail, News Nest Note,
View Vote Vans, Week Walk Wave, Year Yard Yoga, Zone
"""
CORRUPTIONS = {"third": ("THIRD",), "words": ("FIRST", "SECOND", "THIRD")}


def by_initial(words: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Groups of words that share an initial: (initial, words)."""
    groups = (tuple(group.split()) for group in words.split(","))
    return tuple((group[0][0], group) for group in groups)


def letter_is_a_token(names: tuple[str, str]) -> tuple[Continuation, ...]:
    """Every possible third letter must be a token of its own after these first two."""
    return tuple((f" ({names[0][0]}{names[1][0]}", letter) for letter, _ in ENDINGS)


def draw(random: Draw, words: Lists, corruption: str) -> PromptPair:
    """One pair; the corrupted prompt has a third word with another initial, but the same letters in brackets."""
    (first, second), (other_first, other_second) = random.sample(words["first two"], 2)
    (answer, thirds), (wrong, other_thirds) = random.sample(ENDINGS, 2)
    slots = {"FIRST": first, "SECOND": second, "THIRD": random.choice(thirds), "ACRONYM": first[0] + second[0]}
    changes = {"FIRST": other_first, "SECOND": other_second, "THIRD": random.choice(other_thirds)}
    changes = {name: changes[name] for name in CORRUPTIONS[corruption]}
    return pair(random.choice(TEMPLATES), slots, changes, answer, wrong)


ENDINGS = by_initial(THIRD)
acronyms = Task(
    "acronyms",
    "the third letter of an abbreviation",
    draw,
    words={"first two": Words(list(product(FIRST.split(), SECOND.split())), letter_is_a_token)},
    corruptions=CORRUPTIONS,
    source="Garcia-Carrasco et al. 2024, arXiv 2405.04156",
    circuit="letter-mover heads copy the initial of the third word (GPT-2 small)",
    version=2,
)
