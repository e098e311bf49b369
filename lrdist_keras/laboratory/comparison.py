"""Arms x sequences x seeds: a table of runs that can be interrupted and taken up."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lrdist_keras import machine
from lrdist_keras._storage import write_text
from lrdist_keras.config import ArmSettings, Configuration, SequenceSettings
from lrdist_keras.data.shifts import LabelShares
from lrdist_keras.distribution import Distribution, fast_head, flat, get, llrd
from lrdist_keras.errors import InputError
from lrdist_keras.groups import Scheme
from lrdist_keras.laboratory import loading, measures, metrics
from lrdist_keras.laboratory.inputs import Input, check_inputs, inputs_of, save_inputs
from lrdist_keras.laboratory.measures import Measures
from lrdist_keras.laboratory.metrics import METRICS
from lrdist_keras.laboratory.records import (
    append_run,
    cut_half_a_line,
    key_of,
    lost_logits,
    read_runs,
    save_logits,
)
from lrdist_keras.laboratory.run_folder import check_folder, locked, save_configuration
from lrdist_keras.laboratory.statistics import NoStatistics, Statistics, compare_arms
from lrdist_keras.laboratory.summaries import FURTHER, summarize
from lrdist_keras.settings import LARGEST_RATE
from lrdist_keras.strict_json import finite_or_none
from lrdist_keras.training.run import Observer, Run, TaskData
from lrdist_keras.training.strategies.base import Strategy
from lrdist_keras.training.trainer import SequentialTrainer


@dataclass(frozen=True)
class Comparison:
    """A comparison that is ready to run: everything in it has been checked.

    Args:
        configuration: What is compared.
        folder: Where the results lie.
        trainer: Trains sequences on the encoder.
        tasks: What each sequence trains one after the other, by name of the sequence.
        distributions: Learning rates by name of the arm, on the trainer's scheme.
        strategies: What is done against forgetting, by name of the arm.
        sources: Where the tasks come from, by name of the task.
        labels: Label distributions of its tasks, by name of the sequence.
    """

    configuration: Configuration
    folder: Path
    trainer: SequentialTrainer
    tasks: Mapping[str, list[TaskData]]
    distributions: Mapping[str, Distribution]
    strategies: Mapping[str, Strategy]
    sources: Mapping[str, str]
    labels: Mapping[str, list[LabelShares]]

    def pending(self) -> list[tuple[SequenceSettings, ArmSettings, int]]:
        """Returns the runs that are not done yet; seeds outermost, to have pairs."""
        done = set(map(key_of, read_runs(self.folder)))
        configuration = self.configuration
        return [
            (sequence, arm, seed)
            for seed in configuration.seeds
            for sequence in configuration.sequences
            for arm in configuration.arms
            if (sequence.name, arm.name, seed) not in done
        ]

    def steps(self, sequence: SequenceSettings, arm: ArmSettings) -> int:
        """Returns the training steps of one run of a sequence with an arm."""
        return self.trainer.steps(self.tasks[sequence.name], strategy=arm.strategy)

    def run(
        self,
        on_start: Callable[[SequenceSettings, ArmSettings, int], None],
        on_steps: Callable[[int], None],
        on_record: Callable[[dict[str, Any]], None],
    ) -> list[dict[str, Any]]:
        """Does the pending runs and returns the records of all.

        Each finished run is one line in `runs.jsonl`, flushed to the disk, and a file
        of logits; a run that was interrupted is done again from its start.

        Args:
            on_start: Called before each run.
            on_steps: Called with the number of training steps just done.
            on_record: Called with the record of each finished run.

        Raises:
            OSError: If the folder cannot be written to, or another process works in it.
        """
        measured = Measures(self.trainer, self.configuration.measures)
        with locked(self.folder):
            cut_half_a_line(self.folder)
            for sequence, arm, seed in self.pending():
                on_start(sequence, arm, seed)
                tasks = self.tasks[sequence.name]
                rates = self.distributions[arm.name]
                strategy = self.strategies[arm.name]
                measurement = measured.begin(sequence.name, tasks, strategy, seed)
                observer = Observer(on_steps, measurement.after_task)
                run = self.trainer.run(tasks, rates, strategy, seed, observer=observer)
                record = finite_or_none(
                    {"sequence": sequence.name, "arm": arm.name, "seed": seed}
                    | _record(run, [task.name for task in tasks])
                    | measures.of_evaluations(run, tasks, self.sources, strategy)
                    | measurement.record(run)
                )
                file = self._logits_file(sequence, arm, seed)
                record["logits"] = save_logits(self.folder, file, run.logits)
                append_run(self.folder, record)
                on_record(record)
        return self.records()

    def records(self) -> list[dict[str, Any]]:
        """Returns the finished runs of this configuration, in its order."""
        return ordered(self.configuration, read_runs(self.folder))

    def save_results(self, records: Sequence[dict[str, Any]]) -> None:
        """Writes `results.json`: configuration, versions, machine, tables and runs."""
        try:
            statistics = paired_statistics(self.configuration, records).to_json()
        except NoStatistics as error:
            statistics = {"unavailable": str(error)}
        results = {
            "name": self.configuration.name,
            "configuration": self.configuration.model_dump(),
            **({"compat": compat} if (compat := self.configuration.compat) else {}),
            "versions": machine.versions(),
            "machine": machine.description(),
            "distributions": {n: d.to_json() for n, d in self.distributions.items()},
            "labels": {
                sequence: [finite_or_none(asdict(row)) for row in rows]
                for sequence, rows in self.labels.items()
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
        write_text(self.folder / "results.json", text + "\n")

    def _logits_file(
        self, sequence: SequenceSettings, arm: ArmSettings, seed: int
    ) -> str:
        configuration = self.configuration
        where = [configuration.sequences.index(sequence), configuration.arms.index(arm)]
        return f"logits/{'-'.join(map(str, [*where, seed]))}.npz"


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


def prepare(configuration: Configuration, folder: str | os.PathLike[str]) -> Comparison:
    """Loads and checks all that a comparison needs.

    Raises:
        ValueError: If the folder belongs to another configuration, or an input breaks a
            rule.
        OSError: If an input is missing or the folder cannot be written to.
    """
    folder = Path(folder)
    configuration = loading.resolved(configuration)
    if not configuration.arms:
        raise InputError("A comparison needs [[arms]], and the configuration has none.")
    records = check_claim(configuration, folder)
    given = {a.name: get(a.distribution) for a in configuration.arms if a.distribution}
    names = {name for sequence in configuration.sequences for name in sequence.tasks}
    loaded = loading.load(configuration, names)
    distributions = {
        arm.name: arm_distribution(arm, given.get(arm.name), loaded.trainer.scheme)
        for arm in configuration.arms
    }
    strategies = {
        arm.name: loading.arm_strategy(configuration, arm, loaded)
        for arm in configuration.arms
    }
    shifted = {s.name: loaded.shifted(s) for s in configuration.sequences}
    tasks = {name: list(found.tasks.values()) for name, found in shifted.items()}
    for arm in configuration.arms:
        with loading.errors_named(arm):
            for of_sequence in tasks.values():
                loaded.trainer.check(
                    of_sequence,
                    distributions[arm.name],
                    strategies[arm.name],
                    configuration.seeds[0],
                )
    inputs = inputs_of(
        configuration,
        loaded.trainer.encoder,
        loaded.tokenizer,
        loaded.texts,
        configuration.arms,
    )
    check_inputs(folder, inputs, bool(records))
    _warn_of_lost_logits(folder, records)
    claim(configuration, folder, inputs)
    return Comparison(
        configuration,
        folder,
        loaded.trainer,
        tasks,
        distributions,
        strategies,
        {n: text.source for f in shifted.values() for n, text in f.texts.items()},
        {name: found.label_table() for name, found in shifted.items()},
    )


_FREE = ("data.cache", "data.download", "seeds", "search", "measures", "report")


def check_claim(configuration: Configuration, folder: Path) -> list[dict[str, Any]]:
    """Returns the finished runs of a folder, if they are of this configuration.

    More seeds may be asked for, and other measures.

    Raises:
        InputError: If they are of another, or the folder is damaged.
    """
    records = read_runs(folder)
    content = configuration.model_dump()
    check_folder(folder, content, bool(records), "runs.jsonl", _FREE)
    return records


def claim(
    configuration: Configuration, folder: Path, inputs: Mapping[str, Input]
) -> None:
    """Makes the folder that of this configuration, see `check_claim`.

    Raises:
        InputError: If it holds finished runs of another.
        OSError: If it cannot be written to, or another process works in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        check_claim(configuration, folder)
        save_configuration(folder, configuration.model_dump())
        save_inputs(folder, inputs)


