"""Subject-verb agreement: the verb agrees in number with its subject, not with the noun before it.

    clean   Today the farmers near the bird     -> " were", not " was"
    number  Today the farmer near the bird
Three structures: simple, across a prepositional phrase, and across a relative clause; the noun in between (ATTRACTOR)
is singular or plural. `subject_verb_agreement_stories` has only the simple one, in the style of children's stories.
Source: Linzen et al. 2016, "Assessing the ability of LSTMs to learn syntax-sensitive dependencies", arXiv 1611.01368;
as clean and corrupted pairs: Marks et al. 2024, "Sparse feature circuits", arXiv 2403.19647. Known circuit there
(Pythia 70M, Gemma 2 2B): features of SUBJECT's number, moved by attention to END past features of clause and phrase.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from sparselens.prompts.draw import Draw
from sparselens.prompts.pairs import PromptPair, pair
from sparselens.prompts.task import DrawPair, Lists, Task
from sparselens.prompts.words import Words

STARTS = (
    "Today the",
    "Now the",
    "We know that the",
    "People say that the",
    "In this story, the",
    "After lunch, the",
    "In the park, the",
    "I think that the",
    "Next to the river, the",
    "It is said that the",
)
SIMPLE = ("{SUBJECT}", "big {SUBJECT}", "little {SUBJECT}", "nice {SUBJECT}", "old {SUBJECT}", "hungry {SUBJECT}")
PREPOSITIONAL = tuple(
    f"{{SUBJECT}} {place} the {{ATTRACTOR}}"
    for place in ("near", "behind", "with", "next to", "in front of", "far from")
)
RELATIVE = tuple(
    f"{{SUBJECT}} that the {{ATTRACTOR}} {verb}" for verb in ("saw", "liked", "found", "helped", "followed", "knew")
)
NOUNS = tuple(
    tuple(noun.split("/"))
    for noun in """
dog/dogs cat/cats boy/boys girl/girls bird/birds bear/bears duck/ducks frog/frogs cow/cows horse/horses pig/pigs
rabbit/rabbits lion/lions monkey/monkeys friend/friends kid/kids king/kings doctor/doctors farmer/farmers
teacher/teachers driver/drivers worker/workers painter/painters singer/singers writer/writers player/players
soldier/soldiers student/students neighbor/neighbors parent/parents brother/brothers sister/sisters
daughter/daughters actor/actors nurse/nurses guard/guards pilot/pilots lawyer/lawyers judge/judges
""".split()
)
# Singular and plural. In the past tense, in which stories are told, only was/were differ.
VERBS = tuple(
    tuple(verb.split("/"))
    for verb in """
was/were was/were was/were is/are has/have does/do likes/like wants/want loves/love needs/need looks/look knows/know
makes/make takes/take walks/walk runs/run sleeps/sleep sings/sing smiles/smile seems/seem works/work
""".split()
)


# In the plain English of children's stories, which small models can handle, with no other noun in between.
STORY_STARTS = (
    "One day, the",
    "Once upon a time, the",
    "At night, the",
    "In the park, the",
    "Then the",
    "Mom said that the",
    "Everyone saw that the",
    "In the end, the",
    "After that, the",
    "But the",
    "Outside, the",
    "She was happy that the",
    "He said that the",
)
STORY_QUALITIES = ("", "big ", "little ", "pretty ", "old ", "new ", "nice ", "good ", "funny ", "small ", "other ")
STORY_SUBJECTS = tuple(f"{quality}{{SUBJECT}}" for quality in STORY_QUALITIES)
STORY_NOUNS = tuple(
    tuple(noun.split("/"))
    for noun in """
dog/dogs cat/cats boy/boys girl/girls bird/birds bear/bears duck/ducks frog/frogs cow/cows horse/horses bug/bugs
ant/ants bee/bees squirrel/squirrels rabbit/rabbits friend/friends kid/kids toy/toys doll/dolls ball/balls
balloon/balloons block/blocks book/books box/boxes boat/boats car/cars truck/trucks train/trains tree/trees
flower/flowers plant/plants apple/apples egg/eggs cookie/cookies cloud/clouds star/stars stone/stones rock/rocks
shoe/shoes house/houses
""".split()
)


def draw(
    starts: Sequence[str],
    structures: Sequence[Sequence[str]],
    random: Draw,
    words: Lists,
    corruption: str,  # noqa: ARG001 - there is but one
) -> PromptPair:
    """One pair; subjects and attractors are singular and plural equally often, and independently of each other."""
    subject, attractor = random.sample(words["noun"], 2)
    number, clause = random.below(2), random.choice(random.choice(structures))
    slots = {"SUBJECT": subject[number], "ATTRACTOR": random.choice(attractor)}
    verbs = random.choice(words["verb"])
    changes, right, wrong = {"SUBJECT": subject[1 - number]}, f" {verbs[number]}", f" {verbs[1 - number]}"
    return pair(f"{random.choice(starts)} {clause}", slots, changes, right, wrong)


def _both(forms: tuple[str, str]) -> tuple[str, ...]:
    return tuple(f" {form}" for form in forms)


def _task(name: str, description: str, draw: DrawPair, nouns: Sequence[Any], verbs: Sequence[Any]) -> Task:
    return Task(
        name,
        description,
        draw,
        words={"noun": Words(nouns, _both, need=2), "verb": Words(verbs, _both, need=1)},
        corruptions={"number": ("SUBJECT",)},
        source="Linzen et al. 2016, arXiv 1611.01368; Marks et al. 2024, arXiv 2403.19647",
        circuit="number of the subject, moved to the end past features of the clause between (Pythia 70M, Gemma 2 2B)",
        version=2,
    )


subject_verb_agreement = _task(
    "subject_verb_agreement",
    "does the verb agree with its subject, past another noun?",
    partial(draw, STARTS, (SIMPLE, PREPOSITIONAL, RELATIVE)),
    NOUNS,
    VERBS,
)
subject_verb_agreement_stories = _task(
    "subject_verb_agreement_stories",
    "was or were, in a children's story with no other noun in between?",
    partial(draw, STORY_STARTS, (STORY_SUBJECTS,)),
    STORY_NOUNS,
    (("was", "were"),),
)
