"""Finds places for texts inside a panel that do not cover curves, bands, markers or other texts.

Everything drawn becomes a cloud of pixels. Notes go into the first corner without any; if there is none, the y axis is
extended until there is one. Labels of points try positions around their point, nearest first.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from sparselens.analyses.figures.paper import text_size
from sparselens.analyses.figures.plot import Plot, Series

Pixels = Float[np.ndarray, "pixel 2"]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1

MARKER, GAP = 2.6, 4.0  # points: half a marker with its edge; space between an axis and a note
CORNERS = ((0, 1), (1, 1), (1, 0), (0, 0))  # (right, top), each 0 or 1


def cloud(axes: Any, plot: Plot, series: Sequence[Series]) -> Pixels:
    """Pixels of all curves, bands, intervals and markers of a panel, about a point apart or closer."""
    parts = [part for one in series for part in _pixels(axes, one)]
    low, high = axes.get_xlim()
    middle = np.geomspace(low, high, 200) if plot.log_x else np.linspace(low, high, 200)
    parts += [axes.transData.transform(np.stack([middle, np.full(200, guide)], 1)) for guide in plot.guides]
    return np.concatenate(parts)


def _pixels(axes: Any, series: Series) -> Iterator[Pixels]:
    point = axes.get_figure().dpi / 72
    lines = {"y": np.array(series.y), "x": np.array(series.x)}
    middle = axes.transData.transform(np.stack([lines["x"], lines["y"]], 1))
    corners = np.array([(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)]) * MARKER * point
    if len(series.x) <= 60:
        yield (middle[:, None] + corners).reshape(-1, 2)
    shares = np.linspace(0, 1, 9) if series.low else ()
    low, high = np.array(series.low), np.array(series.high)
    layers = [middle, *(axes.transData.transform(np.stack([lines["x"], low + t * (high - low)], 1)) for t in shares)]
    for layer in layers:
        yield _dense(layer, point) if series.joined else layer


def _dense(line: Pixels, step: float) -> Float[np.ndarray, "denser 2"]:
    pieces = [np.linspace(start, end, int(np.hypot(*(end - start)) / step) + 2) for start, end in pairwise(line)]
    return np.concatenate(pieces) if pieces else line


def overlap(one: Box, other: Box) -> bool:
    """Whether two boxes overlap."""
    wide, high = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    return bool(wide > 0 and high > 0)


def _inside(box: Box, taken: Pixels) -> int:
    x, y = taken.T
    return int(np.count_nonzero((x > box[0]) & (x < box[2]) & (y > box[1]) & (y < box[3])))


def corner_box(axes: Any, size: tuple[float, float], corner: tuple[int, int]) -> Box:
    """A box of that size in a corner of the panel."""
    frame, gap = axes.get_window_extent(), GAP * axes.get_figure().dpi / 72
    x = frame.x1 - gap - size[0] if corner[0] else frame.x0 + gap
    y = frame.y1 - gap - size[1] if corner[1] else frame.y0 + gap
    return x, y, x + size[0], y + size[1]


def place_note(axes: Any, plot: Plot, series: Sequence[Series], size: tuple[float, float]) -> tuple[int, int]:
    """A free corner for a note; extends the y axis if there is none."""
    low, high = axes.get_ylim()
    for extra in np.linspace(0, 1.5, 16):
        axes.set_ylim(low, high + extra * (high - low))
        taken = cloud(axes, plot, series)
        for corner in CORNERS:
            if not _inside(_wider(corner_box(axes, size, corner), axes, 2.0), taken):
                return corner
    return CORNERS[0]  # above all curves, though perhaps over a guide line


def _wider(box: Box, axes: Any, points: float) -> Box:
    margin = points * axes.get_figure().dpi / 72
    return box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin


class Label(NamedTuple):
    """The label of a point."""

    text: str
    at: tuple[float, float]  # data coordinates
    colour: str


def place_labels(axes: Any, labels: Sequence[Label], taken: Pixels, words: Sequence[Box]) -> list[tuple[Label, Box]]:
    """A box near its point for each label; labels without room because of other texts are left out.

    Labels are placed greedily, in the given and in reverse order; the result that covers less is returned.
    """
    tried = [_in_turn(axes, order, taken, words) for order in (labels, labels[::-1])]
    return [
        (label, box) for label, box, _ in min(tried, key=lambda one: sum(harm for *_, harm in one) - 1000 * len(one))
    ]


def _in_turn(axes: Any, labels: Sequence[Label], taken: Pixels, words: Sequence[Box]) -> list[tuple[Label, Box, int]]:
    points = axes.transData.transform([label.at for label in labels]) if labels else np.empty((0, 2))
    placed: list[tuple[Label, Box, int]] = []
    for label, at in zip(labels, points, strict=True):
        others = points[(points != at).any(1)]
        room = [
            (harm, box)
            for box in _around(at, text_size(axes, label.text), axes)
            if not any(overlap(box, word) for word in (*words, *(box for _, box, _ in placed)))
            # being mistaken for another point's label is about as bad as being crossed by a curve
            for harm in [_inside(box, taken) + 12 * _inside(_wider(box, axes, 4.0), others)]
        ]
        if room:
            harm, box = min(room, key=lambda one: one[0])  # the nearest of the least harmful boxes
            placed.append((label, box, harm))
    return placed


def _around(at: Float[np.ndarray, " 2"], size: tuple[float, float], axes: Any) -> Iterator[Box]:
    """Boxes around a point and inside the panel, nearest first; right and above are preferred."""
    half, frame = np.array(size) / 2, axes.get_window_extent()
    for distance in (4, 6, 8, 10, 13):
        for turn in (0, 1, 2, -1, 3, 4, -2, -3):  # eighths of a full turn
            way = np.array([np.cos(turn * np.pi / 4), np.sin(turn * np.pi / 4)])
            middle = at + way * distance * axes.get_figure().dpi / 72 + np.sign(np.round(way, 9)) * half
            low, high = middle - half, middle + half
            if np.all(low > frame.min) and np.all(high < frame.max):
                yield (*low, *high)
