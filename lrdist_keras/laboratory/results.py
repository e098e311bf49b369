"""What a comparison found: the record of a run, the order of runs, `results.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lrdist_keras import machine
from lrdist_keras._storage import write_text
from lrdist_keras.config import Configuration
from lrdist_keras.data.shifts import LabelShares
from lrdist_keras.distribution import Distribution
from lrdist_keras.laboratory import metrics
from lrdist_keras.laboratory.metrics import METRICS
from lrdist_keras.laboratory.records import key_of
from lrdist_keras.laboratory.statistics import NoStatistics, Statistics, compare_arms
from lrdist_keras.laboratory.summaries import FURTHER, summarize
from lrdist_keras.strict_json import finite_or_none
from lrdist_keras.training.run import Run


def ordered(
    configuration: Configuration, records: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Returns the records that a configuration asks for, in its order.

    A folder may hold runs of more seeds.
    """
    found = {key_of(record): record for record in records}
    return [
        found[key]
        for sequence in configuration.sequences
        for arm in configuration.arms
        for seed in configuration.seeds
        if (key := (sequence.name, arm.name, seed)) in found
    ]


def paired_statistics(
    configuration: Configuration, records: Sequence[Mapping[str, Any]]
) -> Statistics:
    """Returns the statistics of a configuration's runs.

    The reference is `report.reference` or the first arm; the flat-rate curve goes
    through the plain arms with one rate for all groups.

    Raises:
        NoStatistics: If there is one seed or one arm, or if the arms' seeds differ.
    """
    arms = configuration.arms
    flat_rates = {
        arm.name: arm.rate
        for arm in arms
        if arm.rate is not None and arm.is_flat and arm.strategy.is_plain
    }
    reference = configuration.report.reference or arms[0].name
    return compare_arms(records, reference, flat_rates)


def save_results(
    folder: Path,
    configuration: Configuration,
    records: Sequence[dict[str, Any]],
    distributions: Mapping[str, Distribution],
    labels: Mapping[str, Sequence[LabelShares]],
) -> None:
    """Writes `results.json`: configuration, versions, machine, tables and runs.

    Args:
        folder: Where it is written.
        configuration: What was compared.
        records: The finished runs.
        distributions: Learning rates by name.
        labels: Label distributions of the tasks, by name of the sequence.
    """
    try:
        statistics = paired_statistics(configuration, records).to_json()
    except NoStatistics as error:
        statistics = {"unavailable": str(error)}
    results = {
        "name": configuration.name,
        "configuration": configuration.model_dump(),
        **({"compat": compat} if (compat := configuration.compat) else {}),
        "versions": machine.versions(),
        "machine": machine.description(),
        "distributions": {n: d.to_json() for n, d in distributions.items()},
        "labels": {
            sequence: [finite_or_none(asdict(row)) for row in rows]
            for sequence, rows in labels.items()
        },
        "table": [
            {
                "sequence": s.sequence,
                "arm": s.arm,
                "seeds": s.seeds,
                "learned": s.learned,
                "mean": finite_or_none(s.mean),
                "standard_deviation": finite_or_none(s.deviation),
            }
            for s in summarize(records, (*METRICS, *FURTHER))
        ],
        "statistics": statistics,
        "runs": list(records),
    }
    text = json.dumps(results, indent=1, allow_nan=False)
    write_text(folder / "results.json", text + "\n")


def record_of(run: Run, tasks: list[str]) -> dict[str, Any]:
    """Returns what the record of a run holds of its training and its metrics."""
    matrix = run.accuracy
    return {
        "tasks": tasks,
        **{name: getattr(metrics, name)(matrix) for name in METRICS},
        "learned": metrics.learned(matrix, run.majority_rates, run.examples),
        "diverged": run.diverged,
        "accuracy": matrix.tolist(),
        "majority_rates": run.majority_rates.tolist(),
        "examples": run.examples.tolist(),
        "curves": {name: asdict(curve) for name, curve in run.curves.items()},
        "seconds": round(run.seconds, 3),
        "training_seconds": round(run.training_seconds, 3),
        "compile_seconds": round(run.compile_seconds, 3),
        "examples_per_second": round(run.examples_per_second, 2),
        "compilations": run.compilations,
    }


def rates_record(run: Run) -> dict[str, Any]:
    """Returns the learning rates of each task of a run, for its record."""
    return {"rates": [dict(distribution.rates) for distribution in run.rates]}
