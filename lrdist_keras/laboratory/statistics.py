"""What several runs say together: means, paired differences, and what they prove.

Runs of one seed share initial heads, data order and subsets, so arms are compared by
their differences within a seed. One comparison is one arm, one metric and one sequence;
a metric's comparisons are corrected together. A difference is marked only where the
Student-t interval and the corrected exact test agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import special

METRICS = ("a1", "p_s", "p_o", "reward", "forgetting")
# What a table shows beside them, where the records hold it.
FURTHER = (
    "average_accuracy",
    "learning_accuracy",
    "backward_transfer",
    "forward_transfer",
    "probe_after",
    "probe_p_o",
)
_OF_LEARNED = ("forgetting", "backward_transfer")
COMPARED = ("reward", "p_s", "p_o", "forgetting", "a1")
LEVEL = 0.05
POWER = 0.8
EXACT_UP_TO = 20
FLIPS = 19_999
RESAMPLES = 9_999
MOST_PAIRS = 9_999


class NoStatistics(ValueError):
    """There is nothing that differences between the arms could be taken of."""


@dataclass(frozen=True)
class Summary:
    """The runs of one arm on one sequence.

    Args:
        sequence: Name of the sequence.
        arm: Name of the arm.
        mean: Mean of each metric over the seeds; NaN where there is nothing to average.
        deviation: Standard deviation (n - 1) over the seeds; NaN for one seed.
        seeds: Number of runs.
        learned: Number of runs that learned every task. The others are left out of
            forgetting and backward transfer: who learned nothing forgets nothing.
    """

    sequence: str
    arm: str
    mean: Mapping[str, float]
    deviation: Mapping[str, float]
    seeds: int
    learned: int


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


@dataclass(frozen=True)
class Difference:
    """An arm against another, in one metric.

    Args:
        sequence: Name of the sequence; None over all.
        arm: Name of the arm.
        metric: One of `COMPARED`.
        pairs: Number of differences: seeds, or sequences where it is over all.
        not_learned: Pairs left out because a run did not learn.
        outside: Pairs left out because the arm's p_s lies outside the flat-rate curve.
        decision: Mean, interval, test and mark.
        bootstrap: 95 % interval of the bootstrap: BCa over seeds, of two levels over
            sequences.
        pairs_needed: Pairs that would show a difference of this size and spread, see
            `pairs_needed`.
    """

    sequence: str | None
    arm: str
    metric: str
    pairs: int
    not_learned: int
    outside: int
    decision: Decision
    bootstrap: tuple[float, float]
    pairs_needed: int | None


@dataclass(frozen=True)
class Statistics:
    """All comparisons of a set of runs.

    Args:
        reference: Name of the arm that the others are compared with.
        paired: Each arm minus the reference, over seeds, per sequence.
        over_sequences: The same on average over sequences; empty where there is one.
        equal_p_s: Each arm that is not flat minus the flat-rate curve at the same p_s;
            None with fewer than two flat arms.
        validation_errors: Per sequence and metric the binomial standard error that the
            finite validation sets leave in one run of the reference.
        not_learned: Number of runs that did not learn, by arm.
        runs: Number of runs.
    """

    reference: str
    paired: tuple[Difference, ...]
    over_sequences: tuple[Difference, ...]
    equal_p_s: tuple[Difference, ...] | None
    validation_errors: Mapping[str, Mapping[str, float]]
    not_learned: Mapping[str, int]
    runs: int

    def to_json(self) -> dict[str, Any]:
        """Returns the content as JSON can hold it, None for what is not a number."""
        return without_nan(asdict(self))


@dataclass(frozen=True)
class _Sample:
    """The differences that one comparison is made of."""

    sequence: str
    arm: str
    metric: str
    values: np.ndarray
    not_learned: int = 0
    outside: int = 0


def summarize(
    records: Sequence[Mapping[str, Any]], names: Sequence[str] = METRICS
) -> list[Summary]:
    """Returns mean and standard deviation over the seeds per sequence and arm.

    Args:
        records: Runs, one mapping of each as `runs.jsonl` holds them.
        names: Numbers in the records; of those without one the others count.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["sequence"], record["arm"]), []).append(record)
    summaries = []
    for (sequence, arm), runs in groups.items():
        values = {
            name: np.array(
                [
                    run[name]
                    for run in runs
                    if run.get(name) is not None
                    and (name not in _OF_LEARNED or run["learned"])
                ]
            )
            for name in names
        }
        nan = float("nan")
        summaries.append(
            Summary(
                sequence,
                arm,
                {n: float(v.mean()) if len(v) else nan for n, v in values.items()},
                {
                    n: float(v.std(ddof=1)) if len(v) > 1 else nan
                    for n, v in values.items()
                },
                len(runs),
                sum(run["learned"] for run in runs),
            )
        )
    return summaries


