"""Opposites: the word of contrary meaning.

    clean     The opposite of "hot" is       -> " cold", not " slow"
    other     The opposite of "fast" is
`opposites_quoted` asks with the answer in open quotes: The opposite of "hot" is "   -> "cold". `opposites_stories` is:
    clean     Tom was happy, but Lily was not. She was     -> " sad", not " dirty"
Source: Draye et al. 2025, arXiv 2512.05865. No circuit is known.
"""

from collections.abc import Sequence
from functools import partial

from sparselens.prompts.draw import Draw
from sparselens.prompts.pairs import PromptPair, pair
from sparselens.prompts.task import Lists, Task
from sparselens.prompts.words import Continuation, Words, spaced

TEMPLATES = (
    'The opposite of "{WORD}" is',
    "The opposite of {WORD} is",
    "One word is {WORD}. The opposite word is",
    "I said {WORD}, but he said the opposite:",
    "The contrary of {WORD} is",
)
QUOTED = ('The opposite of "{WORD}" is "', 'The contrary of "{WORD}" is "', 'The antonym of "{WORD}" is "')
# Contrast in children's stories, which models of a few million parameters can follow.
STORIES = (
    "It was not {WORD}. It was",
    "Tom was {WORD}, but Lily was not. She was",
    "Tom thought it was {WORD}, but it was not. It was",
    "The first one was {WORD}, and the other one was",
    "One of them was {WORD}. The other one was not. It was",
    "One day it was {WORD}, but the next day it was",
)
# Both directions are asked. No two pairs are about the same thing (big, little and large, small): one answer is right.
ADJECTIVES = """
hot cold, fast slow, happy sad, open closed, light dark, old young, good bad, rich poor, hard soft, wet dry, high low,
full empty, clean dirty, early late, strong weak, loud quiet, thick thin, wide narrow, deep shallow, black white,
beautiful ugly, brave afraid, smooth rough, sweet sour, tall short, asleep awake, alive dead, true false, near far
"""
OTHERS = """
up down, first last, left right, in out, on off, day night, love hate, win lose, buy sell, push pull, start stop,
war peace, winter summer, north south, east west, public private, male female, always never, more less, yes no,
before after, over under, top bottom, give take, remember forget, friend enemy, lost found
"""
# Asked in this direction only: the answer has another opposite, or its own is asked about above.
ONE_WAY_ADJECTIVES = """
small big, big little, guilty innocent, safe dangerous, cheap expensive, easy difficult, tight loose,
sick healthy
"""
ONE_WAY = "from to, without with, against for, here there, none all, this that, work play, laugh cry, future past"
MANY = 20  # words: with fewer, next to no pairs line up


def directed(both: str, one_way: str) -> tuple[tuple[str, str], ...]:
    """Every word with its opposite."""
    pairs, others = ([tuple(two.split()) for two in words.split(",")] for words in (both, one_way))
    return tuple((a, b) for a, b in (*pairs, *((b, a) for a, b in pairs), *others))


def after_space(entry: tuple[str, str]) -> tuple[Continuation, ...]:
    """The opposite must be one token."""
    return spaced(entry[1])


def in_quotes(entry: tuple[str, str]) -> tuple[Continuation, ...]:
    """The opposite must be one token after an opening quotation mark."""
    return (('"', entry[1]),)


def draw(templates: Sequence[str], random: Draw, words: Lists, corruption: str) -> PromptPair:  # noqa: ARG001
    """One pair of words that do not share their opposite."""
    (word, right), (other, wrong) = random.sample(words["opposite"], 2)
    template = random.choice(templates)
    before = "" if template.endswith('"') else " "
    return pair(template, {"WORD": word}, {"WORD": other}, before + right, before + wrong)


def _task(name: str, description: str, templates: Sequence[str], words: Words) -> Task:
    return Task(
        name,
        description,
        partial(draw, templates),
        words={"opposite": words},
        corruptions={"other": ("WORD",)},
        source="Draye et al. 2025, arXiv 2512.05865",
    )


ADJECTIVE_PAIRS = directed(ADJECTIVES, ONE_WAY_ADJECTIVES)
PAIRS = ADJECTIVE_PAIRS + directed(OTHERS, ONE_WAY)
opposites = _task("opposites", "the word of contrary meaning", TEMPLATES, Words(PAIRS, after_space))
opposites_stories = _task(
    "opposites_stories", "contrasts in children's stories", STORIES, Words(ADJECTIVE_PAIRS, after_space, need=MANY)
)
opposites_quoted = _task(
    "opposites_quoted", "opposites, the answer in quotation marks", QUOTED, Words(PAIRS, in_quotes, need=MANY)
)
