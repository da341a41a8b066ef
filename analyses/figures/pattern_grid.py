"""Layout and drawing of pattern figures: squares in a grid, and the texts around them.

Bands are stacked vertically; a band has rows and columns of squares, all with the same tokens. Everything is in points,
y downward. White is a weight of zero, and the colour scale is perceptually uniform.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import Any

import numpy as np
from jaxtyping import Float

from sparselens.analyses.figures.palette import INK, RULE
from sparselens.analyses.figures.paper import DPI, SIZE, literal, measured_figure, text_size

Pattern = Float[np.ndarray, "query_pos key_pos"]
Patterns = Sequence[Float[np.ndarray, "layer head query_pos key_pos"]]  # one per model

LEGIBLE = 6.0  # smallest distance between tokens, in points
LONGEST = 14  # characters shown of a token
TALLEST = 8.5 * 72  # points: one page
WIDEST = 6  # squares per band of chosen heads
MARGIN, LINE, FOOT = 3.0, 9.0, 24.0
DARK = (0.25, -0.01, -0.09)  # navy, in Oklab


@dataclass(frozen=True, eq=False)
class Band:
    """Rows of squares, with the names of rows and columns."""

    squares: Sequence[Sequence[Pattern]]
    rows: Sequence[str]
    columns: Sequence[str]
    blocks: Sequence[str] = ("",)  # names of groups of equally many columns

    def column_x(self, size: float, gap: float) -> Float[np.ndarray, " column"]:
        """Left edges of the columns, relative to the first."""
        place = np.arange(len(self.columns))
        return place * (size + gap) + place // (len(self.columns) // len(self.blocks)) * self.between(gap)

    def between(self, gap: float) -> float:
        """Extra space between two blocks."""
        return 4 + 2 * gap


def all_heads(patterns: Patterns, names: tuple[str, ...]) -> list[Band]:
    """All heads of all models, side by side, first layer at the bottom."""
    n_layers, n_heads = patterns[0].shape[:2]
    upward = range(n_layers)[::-1]
    squares = [[model[layer, head] for model in patterns for head in range(n_heads)] for layer in upward]
    rows = [f"layer {layer}" for layer in upward]
    return [Band(squares, rows, [f"head {head}" for _ in names for head in range(n_heads)], names)]


def chosen_heads(patterns: Patterns, heads: Sequence[tuple[int, int]], names: tuple[str, ...]) -> list[Band]:
    """Chosen heads, one model above the other, in bands of at most `WIDEST`."""
    n_bands = -(-len(heads) // WIDEST)
    per_band = -(-len(heads) // n_bands)
    return [
        Band([[model[head] for head in some] for model in patterns], names, [f"a{layer}.h{h}" for layer, h in some])
        for some in (heads[start : start + per_band] for start in range(0, len(heads), per_band))
    ]


def draw_bands(bands: Sequence[Band], tokens: Sequence[str], width: float) -> Any:
    """Draw the bands on a matplotlib Figure, `width` inches wide."""
    figure = measured_figure(width, 1.0)
    figure.suppressComposite = True  # compositing makes a page-sized image of each square: 10 s for 540
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    sheet = _Sheet(axes, [_short(token) for token in tokens], bands, 72 * width)
    y = MARGIN
    for band in bands:
        y = sheet.draw_band(band, y)
    height = sheet.draw_foot(y)
    figure.set_size_inches(width, height / 72)
    axes.set(xlim=(0, 72 * width), ylim=(height, 0))
    return figure


class _Sheet:
    """The axes and measurements used while bands are drawn."""

    def __init__(self, axes: Any, tokens: Sequence[str], bands: Sequence[Band], width: float) -> None:
        self.axes, self.tokens, self.width = axes, tokens, width
        self.what = "layers by heads, each " if any(bands[0].blocks) else ""
        points = 72 / DPI
        longest = points * max(text_size(axes, token)[0] for token in tokens)
        number = points * text_size(axes, str(len(tokens)))[0]
        for self.marks, room in ((dict(enumerate(tokens)), longest + 3), ({}, number + 4), ({}, 0.0)):
            self.left, self.below = MARGIN + LINE + 2 + room, room
            self.size, self.gap = _square(bands, width - self.left - MARGIN, self.below)
            pitch = self.size / len(tokens)
            if self.marks and pitch >= LEGIBLE:
                break
            if not self.marks and room and self.size >= 45:
                self.marks = _numbers(len(tokens), pitch)
                break
        self.mark_size = min(SIZE, 0.95 * pitch) if len(self.marks) == len(tokens) else SIZE

    def draw_band(self, band: Band, y: float) -> float:
        """Draw a band from y downward; returns its lower end."""
        columns = list(self.left + band.column_x(self.size, self.gap))
        if any(band.blocks):
            for x, name in zip(columns[:: len(columns) // len(band.blocks)], band.blocks, strict=True):
                self.write(x, y + LINE / 2, literal(name), ha="left", weight="bold")
            y += LINE + 1
        for x, name in zip(columns, self._fitting(band.columns, len(columns) // len(band.blocks)), strict=True):
            self.write(x + self.size / 2, y + LINE / 2, name, ha="center")
        y += LINE + 2
        for row, name in zip(band.squares, band.rows, strict=True):
            self._draw_row(row, name, columns, y)
            y += self.size + self.gap
        y -= self.gap
        for place, mark in self.marks.items():
            for x in columns:
                at = x + (place + 0.5) * self.size / len(self.tokens)
                self.write(at, y + 2, mark, ha="center", va="top", rotation=90, size=self.mark_size)
        return y + self.below + (LINE if self.marks else 3)

    def draw_foot(self, y: float) -> float:
        """Write what the squares show next to the colour scale, on two lines if needed; returns the lower end."""
        from matplotlib.image import AxesImage

        n = len(self.tokens)
        text, scale, wide = f"{self.what}{n} queries by {n} keys", "attention weight 0", min(60.0, self.width / 5)
        right, middle = self.width - MARGIN - 8, y + LINE / 2
        self.write(self.left, middle, text, ha="left")
        if self.left + self._wide(text) + 8 > right - wide - 3 - self._wide(scale):
            middle += LINE + 1
        ramp = AxesImage(self.axes, cmap=colours(), extent=(right - wide, right, middle + 3, middle - 3))
        ramp.set(data=np.linspace(0, 1, 256)[None], clim=(0, 1), gid="scale")
        self.axes.add_image(ramp)
        self._frame([(right - wide, middle - 3, wide, 6.0)])
        self.write(right + 3, middle, "1", ha="left")
        self.write(right - wide - 3, middle, scale, ha="right")
        return middle + LINE / 2 + MARGIN

    def write(self, x: float, y: float, text: str, va: str = "center", size: float = SIZE, **look: Any) -> None:
        """Write a text at (x, y)."""
        self.axes.text(x, y, text, va=va, size=size, color=INK, parse_math=False, **look)

    def _wide(self, text: str) -> float:
        return 72 / DPI * text_size(self.axes, text)[0]

    def _fitting(self, names: Sequence[str], block: int) -> list[str]:
        """The names if they fit, else their numbers only, else every second (third, ...) number."""
        names = [literal(name) for name in names]
        pitch = self.size + self.gap
        if max(map(self._wide, names)) + 2 <= pitch:
            return names
        names = [name.split()[-1] for name in names]
        step = ceil((max(map(self._wide, names)) + 2) / pitch)
        return [name if place % block % step == 0 else "" for place, name in enumerate(names)]

    def _draw_row(self, row: Sequence[Pattern], name: str, columns: Sequence[float], y: float) -> None:
        from matplotlib.image import AxesImage

        upright = self._wide(literal(name)) < self.size + self.gap
        shown = literal(name) if upright else literal(name).split()[-1]
        at = MARGIN + LINE / 2, y + self.size / 2
        self.write(*at, shown, ha="center", rotation=90 if upright else 0)
        for x, pattern in zip(columns, row, strict=True):
            image = AxesImage(
                self.axes, cmap=colours(), extent=(x, x + self.size, y + self.size, y), origin="upper",
                interpolation="nearest",
            )  # fmt: skip
            image.set(data=pattern, clim=(0, 1), gid="pattern")
            self.axes.add_image(image)
        self._frame([(x, y, self.size, self.size) for x in columns])
        for place, mark in self.marks.items():
            at = y + (place + 0.5) * self.size / len(self.tokens)
            self.write(self.left - 2, at, mark, ha="right", va="center_baseline", size=self.mark_size)

    def _frame(self, boxes: Sequence[tuple[float, float, float, float]]) -> None:
        from matplotlib.collections import PatchCollection
        from matplotlib.patches import Rectangle

        edge = 0.6  # drawn around a square, so that it does not cover the outer rows and columns
        frames = [Rectangle((x - edge / 2, y - edge / 2), wide + edge, high + edge) for x, y, wide, high in boxes]
        self.axes.add_collection(PatchCollection(frames, fc="none", ec=RULE, lw=edge), autolim=False)


def _square(bands: Sequence[Band], room: float, below: float) -> tuple[float, float]:
    """The largest squares, and the gap between them, with which the bands fit the width and one page."""
    band = bands[0]
    n_columns, n_rows = len(band.columns), sum(len(band.rows) for band in bands)
    gap = 2.0 if n_columns > 12 else 5.0
    wide = (room - (n_columns - 1) * gap - (len(band.blocks) - 1) * band.between(gap)) / n_columns
    high = (TALLEST - len(bands) * (below + 3 * LINE + 3) - FOOT) / n_rows - gap
    size = min(wide, high)
    if size < 4:
        raise ValueError(
            f"{n_columns} x {n_rows} patterns would be {size:.1f} points wide: want more width or fewer heads"
        )
    return size, gap


def _numbers(n: int, pitch: float) -> dict[int, str]:
    """Numbers of positions in round steps, as many as fit."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if step * pitch >= 12 or step == 1000)
    return {place: str(place) for place in range(0, n, step)}


def _short(token: str) -> str:
    text = literal(token)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


@cache
def colours() -> Any:
    """White to navy on a straight line in Oklab (Ottosson 2020), where distances match perceived differences."""
    from matplotlib.colors import ListedColormap

    steps = np.linspace((1.0, 0.0, 0.0), DARK, 256)
    to_cones = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
    )
    to_light = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    light = np.clip((steps @ to_cones.T) ** 3 @ to_light.T, 0, 1)
    return ListedColormap(np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055), "weight")
