"""Resampling for confidence intervals: ratios of sums with their jackknife error, and scipy's BCa bootstrap."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

RESAMPLES = 2000
_AT_ONCE = 2**22  # numbers in memory at once


def ratio_and_error(tops: np.ndarray, bottoms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ratio of sums of every row, and its jackknife standard error, from the changes when each group is left out."""
    n, below = tops.shape[1], bottoms.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = tops.sum(-1) / below
        changes = (tops - ratios[:, None] * bottoms) / (below[:, None] - bottoms)
        return ratios, np.sqrt((changes**2).sum(-1) * (n - 1) / n)


def resampled_ratios(tops: np.ndarray, bottoms: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """Ratios and standard errors of RESAMPLES draws of groups, and whether all denominators have the same sign."""
    generator, n = np.random.default_rng(seed), len(tops)
    per_chunk = max(1, _AT_ONCE // n)
    ratios, errors, signs = list[np.ndarray](), list[np.ndarray](), set[float]()
    for start in range(0, RESAMPLES, per_chunk):
        chosen = generator.integers(n, size=(min(per_chunk, RESAMPLES - start), n))
        ratio, error = ratio_and_error(tops[chosen], bottoms[chosen])
        ratios.append(ratio)
        errors.append(error)
        signs |= set(np.sign(bottoms[chosen].sum(-1)).tolist())
    return np.concatenate(ratios), np.concatenate(errors), signs in ({1.0}, {-1.0})


def bca(
    statistic: Callable[..., np.ndarray], data: tuple[np.ndarray, ...], level: float, seed: int, resamples: int
) -> tuple[np.ndarray, tuple[float, float]]:
    """All resampled values, and the BCa interval (Efron 1987), or the percentile interval where BCa is undefined."""
    from scipy import stats

    options: Any = {"paired": True, "vectorized": True, "confidence_level": level, "n_resamples": resamples}
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore")  # about values that are all equal, which is no error here
        generator, batch = np.random.default_rng(seed), max(1, _AT_ONCE // len(data[0]))
        found = stats.bootstrap(data, statistic, method="BCa", rng=generator, batch=batch, **options)
    samples = np.asarray(found.bootstrap_distribution)
    ends = found.confidence_interval
    if not np.isfinite(ends).all() and np.isfinite(samples).all():
        ends = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return samples, (float(ends[0]), float(ends[1]))
