"""What several runs prove: paired differences between arms, with intervals and tests.

Runs of one seed share initial heads, data order and subsets, so arms are compared by
their differences within a seed. One comparison is one arm, one metric and one sequence;
a metric's comparisons are corrected together. A difference is marked only where the
Student-t interval and the corrected exact test agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lrdist_keras.laboratory.metrics import validation_error
from lrdist_keras.laboratory.paired_tests import (
    Decision,
    bca_interval,
    decide,
    least_pairs,
    on_flat_curve,
    pairs_needed,
    two_level_interval,
)
from lrdist_keras.strict_json import finite_or_none

COMPARED = ("reward", "p_s", "p_o", "forgetting", "a1")


class NoStatistics(ValueError):
    """There is nothing that differences between the arms could be taken of."""


@dataclass(frozen=True)
class Difference:
    """An arm against another, in one metric.

    Args:
        sequence: Name of the sequence; None over all.
        arm: Name of the arm.
        metric: One of `COMPARED`.
        pairs: Number of differences: seeds, or sequences where it is over all.
        not_learned: Pairs left out because a run did not learn, or diverged.
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
        diverged: Number of those in which a number stopped being finite, by arm.
        runs: Number of runs.
    """

    reference: str
    paired: tuple[Difference, ...]
    over_sequences: tuple[Difference, ...]
    equal_p_s: tuple[Difference, ...] | None
    validation_errors: Mapping[str, Mapping[str, float]]
    not_learned: Mapping[str, int]
    diverged: Mapping[str, int]
    runs: int

    def to_json(self) -> dict[str, Any]:
        """Returns the content as JSON can hold it, None for what is not a number."""
        return finite_or_none(asdict(self))


@dataclass(frozen=True)
class _Sample:
    """The differences that one comparison is made of."""

    sequence: str
    arm: str
    metric: str
    values: np.ndarray
    not_learned: int = 0
    outside: int = 0


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
    return Statistics(
        reference,
        _differences(samples),
        _over_sequences(samples),
        _at_equal_p_s(runs, flat_rates) if len(flat_rates) > 1 else None,
        {name: _validation_errors(arms[reference]) for name, arms in runs.items()},
        dict(Counter(r["arm"] for r in records if not r["learned"])),
        dict(Counter(r["arm"] for r in records if r.get("diverged"))),
        len(records),
    )


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
    found = {
        metric: [
            validation_error(run, metric)
            for run in of_seeds.values()
            if run[metric] is not None
        ]
        for metric in COMPARED
    }
    return {
        metric: float(np.mean(errors)) for metric, errors in found.items() if errors
    }


def _has(of_seeds: Mapping[int, Mapping[str, Any]], metric: str) -> bool:
    """Whether a run has the metric: one task has no p_o, what diverged has nothing."""
    return any(record[metric] is not None for record in of_seeds.values())


def _paired(
    sequence: str,
    arm: str,
    metric: str,
    runs: Mapping[int, Mapping[str, Any]],
    others: Mapping[int, Mapping[str, Any]],
) -> _Sample:
    """Differences of one arm to another, by seed; forgetting only of what learned.

    Runs that diverged have no metric, and their pairs do not count.
    """
    pairs = [(runs[seed], others[seed]) for seed in sorted(runs)]
    counted = [
        (one[metric], other[metric])
        for one, other in pairs
        if one[metric] is not None
        and other[metric] is not None
        and (metric != "forgetting" or (one["learned"] and other["learned"]))
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
