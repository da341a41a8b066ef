"""Makes an SVG drawn by matplotlib follow the reader's light or dark mode, by turning its colours into CSS variables.

Each colour of the palette has a counterpart for dark mode; images, which are colour scales, are inverted.
"""

import re

from sparselens.analyses.figures.palette import INK, MODELS, NEGATIVE, POSITIVE, QUIET, RULE, SHARED
from sparselens.analyses.figures.token_layout import COLOURS

_PLAIN = {
    INK: "#e6e7e9", QUIET: "#9aa0a8", RULE: "#3a3e44", "#000000": "#e6e7e9", "#ffffff": "#16181b", "#444444": "#b5b9bf",
    "#c4c7cb": "#565b62", "#e4e6e9": "#33373d", "#f3ead2": "#453d26", "#cccccc": "#3a3e44",
}  # fmt: skip
DARK = {
    **_PLAIN,
    **{ink.light: ink.dark for ink in (*MODELS.values(), POSITIVE, NEGATIVE, SHARED)},
    **dict(COLOURS),
}


def for_both_papers(svg: str) -> str:
    """The SVG with a style sheet that gives each known colour its counterpart in dark mode."""
    used = sorted({colour for colour in re.findall(r": (#[0-9a-f]{6})\b", svg) if colour in DARK})
    light = "".join(f"--c{colour[1:]}:{colour};" for colour in used)
    dark = "".join(f"--c{colour[1:]}:{DARK[colour]};" for colour in used)
    scale = "image{filter:invert(1) hue-rotate(180deg)}"  # in a colour scale, zero is the background colour
    sheet = f"<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}{scale}}}</style>"
    named = re.sub(r": (#[0-9a-f]{6})\b", lambda found: _variable(found[1]), svg)
    return re.sub(r"(<svg\b[^>]*>)", lambda start: start[1] + sheet, named, count=1)


def _variable(colour: str) -> str:
    return f": var(--c{colour[1:]})" if colour in DARK else f": {colour}"
