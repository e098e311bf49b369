"""Intervals and tests of paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

LEVEL = 0.05
POWER = 0.8
EXACT_UP_TO = 20
FLIPS = 19_999
RESAMPLES = 9_999
MOST_PAIRS = 9_999


@dataclass(frozen=True)
class Decision:
    """What one of several comparisons shows.

    Args:
        mean: Mean difference; NaN without a pair.
        interval: 95 % interval of Student's t, see `t_interval`.
        p: Two-sided p of the sign-flip test, see `sign_flip`.
        exact: Whether p was enumerated; else it was drawn.
        p_holm: p after Holm's correction over the comparisons.
        comparisons: How many comparisons there are, k.
        least_pairs: Pairs without which nothing could be marked, see `least_pairs`.
        marked: Whether interval and corrected test agree on a difference.
    """

    mean: float
    interval: tuple[float, float]
    p: float
    exact: bool
    p_holm: float
    comparisons: int
    least_pairs: int
    marked: bool


def decide(samples: Sequence[np.ndarray]) -> list[Decision]:
    """Decides on comparisons that are corrected together.

    A difference is marked where the t interval leaves out 0, the sign-flip test
    corrected by Holm has p <= 0.05, and there are pairs enough for that to happen.

    Args:
        samples: Differences of each comparison, shape [pairs] each.
    """
    tests = [sign_flip(sample) for sample in samples]
    corrected = holm([p for p, _ in tests])
    least = least_pairs(len(samples)) if samples else 0
    decisions = []
    for sample, (p, exact), p_holm in zip(samples, tests, corrected, strict=True):
        low, high = t_interval(sample)
        marked = len(sample) >= least and p_holm <= LEVEL and (low > 0 or high < 0)
        mean = float(np.mean(sample)) if len(sample) else math.nan
        decisions.append(
            Decision(mean, (low, high), p, exact, p_holm, len(samples), least, marked)
        )
    return decisions


def t_interval(differences: np.ndarray) -> tuple[float, float]:
    """Returns the 95 % interval of Student's t for the mean of paired differences.

    mean ± t(0.975, n - 1) s / sqrt(n); NaN for fewer than two.
    """
    n = len(differences)
    if n < 2:
        return math.nan, math.nan
    mean = float(np.mean(differences))
    error = float(np.std(differences, ddof=1)) / math.sqrt(n)
    half = float(special.stdtrit(n - 1, 1 - LEVEL / 2)) * error
    return mean - half, mean + half


def bca_interval(differences: np.ndarray) -> tuple[float, float]:
    """Returns the 95 % BCa bootstrap interval for the mean of paired differences.

    Bias-corrected and accelerated (Efron 1987, doi 10.2307/2289144), by SciPy, with the
    same resamples at every call. Equal differences give their value twice, fewer than
    two NaN.
    """
    if len(differences) < 2:
        return math.nan, math.nan
    mean = float(np.mean(differences))
    # Resamples that differ by rounding alone have no acceleration.
    if np.ptp(differences) <= 1e-12 * np.max(np.abs(differences)):
        return mean, mean
    from scipy import stats

    low, high = stats.bootstrap(
        (differences,),
        np.mean,
        confidence_level=1 - LEVEL,
        n_resamples=RESAMPLES,
        method="BCa",
        random_state=0,
    ).confidence_interval
    return float(low), float(high)


def two_level_interval(groups: Sequence[np.ndarray]) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval for the mean of the groups' means.

    Groups are drawn with replacement, then the differences within each drawn one
    (Davison and Hinkley 1997, section 3.8); percentiles, the same resamples at every
    call.

    Args:
        groups: Differences of each sequence, shape [seeds] each.
    """
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(groups), (RESAMPLES, len(groups)))
    means = np.empty(drawn.shape)
    for index, group in enumerate(groups):
        here = drawn == index
        means[here] = rng.choice(group, (here.sum(), len(group))).mean(axis=1)
    tail = 100 * LEVEL / 2
    low, high = np.percentile(means.mean(axis=1), [tail, 100 - tail])
    return float(low), float(high)


