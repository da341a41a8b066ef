"""Subject-verb agreement: the verb has the number of its subject, not that of the noun before it.

    clean   Today the farmers near the bird     -> " were", not " was"
    number  Today the farmer near the bird
Simple, across a prepositional phrase, and across a relative clause; the noun between (ATTRACTOR) is of either number.
Source: Linzen et al. 2016, "Assessing the ability of LSTMs to learn syntax-sensitive dependencies", arXiv 1611.01368;
as clean and corrupted pairs: Marks et al. 2024, "Sparse feature circuits", arXiv 2403.19647. Known circuit there
(Pythia 70M, Gemma 2 2B): features of number on SUBJECT, moved by attention to END past features of clause and phrase.
"""

from sparselens.draw import Draw
from sparselens.prompts import PromptPair, pair
from sparselens.task import Lists, Task
from sparselens.words import Words

STARTS = (
    "Today the",
    "Now the",
    "We know that the",
    "People say that the",
    "In this story the",
    "After lunch the",
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
STRUCTURES = (SIMPLE, PREPOSITIONAL, RELATIVE)
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
# Singular and plural. The past tense of children's stories tells them apart in was/were alone.
VERBS = tuple(
    tuple(verb.split("/"))
    for verb in """
was/were was/were was/were is/are has/have does/do likes/like wants/want loves/love needs/need looks/look knows/know
makes/make takes/take walks/walk runs/run sleeps/sleep sings/sing smiles/smile seems/seem works/work
""".split()
)


def draw(random: Draw, words: Lists, corruption: str) -> PromptPair:  # noqa: ARG001 - there is but one
    """One pair; singular and plural subjects equally often, attractors of either number with both."""
    subject, attractor = random.sample(words["noun"], 2)
    number, clause = random.below(2), random.choice(random.choice(STRUCTURES))
    slots = {"SUBJECT": subject[number], "ATTRACTOR": random.choice(attractor)}
    right, wrong = (f" {verb}" for verb in _from(number, random.choice(words["verb"])))
    return pair(f"{random.choice(STARTS)} {clause}", slots, {"SUBJECT": subject[1 - number]}, right, wrong)


def _from(number: int, forms: tuple[str, str]) -> tuple[str, str]:
    """The form of that number first."""
    return forms[number], forms[1 - number]


def _both(forms: tuple[str, str]) -> tuple[str, ...]:
    return tuple(f" {form}" for form in forms)


subject_verb_agreement = Task(
    "subject_verb_agreement",
    "does the verb agree with its subject, past another noun?",
    draw,
    words={"noun": Words(NOUNS, _both, need=2), "verb": Words(VERBS, _both, need=1)},
    corruptions={"number": ("SUBJECT",)},
    source="Linzen et al. 2016, arXiv 1611.01368; Marks et al. 2024, arXiv 2403.19647",
    circuit="number of the subject, moved to the end past features of the clause between (Pythia 70M, Gemma 2 2B)",
)
