'''Docstring completion: which argument does a docstring describe next?

    clean       def load(self, size, colour, path, limit):
                    """first value

                    :param size: old number
                    :param colour: short line
                    :param                            -> " path", not " size", " colour", " limit"
    random_doc  the same with other names in the docstring; random_def: with other names in the definition
Source: Heimersheim and Janiak 2023, "A circuit for Python docstrings in a 4-layer attention-only transformer". Known
circuit there: heads in layers 1 and 2 find C by its position after B, two heads in layer 3 copy it to END.
'''

from sparselens.prompts.draw import Draw
from sparselens.prompts.pairs import PromptPair, pair
from sparselens.prompts.task import Lists, Task
from sparselens.prompts.words import Words, spaced

# The marks before an argument's name in Sphinx and Epydoc.
MARKS = (":param", "@param")
TEMPLATE = '''def {function}(self, {A_DEF}, {B_DEF}, {C_DEF}, {D_DEF}):
    """{summary}

    mark {A_DOC}: {about_a}
    mark {B_DOC}: {about_b}
    mark'''
TEMPLATES = tuple(TEMPLATE.replace("mark", mark) for mark in MARKS)
FUNCTIONS = tuple("load save update open close find check build parse send merge draw reset count sort apply".split())
ARGUMENTS = tuple(
    """
day friend mom play time little happy big name size path file limit key value index list node data user group
image table date level style code color page title field width height depth start end length port host model state
event mode type input output text string word line point area rate price weight child parent order rank
""".split()
)
# Disjoint from ARGUMENTS, so that an argument's name occurs nowhere else.
ADJECTIVES = tuple("first last old new short long small large simple full open empty common hidden local plain".split())
NOUNS = tuple("number part thing place item result step case sum share piece set room board fact note sign row".split())
DEFINED, DOCUMENTED = ("A_DEF", "B_DEF", "C_DEF", "D_DEF"), ("A_DOC", "B_DOC")


def draw(random: Draw, words: Lists, corruption: str) -> PromptPair:
    """One pair. With the same seed, every corruption has the same clean prompts."""
    *names, other_a, other_b, other_c, other_d = random.sample(words["argument"], 8)
    others = (other_a, other_b, other_c, other_d)
    slots = {**dict(zip(DEFINED, names, strict=True)), **dict(zip(DOCUMENTED, names, strict=False))}
    about = {slot: _phrase(random) for slot in ("summary", "about_a", "about_b")}
    changes = dict(zip(CORRUPTIONS[corruption], others, strict=False))
    a, b, c, d = (f" {name}" for name in names)
    slots |= {**about, "function": random.choice(FUNCTIONS)}
    return pair(random.choice(TEMPLATES), slots, changes, c, (a, b, d))


def _phrase(random: Draw) -> str:
    return f"{random.choice(ADJECTIVES)} {random.choice(NOUNS)}"


CORRUPTIONS = {"random_doc": DOCUMENTED, "random_def": DEFINED}

docstring = Task(
    "docstring",
    "which argument does a docstring describe next?",
    draw,
    words={"argument": Words(ARGUMENTS, spaced, need=8)},
    corruptions=CORRUPTIONS,
    source="Heimersheim and Janiak 2023, A circuit for Python docstrings in a 4-layer attention-only transformer",
    circuit="heads that find the argument by its place after the last one described, then heads that copy it",
)
