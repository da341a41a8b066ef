"""Modular addition: the remainder of a sum.

    clean     (61+80) mod 113=    -> "28", not "5"
    second    (61+57) mod 113=
Half of the clean sums wrap around the modulus, half stay below it.
Source: Nanda et al. 2023, "Progress measures for grokking", arXiv 2301.05217, where the modulus is 113 and every number
is a token; here the modulus is part of the prompt, as text. Known circuit (one-layer transformer trained on the task):
the embedding represents numbers as sines and cosines of a few frequencies, attention and MLP turn them into those of
the sum.
"""

from sparselens.prompts.draw import Draw
from sparselens.prompts.pairs import PromptPair, pair
from sparselens.prompts.task import Lists, Task
from sparselens.prompts.words import Continuation, Words

TEMPLATES = ("({A}+{B}) mod {MODULUS}=", "({A}+{B})%{MODULUS}=", "modulo {MODULUS}: {A}+{B}=")
MODULI = (5, 7, 11, 13, 23, 59, 97, 113)  # primes, the last as in the paper


def _after_equals(residue: int) -> tuple[Continuation, ...]:
    return (("=", str(residue)),)


def draw(random: Draw, words: Lists, corruption: str) -> PromptPair:
    """One pair with different remainders; the corrupted prompt changes the second number or both.

    The remainders are drawn first, so each is right as often as it is wrong; then a coin decides whether the clean sum
    wraps around. No number is zero or equal to the remainder, so the answer cannot be copied.
    """
    modulus, residues = random.choice(_usable(words))
    right, wrong = random.sample(residues, 2)
    a = _addend(random, right, modulus, wraps=random.flip())
    fresh = _addend(random, wrong, modulus, wraps=random.flip())
    other = fresh if corruption == "both" else a
    slots = {"A": str(a), "B": str((right - a) % modulus), "MODULUS": str(modulus)}
    changes = {"A": str(other), "B": str((wrong - other) % modulus)}
    return pair(random.choice(TEMPLATES), slots, changes, str(right), str(wrong))


def _usable(words: Lists) -> list[tuple[int, list[int]]]:
    """Moduli with their remainders: from 2, the smallest sum, to modulus - 2, the largest that can wrap around."""
    found = [(modulus, [r for r in words["residue"] if 2 <= r <= modulus - 2]) for modulus in words["modulus"]]
    usable = [(modulus, residues) for modulus, residues in found if len(residues) >= 2]
    if not usable:
        raise ValueError("this tokenizer has no modulus with two remainders that are single tokens")
    return usable


def _addend(random: Draw, remainder: int, modulus: int, wraps: bool) -> int:
    """The first of two numbers with this remainder, whose sum is above the modulus if it wraps, else below it."""
    if wraps:
        return remainder + 1 + random.below(modulus - remainder - 1)
    return 1 + random.below(remainder - 1)


modular_addition = Task(
    "modular_addition",
    "the remainder of a sum",
    draw,
    words={"modulus": MODULI, "residue": Words(range(2, MODULI[-1] - 1), _after_equals)},
    corruptions={"second": ("B",), "both": ("A", "B")},
    source="Nanda et al. 2023, arXiv 2301.05217",
    circuit="Fourier features of the operands in the embedding, of the sum after the MLP (one-layer transformer)",
    version=2,
)