def compare_arms(
    records: Sequence[Mapping[str, Any]],
    reference: str,
    flat_rates: Mapping[str, float],
) -> Statistics:
    """Returns every arm's differences to the reference and to the flat-rate curve.

    The comparisons of a metric, k = arms x sequences, are corrected together; those on
    average over sequences, and those at equal p_s, are families of their own.

    Args:
        records: Runs, one mapping of each as `runs.jsonl` holds them.
        reference: Name of the arm that the others are compared with.
        flat_rates: Learning rate of each flat arm, by name.

    Raises:
        NoStatistics: If there is one seed or one arm, or if the arms' seeds differ.
    """
    runs: dict[str, dict[str, dict[int, Mapping[str, Any]]]] = {}
    for record in records:
        arms = runs.setdefault(record["sequence"], {})
        arms.setdefault(record["arm"], {})[record["seed"]] = record
    _check(runs, reference)
    flat_rates = {
        arm: rate
        for arm, rate in flat_rates.items()
        if all(arm in arms for arms in runs.values())
    }
    samples = [
        _paired(sequence, arm, metric, arms[arm], arms[reference])
        for metric in COMPARED
        for sequence, arms in runs.items()
        for arm in arms
        if arm != reference and _has(arms[arm], metric)
    ]
    counts: dict[str, int] = {}
    for record in records:
        if not record["learned"]:
            counts[record["arm"]] = counts.get(record["arm"], 0) + 1
    return Statistics(
        reference,
        _differences(samples),
        _over_sequences(samples),
        _at_equal_p_s(runs, flat_rates) if len(flat_rates) > 1 else None,
        {name: _validation_errors(arms[reference]) for name, arms in runs.items()},
        counts,
        len(records),
    )


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


def validation_error(record: Mapping[str, Any], metric: str) -> float:
    """Returns the standard error of a metric from the finite validation sets.

    An accuracy p on n examples has the binomial standard error sqrt(p (1 - p) / n). In
    sums the examples count as independent; those of `forgetting` are the same ones
    before and after, so that its error is at most about this large.
    """
    accuracy = np.array(record["accuracy"], dtype=float)
    variance = accuracy * (1 - accuracy) / np.array(record["examples"])
    earlier = max(len(accuracy) - 1, 1)
    if metric == "a1":
        return math.sqrt(variance[0, 0])
    if metric == "p_s":
        return math.sqrt(variance[-1, -1])
    if metric == "reward":
        return math.sqrt(np.sum(variance[-1]))
    final = np.sum(variance[-1, :-1])
    if metric == "p_o":
        return math.sqrt(final) / earlier
    best = np.nanargmax(accuracy[:-1, :-1], axis=0)
    before = np.sum(variance[best, np.arange(earlier)])
    return math.sqrt(final + before) / earlier


def _check(runs: Mapping[str, Mapping[str, Mapping[int, Any]]], reference: str) -> None:
    """Raises NoStatistics unless every arm has the seeds of the reference, and two."""
    if all(set(arms) <= {reference} for arms in runs.values()):
        raise NoStatistics(
            f"Arms are compared with the reference '{reference}', and there is no "
            "other arm."
        )
    problems = []
    for sequence, arms in runs.items():
        wanted = set(arms.get(reference, ()))
        if not wanted:
            problems.append(f"the reference '{reference}' on '{sequence}' has none")
            continue
        for arm in dict.fromkeys(arm for others in runs.values() for arm in others):
            seeds = set(arms.get(arm, ()))
            if missing := sorted(wanted - seeds):
                problems.append(f"'{arm}' on '{sequence}' lacks {missing}")
            if more := sorted(seeds - wanted):
                problems.append(f"'{arm}' on '{sequence}' has {more} more")
    if problems:
        raise NoStatistics(
            "Arms are compared in pairs of the same seed, so that all need the seeds "
            f"of the reference '{reference}'. Received: {'; '.join(problems)}. Finish "
            "the runs with `lrdist compare`."
        )
    seeds = {seed for arms in runs.values() for seed in arms[reference]}
    if len(seeds) < 2:
        raise NoStatistics(
            "Differences paired by seed need at least 2 seeds, and to mark one "
            f"{least_pairs(1)}; add some to `seeds`. Received: seeds = {sorted(seeds)}"
        )


def _validation_errors(of_seeds: Mapping[int, Mapping[str, Any]]) -> dict[str, float]:
    return {
        metric: float(
            np.mean([validation_error(run, metric) for run in of_seeds.values()])
        )
        for metric in COMPARED
        if _has(of_seeds, metric)
    }


