"""Reduces a curve to fewer points that look the same.

The curve is split at the point that is furthest from the straight line between its ends, measured in the panel; then
the worst part is split in the same way (Ramer 1972; Douglas and Peucker 1973), until no deviation is visible.
"""

from dataclasses import replace
from heapq import heappop, heappush

import numpy as np
from jaxtyping import Float

from sparselens.analyses.figures.plot import Series

MOST = 400
VISIBLE = 1e-5  # share of the panel; smaller deviations are invisible. It leaves enough points for markers

Points = Float[np.ndarray, "point 2"]


def thinned(series: Series, log_x: bool, most: int = MOST) -> Series:
    """Reduce a joined series to at most `most` points; others are returned unchanged."""
    if not series.joined or len(series.x) <= most:
        return series
    points = np.stack([np.log(series.x) if log_x else np.array(series.x), series.y], 1)
    spread = np.ptp(points, axis=0)
    kept = corners(points / np.where(spread > 0, spread, 1), most)
    columns = {name: getattr(series, name) for name in ("x", "y", "low", "high", "labels")}
    return replace(series, **{name: tuple(c[i] for i in kept) for name, c in columns.items() if c})


def corners(points: Points, most: int) -> list[int]:
    """Indices of the points to keep: the first, the last, and those that the line needs in between."""
    kept = {0, len(points) - 1}
    parts = [(*_furthest(points, 0, len(points) - 1), 0, len(points) - 1)]
    while parts and len(kept) < most:
        distance, middle, start, end = heappop(parts)
        if -distance < VISIBLE:
            break
        kept.add(middle)
        for one, other in ((start, middle), (middle, end)):
            if other - one > 1:
                heappush(parts, (*_furthest(points, one, other), one, other))
    return sorted(kept)


def _furthest(points: Points, start: int, end: int) -> tuple[float, int]:
    """Negative distance from the chord (`heappop` returns the smallest first) and index of the furthest point."""
    way, off = points[end] - points[start], points[start + 1 : end] - points[start]
    length = float(np.hypot(*way))
    away = np.abs(way[0] * off[:, 1] - way[1] * off[:, 0]) / length if length else np.hypot(*off.T)
    return -float(away.max()), start + 1 + int(away.argmax())
