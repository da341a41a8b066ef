"""Colored objects: what color is the object in question?

    clean         Mom bought a red pen, a blue cup and a green hat. The cup is     -> " blue", not " red", " green"
    other_object  Mom bought a red pen, a blue cup and a green hat. The hat is
    other_color   Mom bought a red pen, a pink cup and a green hat. The cup is
Source: Merullo et al. 2023, "Circuit component reuse across tasks in transformer language models", arXiv 2310.08744,
after BIG-bench. Known circuit (GPT-2 medium): duplicate-token and induction heads mark the object in question, content
gatherers bring it to END, mover heads copy its color. It largely reuses the circuit of indirect object identification.
"""

from itertools import permutations

from sparselens.prompts.draw import Draw
from sparselens.prompts.pairs import PromptPair, pair
from sparselens.prompts.task import Lists, Task
from sparselens.prompts.words import Words, spaced

# The places 1, 2, 3 are filled in all orders with the object in question (OBJECT, COLOR) and two others.
PLACED = (
    "On the table there is {1}, {2} and {3}. The {ASKED} is",
    "In the box there was {1}, {2} and {3}. The color of the {ASKED} was",
    "Mom bought {1}, {2} and {3}. The {ASKED} is",
    "There are three things on the floor: {1}, {2} and {3}. What color is the {ASKED}? It is",
    "I have {1}, {2} and {3}. My {ASKED} is",
    "Once upon a time, there was {1}, {2} and {3}. The color of the {ASKED} was",
    "Question: My bag holds {1}, {2} and {3}. What is the color of the {ASKED}? Answer:",
    "She saw {1}, {2} and {3}. The {ASKED} was",
)
THINGS = ("a {COLOR} {OBJECT}", "a {COLOR2} {OBJECT2}", "a {COLOR3} {OBJECT3}")
SLOTS = ("OBJECT", "OBJECT2", "OBJECT3", "COLOR", "COLOR2", "COLOR3")
TEMPLATES = tuple(
    template.replace("{1}", first).replace("{2}", second).replace("{3}", third)
    for template in PLACED
    for first, second, third in permutations(THINGS)
)
COLORS = tuple("red blue green yellow pink brown black white purple gray".split())
OBJECTS = tuple(
    """
pen cup hat ball book toy car box cake doll bag shirt chair plate spoon bottle ring coat shoe sock pencil brush
basket lamp clock key bowl ribbon button phone blanket towel
""".split()
)


def draw(random: Draw, words: Lists, corruption: str) -> PromptPair:
    """One pair; each of the three places is asked about equally often. The color of `other_color` is always wrong."""
    objects, (*colors, new) = random.sample(words["object"], 3), random.sample(words["color"], 4)
    slots = dict(zip(SLOTS, (*objects, *colors), strict=True))
    changes = {"ASKED": objects[1]} if corruption == "other_object" else {"COLOR": new}
    right, *wrong = (f" {color}" for color in (*colors, *([new] if corruption == "other_color" else [])))
    return pair(random.choice(TEMPLATES), {**slots, "ASKED": objects[0]}, changes, right, tuple(wrong))


colored_objects = Task(
    "colored_objects",
    "what color is the object asked about?",
    draw,
    words={"object": Words(OBJECTS, spaced, need=3), "color": Words(COLORS, spaced, need=4)},
    corruptions={"other_object": ("ASKED",), "other_color": ("COLOR",)},
    source="Merullo et al. 2023, arXiv 2310.08744",
    circuit="duplicate-token, induction, content-gatherer and mover heads, shared with ioi (GPT-2 medium)",
)
