"""Multiple choice: which letter stands before the right answer? The answer itself is in the prompt.

    clean     The ball is red. What color is the ball? (A) blue (B) red (C) green (D) black Answer: (     -> "B"
    fact      The ball is green. What color is the ball? (A) blue (B) red (C) green (D) black Answer: (   -> "C"
    options   The ball is red. What color is the ball? (A) red (B) black (C) blue (D) green Answer: (
Each of the three other letters is a wrong answer.
Source: Lieberum et al. 2023, "Does Circuit Analysis Interpretability Scale?", arXiv 2307.09458. Known circuit
(Chinchilla 70B): content gatherers bring the right option to END, correct-letter heads copy its letter.
"""

from sparselens.prompts.draw import Draw
from sparselens.prompts.pairs import PromptPair, pair
from sparselens.prompts.task import Lists, Task

LETTERS = "ABCD"
OPTIONS = "(A) {A} (B) {B} (C) {C} (D) {D}"
# Stories with a fact and a question, by kind of fact. `who` is filled with one of NAMES.
STORIES = {
    "color": (
        "The {object} is {FACT}. What color is the {object}?",
        "{who} has a {FACT} {object}. The color of the {object} is",
        "{who} painted the {object} {FACT}. What color did {who} use?",
    ),
    "place": (
        "{who} went to the {FACT}. Where did {who} go?",
        "The {object} is in the {FACT}. Where is the {object}?",
        "{who} lost a {object} in the {FACT}. The place where {who} lost it is the",
    ),
    "animal": (
        "{who} has a {FACT}. What animal does {who} have?",
        "{who} saw a {FACT} in the park. What animal was in the park?",
        "The {FACT} took the {object}. Which animal took it?",
    ),
    "person": (
        "This morning {FACT} found the {object}. Who found it?",
        "The {object} belongs to {FACT}. Whose {object} is it?",
        "{who} gave the {object} to {FACT}. Who has the {object} now?",
    ),
}
ANSWERS = {
    "color": "red blue green black white yellow brown pink".split(),
    "place": "park house school garden forest kitchen store barn".split(),
    "animal": "dog cat bird frog bear cow fox pig".split(),
    "person": "Tom Lily Ben Anna Sam Sue Mia Max".split(),
}
NAMES = "Mary John Sara Peter Jane Tim".split()
OBJECTS = "ball box car hat cup toy bag book".split()
ENDINGS = (f" {OPTIONS} Answer: (", f" {OPTIONS} The right one is (")


def draw(random: Draw, words: Lists, corruption: str) -> PromptPair:
    """One pair; the corrupted prompt states another fact, or has the options in another order."""
    kind = random.choice(tuple(STORIES))
    options = random.sample(words[kind], 4)
    right, other = random.sample(LETTERS, 2)
    slots = dict(zip(LETTERS, options, strict=True))
    fact = {"FACT": slots[other]}
    turn = random.below(3) + 1  # no option keeps its letter
    turned = dict(zip(LETTERS, options[turn:] + options[:turn], strict=True))
    given = {"FACT": slots[right], "who": random.choice(words["name"]), "object": random.choice(words["object"])}
    return pair(
        random.choice(STORIES[kind]) + random.choice(ENDINGS),
        slots | given,
        fact if corruption == "fact" else turned,
        right,
        tuple(letter for letter in LETTERS if letter != right),
    )


multiple_choice = Task(
    "multiple_choice",
    "which letter stands before the right answer?",
    draw,
    words={**ANSWERS, "name": NAMES, "object": OBJECTS},
    corruptions={"fact": ("FACT",), "options": tuple(LETTERS)},
    source="Lieberum et al. 2023, arXiv 2307.09458",
    circuit="content gatherers and correct-letter heads (Chinchilla 70B)",
    version=2,
)
