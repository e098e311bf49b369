"""What several runs say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

METRICS = ("a1", "p_s", "p_o", "reward", "forgetting")


@dataclass(frozen=True)
class Summary:
    """The runs of one arm on one sequence.

    Args:
        sequence: Name of the sequence.
        arm: Name of the arm.
        mean: Mean of each metric over the seeds; NaN where there is nothing to average.
        deviation: Standard deviation (n - 1) over the seeds; NaN for one seed.
        seeds: Number of runs.
        learned: Number of runs that learned every task. The others are left out of the
            forgetting: who learned nothing forgets nothing.
    """

    sequence: str
    arm: str
    mean: Mapping[str, float]
    deviation: Mapping[str, float]
    seeds: int
    learned: int


def summarize(records: Sequence[dict[str, Any]]) -> list[Summary]:
    """Returns mean and standard deviation over the seeds per sequence and arm."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["sequence"], record["arm"]), []).append(record)
    summaries = []
    for (sequence, arm), runs in groups.items():
        values = {
            name: np.array(
                [
                    run[name]
                    for run in runs
                    if run[name] is not None
                    and (name != "forgetting" or run["learned"])
                ]
            )
            for name in METRICS
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
