"""The colours of all figures and pages; readers can tell them apart when colour-blind and in greyscale.

Models: dense is orange with open circles, sparse is dark blue with filled squares. Attention patterns are navy.
Signs: blue is positive, red with dashes is negative; dashes mean nothing else. Every colour is a pair, for light and
dark backgrounds.
"""

from typing import NamedTuple


class Ink(NamedTuple):
    """A colour for light and one for dark backgrounds, and a marker that identifies the series without colour."""

    light: str
    dark: str
    marker: str  # as matplotlib names it; "o" is drawn open, all others filled


MODELS = {
    "dense": Ink("#d05500", "#f0803c", "o"),
    "sparse": Ink("#004f8c", "#5aa9ea", "s"),
    "control": Ink("#2b8a6a", "#2ec49a", "^"),
    "baseline": Ink("#777777", "#b5b9bf", "D"),
}
SHARED = Ink("#8f959c", "#8b9198", "")  # edges that both models have
WEIGHT = Ink("#091d4c", "#a9c4ff", "")  # an attention weight of 1 in a pattern, as in `pattern_figure`
POSITIVE, NEGATIVE = Ink("#2166ac", "#67a9cf", ""), Ink("#b2182b", "#ef8a62", "")
INK, QUIET, RULE = "#222222", "#6a6f76", "#d5d8dc"
