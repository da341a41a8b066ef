"""Fewer points that draw the same curve.

The x axis is cut into equal bins as it is drawn, linear or log. Every bin keeps its first and last point, its lowest
and its highest (the M4 rule of Jugel and others, 2014): jumps and spikes stay, and so do the two ends of the curve.
"""

from dataclasses import replace

import numpy as np

from sparselens.analyses.plot import Series

MOST = 400


def thinned(series: Series, log_x: bool, most: int = MOST) -> Series:
    """A joined series of at most `most` points; one that has no more, or is not joined, comes back as it is."""
    if not series.joined or len(series.x) <= most:
        return series
    x = np.log(series.x) if log_x else np.asarray(series.x)
    y = np.asarray(series.y)
    n_bins = most // 4
    bins = np.minimum(n_bins * (x - x.min()) / max(float(np.ptp(x)), 1e-300), n_bins - 1).astype(int)
    kept: set[int] = set()
    for one in np.unique(bins):
        inside = np.flatnonzero(bins == one)
        kept |= {int(inside[0]), int(inside[-1]), int(inside[y[inside].argmin()]), int(inside[y[inside].argmax()])}
    columns = {name: getattr(series, name) for name in ("x", "y", "low", "high", "labels")}
    return replace(series, **{name: tuple(c[i] for i in sorted(kept)) for name, c in columns.items() if c})
