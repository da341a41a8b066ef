"""Opposites: the word of opposite meaning.

    clean     The opposite of "hot" is       -> " cold", not " slow"
    other     The opposite of "fast" is
`opposites_quoted` ends with an opening quotation mark: The opposite of "hot" is "   -> "cold". `opposites_stories`:
    clean     Tom was happy, but Lily was not. She was     -> " sad", not " dirty"
Source: Draye et al. 2025, arXiv 2512.05865. No circuit is known.
"""

from collections.abc import Sequence
from functools import partial

from sparselens.prompts.draw import Draw
from sparselens.prompts.pairs import PromptPair, pair
from sparselens.prompts.task import Lists, Task
from sparselens.prompts.words import Continuation, Words, spaced

# Words are quoted: the question is about the word, whatever its part of speech.
ASKED = (
    'The opposite of "{WORD}" is',
    'The antonym of "{WORD}" is',
    'The word "{WORD}" is the opposite of',
    'What is the opposite of "{WORD}"? It is',
    'Question: What is the opposite of "{WORD}"? Answer:',
    'The opposite of the word "{WORD}" is the word',
    'The opposite of "{WORD}" in English is',
    'In the dictionary, the opposite of "{WORD}" is given as',
    'If you look up the antonym of "{WORD}", you find',
    'As every child knows, the opposite of "{WORD}" is',
    'I said "{WORD}", but he said the opposite:',
    'She wrote "{WORD}", but she meant the opposite:',
    'The teacher asked for the opposite of "{WORD}". The right answer was',
    'Here are two opposites: "{WORD}" and',
)
QUOTED = tuple(f'{template} "' for template in ASKED)
# Contrasts in children's stories, which models of a few million parameters can handle. About things:
STORIES = (
    "It was not {WORD}. It was",
    "Tom thought it was {WORD}, but it was not. It was",
    "The first one was {WORD}, and the other one was",
    "One of them was {WORD}. The other one was not. It was",
    "One day it was {WORD}, but the next day it was",
    "Mom said that it was {WORD}, but Dad said that it was",
    "It used to be {WORD}, but now it is",
    "It was never {WORD}. It was always",
    "First it was {WORD}, and then it was",
    "It looked {WORD}, but it was really",
    "Some of them were {WORD}, and some of them were",
    "Is it {WORD}? No, it is not. It is",
)
# About people:
PEOPLE = (
    "Tom was {WORD}, but Lily was not. She was",
    "Lily was {WORD}, but Tom was not. He was",
    "One of the boys was {WORD}, and the other boy was",
    "One of her friends was {WORD}, and the other one was",
    "Anna was not {WORD}. She was",
    "One of the sisters was {WORD}, and the other sister was",
    "My brother is {WORD}, but my sister is not. She is",
)
# Used in both directions. No two pairs have the same meaning (big, small and large, little), so one answer is right.
ADJECTIVES = """
hot cold, fast slow, happy sad, open closed, light dark, old young, good bad, rich poor, hard soft, wet dry, high low,
full empty, clean dirty, early late, strong weak, loud quiet, thick thin, wide narrow, deep shallow, black white,
beautiful ugly, rough smooth, sweet sour, tall short, asleep awake, alive dead, true false, near far, big small,
safe dangerous, sick healthy, cheap expensive, tight loose, smart stupid, polite rude, warm cool, huge tiny, kind cruel
"""
# Words of texts for adults.
LEARNED = """
guilty innocent, common rare, simple complex, modern ancient, positive negative, active passive, major minor,
temporary permanent, possible impossible, legal illegal, visible invisible, foreign domestic, rural urban, solid liquid,
northern southern, eastern western, inner outer, internal external, upper lower, maximum minimum, junior senior,
natural artificial, vertical horizontal, public private, male female
"""
OTHERS = """
up down, first last, left right, in out, on off, day night, love hate, win lose, buy sell, push pull, start stop,
war peace, winter summer, north south, east west, always never, more less, yes no, before after, over under, top bottom,
give take, remember forget, friend enemy, lost found, with without, laugh cry, future past, birth death,
success failure, victory defeat, question answer, increase decrease, accept reject, attack defend, build destroy,
import export, include exclude, appear disappear, rise fall, live die, heaven hell, inside outside, above below,
floor ceiling, everything nothing, everybody nobody, entrance exit, strength weakness, lead follow,
float sink, freeze melt, borrow lend, guest host, hero villain, forward backward, majority minority, sunrise sunset
"""
# Used only in this direction, since the answer has another opposite.
ONE_WAY_ADJECTIVES = "difficult easy, blunt sharp, stale fresh, curved straight, ashamed proud"
ONE_WAY = "from to, against for, here there, none all, this that, work play, shout whisper"
# Words said only of people (PERSONAL), and of both people and things (EITHER). The opposite of old is new for things,
# and an unsafe person is in danger rather than dangerous.
PERSONAL = frozenset(
    "happy sad rich poor asleep awake sick healthy smart stupid polite rude kind cruel ashamed old young".split()
)
EITHER = frozenset(
    """
good bad wet dry clean dirty early late strong weak loud quiet beautiful ugly tall short big small hot cold fast slow
""".split()
)
MANY = 20  # words needed: with fewer, hardly any two have the same number of tokens


