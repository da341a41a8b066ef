"""Confidence intervals over prompts, 95 % by default: proportions, means, ratios of means and any other statistic.

Proportions have Wilson's interval, means and ratios that of the studentized bootstrap, other statistics scipy's BCa
bootstrap (bootstrap.py). With too few prompts, `Interval.caution` says so, or the ends are NaN.
Prompts that occur more than once, or share an answer, are not independent observations: with `clusters`, whole groups
of prompts are resampled together. Analyses group pairs by clean prompt (`TokenizedPairs.clusters`).
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from sparselens.prompts.bootstrap import RESAMPLES, bca, ratio_and_error, resampled_ratios

FEW, SKEWED = 30, 1.5  # with fewer groups of prompts and values this skewed, intervals of means cover too seldom
FEWEST = 10  # with fewer values skewness cannot be detected: that of n values is at most (n - 2) / sqrt(n - 1)

# a label per prompt; prompts with equal labels are resampled together. None: every prompt by itself
Clusters = Sequence[Hashable] | Int[Tensor, " prompt"] | None


@dataclass(frozen=True)
class Interval:
    """A mean over prompts with its confidence interval.

    Undefined values are NaN: ends and standard error for a single group of prompts, the ends for too few groups.

    >>> print(sl.evaluate(model, pairs).accuracy)
    0.93 [0.862, 0.966]
    """

    mean: float
    low: float
    high: float
    standard_error: float
    n: int  # number of prompts
    level: float = 0.95
    groups: int = 0  # number of groups of prompts that were resampled together; 0: one per prompt
    caution: str = ""  # why the interval may be too narrow

    @property
    def distinct(self) -> int:
        """Number of independent observations: groups of prompts."""
        return self.groups or self.n

    def __str__(self) -> str:
        known = math.isfinite(self.low) and math.isfinite(self.high)
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]" if known else f"{self.mean:.3g}"


def proportion_interval(
    right: Tensor | Sequence[bool] | Sequence[float], level: float = 0.95, clusters: Clusters = None
) -> Interval:
    """Share of prompts for which something holds, with Wilson's interval: never empty, and always between 0 and 1.

    For n prompts in G clusters it is Wilson's interval (Wilson 1927, JASA 22:209) for the effective sample size
    `n / deff * (t(n - 1) / t(G - 1))^2` of Korn & Graubard (1998, Survey Methodology 24:193). The design effect deff,
    at least 1, is the jackknife variance of the share over clusters divided by that of independent prompts; t are
    quantiles of Student's distribution, as Franco et al. (2019, J. Surv. Stat. Methodol. 7:334) recommend. If every
    prompt is its own cluster, this is Wilson's interval for n. If all prompts agree, deff would be 0 / 0, and each
    cluster counts as one prompt.

    >>> print(proportion_interval([True] * 9 + [False]))
    0.9 [0.596, 0.982]

    Raises:
        ValueError: a value is neither 0 nor 1; or as for `mean_interval`.
    """
    numbers = _numbers(right)
    _refuse_level(level)
    if not np.isin(numbers, (0, 1)).all():
        raise ValueError(f"a proportion needs values 0 and 1, not {numbers[~np.isin(numbers, (0, 1))][0]}")
    sums, sizes = _grouped(numbers, clusters), _grouped(np.ones_like(numbers), clusters)
    n, groups, share = len(numbers), len(sizes), float(numbers.mean())
    if groups == 1 < n:
        return Interval(share, math.nan, math.nan, math.nan, n, level, groups)
    effective = _effective_size(sums, sizes, share, level)
    error = math.sqrt(share * (1 - share) / max(effective - 1, 1)) if n > 1 else math.nan
    low, high = _wilson(share, effective, level)
    return Interval(share, low, high, error, n, level, groups)


def mean_interval(
    values: Tensor | Sequence[float], level: float = 0.95, seed: int = 0, clusters: Clusters = None
) -> Interval:
    """Mean of per-prompt values with its studentized bootstrap interval, reproducible from the seed.

    The bootstrap-t of Efron & Tibshirani (1993, chapter 12.5), which suits skewed values: for 20 exponential values it
    covers the mean in 94 to 96 % of cases, the percentile interval in 90 %. If resamples have no spread because most
    values are equal, BCa is used instead, or Student's t with fewer than ten prompts. For proportions use
    `proportion_interval`.

    >>> mean_interval(result.values, clusters=pairs.clusters())

    Raises:
        ValueError: there are no values, one is not finite, `level` is not between 0 and 1, or the number of clusters
            differs from that of values.
    """
    numbers = _numbers(values)
    sums, sizes = _grouped(numbers, clusters), _grouped(np.ones_like(numbers), clusters)
    return _studentized(sums, sizes, len(numbers), level, seed)


def ratio_interval(
    numerator: Tensor | Sequence[float],
    denominator: Tensor | Sequence[float],
    level: float = 0.95,
    seed: int = 0,
    clusters: Clusters = None,
) -> Interval:
    """Ratio of two means over the same prompts, with an interval as in `mean_interval`: both are resampled together.

    If resampled denominators differ in sign, the ratio is unbounded: both ends and the standard error are NaN.

    >>> ratio_interval(sparse.values, dense.values)  # the sparse model's metric relative to the dense one's

    Raises:
        ValueError: as for `mean_interval`; or the lengths differ, or the denominator's mean is zero.
    """
    above, below = _numbers(numerator), _numbers(denominator)
    if len(above) != len(below):
        raise ValueError(f"{len(above)} and {len(below)} values cannot belong to the same prompts")
    if not below.mean():
        raise ValueError("the denominator's mean is zero, so the ratio is undefined")
    return _studentized(_grouped(above, clusters), _grouped(below, clusters), len(above), level, seed)


def bootstrap_interval(
    statistic: Callable[[Float[np.ndarray, "resample prompt"]], Float[np.ndarray, " resample"]],
    n: int,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
    clusters: Clusters = None,
) -> Interval:
    """Any statistic of n prompts, given as a function of their weights, with its BCa interval (scipy.stats.bootstrap).

    Resampled values of G groups span at most the values of the groups, and that range contains the median with
    probability 1 - 2^(1 - G). For fewer than six groups (at 95 %) the ends are therefore NaN. Below 30 groups there is
    a caution: intervals of a mean cover it in 77 to 86 % of cases with 6 to 8 groups, and in 94 % with 20.

    Args:
        statistic: takes weights that sum to one, a row per resample

    Raises:
        ValueError: the statistic is not finite, or `level` is not between 0 and 1.
    """
    if n < 1:
        raise ValueError(f"want at least one prompt, not {n}")
    _refuse_level(level)
    groups = _numbered(clusters, n)
    sizes = np.bincount(groups)
    value = float(statistic(np.full((1, n), 1 / n))[0])

    def of_groups(chosen: np.ndarray, axis: int = -1) -> np.ndarray:  # noqa: ARG001 - scipy passes it
        rows = chosen.reshape(-1, chosen.shape[-1]).astype(int)
        times = np.stack([np.bincount(row, minlength=len(sizes)) for row in rows])
        weights = times[:, groups] / (times @ sizes)[:, None]
        return statistic(weights).reshape(chosen.shape[:-1])

    if len(sizes) == 1:
        return _alone(value, n, level)
    samples, ends = bca(of_groups, (np.arange(len(sizes)),), level, seed, resamples)
    if not np.isfinite([value, *samples]).all():
        raise ValueError("the statistic is not finite in at least one resample")
    few, caution = len(sizes), ""
    if few < FEW:
        caution = f"{few} prompts: the bootstrap interval is too narrow, use at least {FEW}"
    if 2.0 ** (1 - few) > 1 - level:
        ends, caution = (math.nan, math.nan), f"{few} prompts are too few for an interval"
    return Interval(value, *ends, float(samples.std(ddof=1)), n, level, few, caution)


# -- proportions


def _effective_size(sums: np.ndarray, sizes: np.ndarray, share: float, level: float) -> float:
    from scipy import stats

    n, groups = float(sizes.sum()), len(sizes)
    if n == 1:
        return 1.0
    if 0 < share < 1:
        between = (groups - 1) / groups * (((sums - share * sizes) / (n - sizes)) ** 2).sum()
        inflation = max(1.0, between * (n - 1) / (share * (1 - share)))
    else:
        inflation = float((sizes**2).sum()) / n
    wider, wide = stats.t.ppf((1 + level) / 2, [groups - 1, n - 1])
    return n / inflation * float(wide / wider) ** 2


def _wilson(share: float, n: float, level: float) -> tuple[float, float]:
    from statistics import NormalDist

    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half) if share else 0.0, min(1.0, middle + half) if share < 1 else 1.0


# -- means and ratios


def _studentized(tops: np.ndarray, bottoms: np.ndarray, n: int, level: float, seed: int) -> Interval:
    """Ratio of two sums over groups of prompts; for a mean the denominators are the sizes of the groups."""
    _refuse_level(level)
    value, error = (float(x[0]) for x in ratio_and_error(tops[None], bottoms[None]))
    if len(tops) == 1:
        return _alone(value, n, level)
    ratios, errors, one_sign = resampled_ratios(tops, bottoms, seed)
    if not one_sign:
        return Interval(value, math.nan, math.nan, math.nan, n, level, len(tops))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.nan_to_num((ratios - value) / errors, nan=0.0, posinf=np.inf, neginf=-np.inf)
    low, high = np.quantile(t, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    ends = value - high * error, value - low * error
    if not np.isfinite([low, high]).all():
        ends = _student(value, error, len(tops), level)
        if len(tops) >= FEWEST:
            _, ends = bca(lambda a, b, axis: a.sum(axis) / b.sum(axis), (tops, bottoms), level, seed, RESAMPLES)
    return Interval(value, float(ends[0]), float(ends[1]), error, n, level, len(tops), _caution(tops, bottoms, value))


def _student(value: float, error: float, n: int, level: float) -> tuple[float, float]:
    from scipy import stats

    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    return value - half, value + half


def _caution(tops: np.ndarray, bottoms: np.ndarray, value: float) -> str:
    n, left = len(tops), tops - value * bottoms
    if n >= FEW:
        return ""
    spread = left.std()
    if spread <= 1e-12 * np.abs(tops).max():
        return f"all {n} prompts have the same value: the spread of others is unknown"
    if n < FEWEST:
        return f"{n} prompts: the interval may be too narrow, use at least {FEW}"
    if abs(((left - left.mean()) ** 3).mean()) > SKEWED * spread**3:
        return f"{n} prompts with skewed values: the interval may be too narrow, use at least {FEW}"
    return ""


# -- shared


def _alone(value: float, n: int, level: float) -> Interval:
    """The interval of a single group: all resamples are equal, so its ends are undefined."""
    return Interval(value, math.nan, math.nan, math.nan, n, level, 1)


def _numbers(values: Tensor | Sequence[float]) -> np.ndarray:
    numbers = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    if numbers.ndim != 1 or not len(numbers):
        raise ValueError(f"want one value per prompt for at least one prompt, not shape {list(numbers.shape)}")
    if not np.isfinite(numbers).all():
        bad = int((~np.isfinite(numbers)).argmax())
        raise ValueError(f"the value of prompt {bad} is {numbers[bad]}")
    return numbers


def _grouped(numbers: np.ndarray, clusters: Clusters) -> np.ndarray:
    """The sum over every group."""
    return numbers if clusters is None else np.bincount(_numbered(clusters, len(numbers)), numbers)


def _numbered(clusters: Clusters, n: int) -> np.ndarray:
    """The group index of every prompt; groups are numbered in order of appearance."""
    if clusters is None:
        return np.arange(n)
    if len(clusters) != n:
        raise ValueError(f"{len(clusters)} clusters for {n} values: want one cluster label per value")
    return np.unique(first_alike(clusters), return_inverse=True)[1]


def first_alike(labels: Sequence[Hashable] | Int[Tensor, " label"]) -> Int[np.ndarray, " label"]:
    """For every label, the index of the first equal label."""
    known: Sequence[Hashable] = labels.tolist() if isinstance(labels, Tensor) else labels  # tensors hash by identity
    first = dict[Hashable, int]()
    return np.array([first.setdefault(label, place) for place, label in enumerate(known)])


def _refuse_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, not {level}")
