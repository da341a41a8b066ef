"""How sure a mean over prompts is: standard error and percentile bootstrap (Efron & Tibshirani 1993, chapter 13)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

RESAMPLES = 2000
_AT_ONCE = 2**22  # numbers in memory


@dataclass(frozen=True)
class Interval:
    """A mean over prompts with the interval that holds it with probability `level`.

    Of a single prompt, ends and standard error are NaN.
    """

    mean: float
    low: float
    high: float
    standard_error: float
    n: int  # prompts
    level: float = 0.95

    def __str__(self) -> str:
        known = math.isfinite(self.low) and math.isfinite(self.high)
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]" if known else f"{self.mean:.3g}"


def mean_interval(values: Tensor | Sequence[float], level: float = 0.95, seed: int = 0) -> Interval:
    """Mean of per-prompt values with its bootstrap interval. The same seed gives the same interval.

    Raises:
        ValueError: there is no value, one is not finite, or `level` is not between 0 and 1.
    """
    numbers = _numbers(values)
    means = _resampled_means(numbers[None], seed)[0]
    error = float(numbers.std(ddof=1) / math.sqrt(len(numbers))) if len(numbers) > 1 else math.nan
    return _interval(float(numbers.mean()), means, error, len(numbers), level)


def ratio_interval(
    numerator: Tensor | Sequence[float], denominator: Tensor | Sequence[float], level: float = 0.95, seed: int = 0
) -> Interval:
    """Ratio of two means over the same prompts: both are resampled together. Its standard error is the bootstrap's.

    Where resampled denominators are not all of one sign the ratio could be anything: ends and error are NaN.

    Raises:
        ValueError: as `mean_interval`; or the two differ in length, or the denominator's mean is zero.
    """
    above, below = _numbers(numerator), _numbers(denominator)
    if len(above) != len(below):
        raise ValueError(f"{len(above)} and {len(below)} values are not of the same prompts")
    tops, bottoms = _resampled_means(np.stack([above, below]), seed)
    if not below.mean():
        raise ValueError("the denominator's mean is zero: the ratio says nothing")
    one_sign = (bottoms > 0).all() or (bottoms < 0).all()
    ratios = tops / bottoms if one_sign else np.full_like(tops, np.nan)
    return _interval(float(above.mean() / below.mean()), ratios, float(ratios.std(ddof=1)), len(above), level)


def bootstrap_interval(
    statistic: Callable[[Float[np.ndarray, "resample prompt"]], Float[np.ndarray, " resample"]],
    n: int,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """Of any statistic of n prompts, given as a function of weights that add up to one: 1/n each, or a resample's.

    Raises:
        ValueError: the statistic is not finite, or `level` is not between 0 and 1.
    """
    if n < 1:
        raise ValueError(f"want at least one prompt, not {n}")
    value = float(statistic(np.full((1, n), 1 / n))[0])
    drawn = statistic(np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples) / n)
    if not np.isfinite([value, *drawn]).all():
        raise ValueError("the statistic is not finite, at least in one resample")
    return _interval(value, drawn, float(drawn.std(ddof=1)), n, level)


def _numbers(values: Tensor | Sequence[float]) -> np.ndarray:
    numbers = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    if numbers.ndim != 1 or not len(numbers):
        raise ValueError(f"want one value a prompt, and at least one prompt, not shape {list(numbers.shape)}")
    if not np.isfinite(numbers).all():
        bad = int((~np.isfinite(numbers)).argmax())
        raise ValueError(f"the value of prompt {bad} is {numbers[bad]}")
    return numbers


def _resampled_means(numbers: np.ndarray, seed: int) -> np.ndarray:
    """Means of RESAMPLES draws with replacement; every row of `numbers` is drawn alike."""
    generator = np.random.default_rng(seed)
    n = numbers.shape[1]
    per_chunk = max(1, _AT_ONCE // n)
    chunks: list[np.ndarray] = []
    for start in range(0, RESAMPLES, per_chunk):
        chosen = generator.integers(n, size=(min(per_chunk, RESAMPLES - start), n))
        chunks.append(np.stack([row[chosen].mean(-1) for row in numbers]))
    return np.concatenate(chunks, -1)


def _interval(value: float, samples: np.ndarray, error: float, n: int, level: float) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, not {level}")
    if n == 1:  # all resamples are alike, which says nothing
        return Interval(value, math.nan, math.nan, math.nan, n, level)
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), error, n, level)