def directed(both: str, one_way: str) -> tuple[tuple[str, str], ...]:
    """Every (word, opposite): the first list in both directions, the second in one."""
    pairs, others = ([tuple(two.split()) for two in words.split(",") if two.strip()] for words in (both, one_way))
    return tuple((a, b) for a, b in (*pairs, *((b, a) for a, b in pairs), *others))


def after_space(entry: tuple[str, str]) -> tuple[Continuation, ...]:
    """The opposite must be one token."""
    return spaced(entry[1])


def in_quotes(entry: tuple[str, str]) -> tuple[Continuation, ...]:
    """The opposite must be one token after an opening quotation mark."""
    return (('"', entry[1]),)


def draw(templates: Sequence[str], random: Draw, words: Lists, corruption: str) -> PromptPair:  # noqa: ARG001
    """One pair of words with different opposites; in stories, both words make sense in the template."""
    fitting: Sequence[str] = ()
    (word, right), (other, wrong) = ("", ""), ("", "")
    while not fitting:
        (word, right), (other, wrong) = random.sample(words["opposite"], 2)
        fitting = _fitting({word, other}) if templates is STORIES else templates
    template = random.choice(fitting)
    before = "" if template.endswith('"') else " "
    return pair(template, {"WORD": word}, {"WORD": other}, before + right, before + wrong)


def _fitting(words: set[str]) -> tuple[str, ...]:
    """Templates of stories in which all of these words make sense."""
    return (STORIES if not words & PERSONAL else ()) + (PEOPLE if words <= PERSONAL | EITHER else ())


def _task(name: str, description: str, templates: Sequence[str], words: Words, version: int = 2) -> Task:
    return Task(
        name,
        description,
        partial(draw, templates),
        words={"opposite": words},
        corruptions={"other": ("WORD",)},
        source="Draye et al. 2025, arXiv 2512.05865",
        version=version,
    )


ADJECTIVE_PAIRS = directed(ADJECTIVES, ONE_WAY_ADJECTIVES)
PAIRS = ADJECTIVE_PAIRS + directed(LEARNED, "") + directed(OTHERS, ONE_WAY)
opposites = _task("opposites", "the word of opposite meaning", ASKED, Words(PAIRS, after_space))
opposites_stories = _task(
    "opposites_stories",
    "contrasts in children's stories",
    STORIES,
    Words(ADJECTIVE_PAIRS, after_space, need=MANY),
    version=3,
)
opposites_quoted = _task(
    "opposites_quoted", "opposites, the answer in quotation marks", QUOTED, Words(PAIRS, in_quotes, need=MANY)
)
