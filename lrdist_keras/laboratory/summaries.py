"""Means of the runs of an arm over its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrdist_keras.laboratory.metrics import METRICS

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
        diverged: Number of runs in which a number stopped being finite. They did not
            learn, and are left out of all means.
    """

    sequence: str
    arm: str
    mean: Mapping[str, float]
    deviation: Mapping[str, float]
    seeds: int
    learned: int
    diverged: int = 0


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
                sum(run.get("diverged", False) for run in runs),
            )
        )
    return summaries


def mean_rates(
    records: Sequence[Mapping[str, Any]],
) -> dict[tuple[str, str, str], dict[str, float]]:
    """Returns the learning rates that runs found, their geometric mean over the seeds.

    By sequence, arm and task, of each group, for the tasks after the first. Runs whose
    rates were all given have none, and those that diverged do not count.
    """
    found: dict[tuple[str, str, str], list[Mapping[str, float]]] = {}
    for run in records:
        if "rates" in run and not run.get("diverged", False):
            tasks = list(zip(run["tasks"], run["rates"], strict=True))
            for task, rates in tasks[1:]:
                key = (run["sequence"], run["arm"], task)
                found.setdefault(key, []).append(rates)
    return {
        key: {
            group: float(np.exp(np.mean([np.log(rates[group]) for rates in runs])))
            for group in runs[0]
        }
        for key, runs in found.items()
    }