def _warn_of_lost_logits(folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
    lost = [
        f"{r['sequence']}, {r['arm']}, seed {r['seed']} ({r['logits']['file']})"
        for r in records
        if lost_logits(folder, r)
    ]
    if lost:
        print(
            f"lrdist: warning: logits in '{folder}' are missing, or are not those of "
            "their run; to do a run again, remove its line from runs.jsonl. They are "
            f"of: {'; '.join(lost)}",
            file=sys.stderr,
        )


def arm_distribution(
    arm: ArmSettings, given: Distribution | None, scheme: Scheme
) -> Distribution:
    """Returns the learning rates of an arm on the model's scheme.

    Raises:
        ValueError: If its distribution is of another scheme and is not to be resampled,
            or a rate is too large.
    """
    if given is None:
        rate = arm.rate or 0.0
        if arm.decay is not None:
            return llrd(rate, arm.decay, scheme)
        if arm.fast_head is not None:
            return fast_head(rate, arm.fast_head, scheme)
        return flat(rate, scheme)
    if given.scheme != scheme:
        if not arm.resample:
            raise InputError(
                f"Arm '{arm.name}': the distribution '{arm.distribution}' is of the "
                f"scheme {given.scheme}, the model of {scheme}; set resample = true to "
                "fit it to the model."
            )
        given = given.resample(scheme)
    rates = given if arm.rescale is None else given.rescaled(arm.rescale)
    if rates.reference_rate > LARGEST_RATE:
        raise InputError(
            f"Arm '{arm.name}': learning rates must be at most {LARGEST_RATE:g}. "
            f"Received: {rates.reference_rate:g}"
        )
    return rates


def _record(run: Run, tasks: list[str]) -> dict[str, Any]:
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
