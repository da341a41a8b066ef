"""Hypernymy: what kind of thing is it?

    clean     A tulip is a kind of       -> " flower", not " tool"
    other     A hammer is a kind of
Source: similar prompts for GPT-2 in Hanna et al. 2024, "Have Faith in Faithfulness", arXiv 2403.17806. The circuits
found there come from edge scores alone; no head-by-head explanation is known.
"""

from sparselens.prompts.draw import Draw
from sparselens.prompts.pairs import PromptPair, pair
from sparselens.prompts.task import Lists, Task
from sparselens.prompts.words import Words, spaced
from sparselens.tasks.kinds import usable_kinds

TEMPLATES = (
    "A {THING} is a kind of",
    "A {THING} is a type of",
    "A {THING} is one kind of",
    "The {THING} is a kind of",
    "As everyone knows, a {THING} is a kind of",
    "I know that a {THING} is a kind of",
    "Do you know what a {THING} is? It is a kind of",
    "Question: What is a {THING}? Answer: It is a kind of",
    "My teacher says that a {THING} is a kind of",
    "In the dictionary it says that a {THING} is a kind of",
    'The word "{THING}" means a kind of',
    "We learned today that a {THING} is a type of",
    "If you have never seen a {THING}, it is a kind of",
    "There was a picture of a {THING}, which is a kind of",
)
# No class contains another, and every member begins with a consonant, so that "A {THING}" is always grammatical.
CLASSES = {
    "bird": "robin parrot crow pigeon duck swan goose hawk sparrow falcon penguin turkey chicken raven dove seagull",
    "fish": "salmon trout tuna shark cod carp goldfish herring",
    "flower": "rose tulip daisy lily sunflower violet lotus",
    "tree": "pine maple willow birch cedar palm",
    "fruit": "banana grape strawberry melon blueberry pineapple raspberry lemon peach pear cherry mango plum",
    "vegetable": "carrot potato cabbage radish cauliflower beet turnip cucumber",
    "insect": "bee beetle fly butterfly wasp mosquito moth cricket ladybug",
    "tool": "hammer saw wrench shovel rake chisel drill screwdriver",
    "toy": "doll teddy puppet yo-yo",
    "dog": "poodle terrier bulldog beagle hound",
    "coin": "penny dime nickel",
    "bag": "purse backpack suitcase handbag pouch",
    "weapon": "sword spear rifle pistol cannon gun",
    "instrument": "piano guitar violin flute trumpet drum harp",
    "hat": "beret helmet cap bonnet",
    "boat": "canoe kayak ferry yacht raft",
    "shoe": "sandal slipper boot sneaker",
    "building": "castle school church hospital library museum hotel",
    "snake": "python cobra viper rattlesnake",
    "vehicle": "car truck bus van taxi motorcycle tractor",
    "dance": "waltz tango polka",
    "gem": "diamond ruby pearl sapphire",
}


def draw(random: Draw, words: Lists, corruption: str) -> PromptPair:  # noqa: ARG001 - of type DrawPair
    """One pair with members of two classes."""
    (right, members), (wrong, others) = random.sample(usable_kinds(words, entries=1, kinds=2), 2)
    thing, other = random.choice(members), random.choice(others)
    return pair(random.choice(TEMPLATES), {"THING": thing}, {"THING": other}, f" {right}", f" {wrong}")


def _members(name: str, members: str) -> Words:
    """The members that are one token; none if the name of the class is not."""
    return Words(members.split(), lambda member: (*spaced(name), *spaced(member)), need=0)


hypernymy = Task(
    "hypernymy",
    "what kind of thing is it?",
    draw,
    words={name: _members(name, members) for name, members in CLASSES.items()},
    corruptions={"other": ("THING",)},
    source="after Hanna et al. 2024, arXiv 2403.17806",
    version=2,
)