def sign_flip(differences: np.ndarray) -> tuple[float, bool]:
    """Returns the two-sided p of the sign-flip test, and whether it is exact.

    If the arms do not differ, each difference could as well have had the other sign: p
    is the share of the 2^n sign patterns whose |sum| is at least the one observed
    (Fisher 1935, The Design of Experiments, section 21). Up to 20 pairs all patterns
    are counted; beyond, 19,999 are drawn from a fixed seed, and p = (1 + those at
    least as large) / 20,000.
    """
    if len(differences) == 0:
        return 1.0, True
    # Equal sums, added in another order, differ by rounding.
    observed = abs(np.sum(differences)) - 1e-9 * np.sum(np.abs(differences))
    if len(differences) <= EXACT_UP_TO:
        # A pattern and its opposite have the same |sum|: the first sign can stay.
        sums = differences[:1]
        for difference in differences[1:]:
            sums = np.concatenate([sums + difference, sums - difference])
        return float(np.mean(np.abs(sums) >= observed)), True
    rng = np.random.default_rng(0)
    signs = rng.choice(np.array([-1.0, 1.0]), (FLIPS, len(differences)))
    larger = np.sum(np.abs(signs @ differences) >= observed)
    return float((1 + larger) / (1 + FLIPS)), False


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for their number (Holm 1979, jstor 4615733).

    The i-th smallest of k is multiplied by k - i + 1; none is below a smaller one's
    result, or above 1.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def least_pairs(comparisons: int) -> int:
    """Returns the smallest n with 2 k / 2^n <= 0.05, for k comparisons.

    With fewer pairs even differences of one sign throughout would not be significant.
    """
    n = 1
    while 2 * comparisons / 2**n > LEVEL:
        n += 1
    return n


def power(effect: float, pairs: int, level: float) -> float:
    """Returns the power of the two-sided paired t test, by the noncentral t.

    Args:
        effect: Mean difference in standard deviations of the differences.
        pairs: Number of pairs, at least 2.
        level: Level of the test.
    """
    critical = special.stdtrit(pairs - 1, 1 - level / 2)
    shift = abs(effect) * math.sqrt(pairs)
    below = special.nctdtr(pairs - 1, shift, [-critical, critical])
    return float(1 + below[0] - below[1])


def pairs_needed(differences: np.ndarray, comparisons: int) -> int | None:
    """Returns how many pairs would show a difference of this mean and deviation.

    Power 0.8 in the t test at 0.05 / k, the first step of Holm's correction, and at
    least `least_pairs`. The mean and deviation observed are themselves uncertain, and
    so is this number; close to `least_pairs` the sign-flip test takes one or two more.

    Args:
        differences: Differences, shape [pairs].
        comparisons: Number of comparisons k that are corrected together.

    Returns:
        None for fewer than two differences, and where it would be more than 9,999.
    """
    if len(differences) < 2:
        return None
    mean, deviation = abs(np.mean(differences)), np.std(differences, ddof=1)
    if mean == 0:
        return None
    # Beyond 100 deviations nothing changes, and the noncentral t would overflow.
    effect = min(mean / deviation, 100.0) if deviation > 0 else 100.0
    level = LEVEL / comparisons
    low, high = least_pairs(comparisons), MOST_PAIRS
    if power(effect, high, level) < POWER:
        return None
    while low < high:
        middle = (low + high) // 2
        if power(effect, middle, level) < POWER:
            low = middle + 1
        else:
            high = middle
    return low


def on_flat_curve(p_s: np.ndarray, values: np.ndarray, at: float) -> np.ndarray | None:
    """Returns what the flat rate does that reaches a given p_s.

    The runs of one seed, in the order of their rates, are joined by straight lines.
    Where several rates reach the p_s, the one with the best p_o counts.

    Args:
        p_s: p_s of each flat rate, shape [rates], in the order of the rates.
        values: p_o first, then other metrics, shape [rates, metrics].
        at: The p_s.

    Returns:
        The metrics there, shape [metrics]; None outside the range of p_s.
    """
    found = []
    for i in range(len(p_s) - 1):
        if min(p_s[i : i + 2]) <= at <= max(p_s[i : i + 2]):
            step = p_s[i + 1] - p_s[i]
            shares = [(at - p_s[i]) / step] if step else [0.0, 1.0]
            found += [values[i] + s * (values[i + 1] - values[i]) for s in shares]
    return max(found, key=lambda point: point[0]) if found else None