def _has(of_seeds: Mapping[int, Mapping[str, Any]], metric: str) -> bool:
    return all(record[metric] is not None for record in of_seeds.values())


def _paired(
    sequence: str,
    arm: str,
    metric: str,
    runs: Mapping[int, Mapping[str, Any]],
    others: Mapping[int, Mapping[str, Any]],
) -> _Sample:
    """Differences of one arm to another, by seed; forgetting only of what learned."""
    pairs = [(runs[seed], others[seed]) for seed in sorted(runs)]
    counted = [
        (one[metric], other[metric])
        for one, other in pairs
        if metric != "forgetting" or (one["learned"] and other["learned"])
    ]
    values = _rounded([one - other for one, other in counted])
    return _Sample(sequence, arm, metric, values, len(pairs) - len(counted))


def _rounded(differences: Any) -> np.ndarray:
    """Differences without the rounding of sums, which is no difference."""
    return np.round(np.array(differences, dtype=float), 12)


def _differences(samples: Sequence[_Sample]) -> tuple[Difference, ...]:
    """Decides per metric, over all arms and sequences."""
    differences = []
    for metric in COMPARED:
        family = [sample for sample in samples if sample.metric == metric]
        decisions = decide([sample.values for sample in family])
        for sample, decision in zip(family, decisions, strict=True):
            differences.append(
                Difference(
                    sample.sequence,
                    sample.arm,
                    metric,
                    len(sample.values),
                    sample.not_learned,
                    sample.outside,
                    decision,
                    bca_interval(sample.values),
                    pairs_needed(sample.values, len(family)),
                )
            )
    return tuple(differences)


def _over_sequences(samples: Sequence[_Sample]) -> tuple[Difference, ...]:
    """Decides per metric on the average over sequences.

    The model is d_ij = mu + b_i + e_ij with sequence i and seed j: mu is what holds for
    sequences in general, of which those seen are a sample. Its estimate is the mean of
    the sequences' means, and these, not the single runs, are the units of interval and
    test.
    """
    differences = []
    for metric in COMPARED:
        groups: dict[str, list[_Sample]] = {}
        for sample in samples:
            if sample.metric == metric and len(sample.values):
                groups.setdefault(sample.arm, []).append(sample)
        groups = {arm: group for arm, group in groups.items() if len(group) > 1}
        units = [_rounded([s.values.mean() for s in g]) for g in groups.values()]
        decisions = decide(units)
        for (arm, group), unit, decision in zip(
            groups.items(), units, decisions, strict=True
        ):
            differences.append(
                Difference(
                    None,
                    arm,
                    metric,
                    len(group),
                    sum(sample.not_learned for sample in group),
                    0,
                    decision,
                    two_level_interval([sample.values for sample in group]),
                    pairs_needed(unit, len(units)),
                )
            )
    return tuple(differences)


def _at_equal_p_s(
    runs: Mapping[str, Mapping[str, Mapping[int, Mapping[str, Any]]]],
    flat_rates: Mapping[str, float],
) -> tuple[Difference, ...]:
    """Compares arms with the flat rate that learns the second task as well.

    Who learns less forgets less, and that is no merit. Runs that did not learn neither
    form the curve nor are compared with it.
    """
    metrics = ("p_o", "forgetting")
    flat = sorted(flat_rates, key=lambda arm: flat_rates[arm])
    samples = []
    for sequence, arms in runs.items():
        for arm, of_seeds in arms.items():
            if arm in flat_rates or not _has(of_seeds, "p_o"):
                continue
            rows, not_learned, outside = [], 0, 0
            for seed, run in sorted(of_seeds.items()):
                if not run["learned"]:
                    not_learned += 1
                    continue
                curve = [arms[name][seed] for name in flat]
                curve = [point for point in curve if point["learned"]]
                point = on_flat_curve(
                    np.array([point["p_s"] for point in curve]),
                    np.array([[point[m] for m in metrics] for point in curve]),
                    run["p_s"],
                )
                if point is None:
                    outside += 1
                else:
                    rows.append([run[m] for m in metrics] - point)
            columns = _rounded(rows).reshape(len(rows), len(metrics)).T
            samples += [
                _Sample(sequence, arm, metric, column, not_learned, outside)
                for metric, column in zip(metrics, columns, strict=True)
            ]
    return _differences(samples)


def without_nan(content: Any) -> Any:
    """Returns what JSON can hold: the content with None for what is not a number."""
    if isinstance(content, Mapping):
        return {name: without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content
