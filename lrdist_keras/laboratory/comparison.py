"""Arms x sequences x seeds: a table of runs that can be interrupted and taken up."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lrdist_keras.config import ArmSettings, Configuration, SequenceSettings
from lrdist_keras.data.shifts import LabelShares
from lrdist_keras.distribution import Distribution
from lrdist_keras.errors import InputError
from lrdist_keras.laboratory import loading, measures
from lrdist_keras.laboratory.arms import (
    Rates,
    arm_rates,
    by_name,
    check_counts,
    first_rates,
    for_run,
    named_distributions,
)
from lrdist_keras.laboratory.inputs import Input, check_inputs, inputs_of, save_inputs
from lrdist_keras.laboratory.measures import Measures
from lrdist_keras.laboratory.records import (
    append_run,
    cut_half_a_line,
    key_of,
    lost_logits,
    read_runs,
    save_logits,
)
from lrdist_keras.laboratory.results import (
    ordered,
    rates_record,
    record_of,
    save_results,
)
from lrdist_keras.laboratory.run_folder import check_folder, locked, save_configuration
from lrdist_keras.laboratory.saving import KeptModel, ModelKeeper, Trained
from lrdist_keras.laboratory.sharing import Sharing
from lrdist_keras.laboratory.task_data import examples_digest, validation_half
from lrdist_keras.printable import printable
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
        rates: Learning rates by name of the arm, on the trainer's scheme; of an
            arm with `rates_from` those of the first task.
        strategies: What is done against forgetting, by name of the arm.
        loaded: Model, texts and tokenizer, by name of the sequence.
        inputs: What the numbers depend on beside the configuration.
    """

    configuration: Configuration
    folder: Path
    trainer: SequentialTrainer
    tasks: Mapping[str, list[TaskData]]
    rates: Mapping[str, Rates]
    strategies: Mapping[str, Strategy]
    loaded: Mapping[str, loading.Loaded]
    inputs: dict[str, Input]

    @property
    def distributions(self) -> dict[str, Distribution]:
        """The learning rates by name, see `arms.by_name`."""
        return by_name(self.rates)

    @property
    def labels(self) -> dict[str, list[LabelShares]]:
        """Label distributions of the tasks, by name of the sequence."""
        return {name: found.label_table() for name, found in self.loaded.items()}

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
        keep: ModelKeeper | None = None,
    ) -> list[dict[str, Any]]:
        """Does the pending runs and returns the records of all.

        Each finished run is one line in `runs.jsonl`, flushed to the disk, and a file
        of logits; a run that was interrupted is done again from its start.

        Args:
            on_start: Called before each run.
            on_steps: Called with the number of training steps just done.
            on_record: Called with the record of each finished run.
            keep: Who keeps models of runs, None for nobody.

        Raises:
            OSError: If the folder cannot be written to, or another process works in it.
        """
        measured = Measures(self.trainer, self.configuration.measures)
        sharing = Sharing(
            self.folder / "shared",
            self.configuration,
            self.rates,
            self.strategies,
            {name: tasks[0].is_begun for name, tasks in self.tasks.items()},
        )
        with locked(self.folder):
            cut_half_a_line(self.folder)
            pending = self.pending()
            for number, (sequence, arm, seed) in enumerate(pending, start=1):
                on_start(sequence, arm, seed)
                tasks = self.tasks[sequence.name]
                texts = self.loaded[sequence.name].texts
                sources = {name: text.source for name, text in texts.items()}
                rates = for_run(arm, self.rates[arm.name], len(tasks))
                strategy = self.strategies[arm.name]
                measurement = measured.begin(sequence.name, tasks, strategy, seed)
                shared = sharing.of_run(sequence, arm, seed)
                kept = KeptModel(len(tasks), strategy)

                def after_task(*now: Any, watch: Any = (measurement, kept)) -> None:
                    for one in watch if keep else watch[:1]:
                        one.after_task(*now)

                observer = Observer(on_steps, after_task, shared)
                with loading.errors_named(arm):
                    run = self.trainer.run(
                        tasks, rates, strategy, seed, observer=observer
                    )
                record = finite_or_none(
                    {"sequence": sequence.name, "arm": arm.name, "seed": seed}
                    | record_of(run, [task.name for task in tasks])
                    | ({} if arm.rates_from is None else rates_record(run))
                    | measures.of_evaluations(run, tasks, sources, strategy)
                    | measurement.record(run)
                )
                file = self._logits_file(sequence, arm, seed)
                record["logits"] = save_logits(self.folder, file, run.logits)
                if keep is not None:
                    keep(self.trained(sequence, arm, seed, run, kept), record)
                append_run(self.folder, record)
                sharing.forget_all_but(pending[number:])
                on_record(record)
        return self.records()

    def trained(
        self,
        sequence: SequenceSettings,
        arm: ArmSettings,
        seed: int,
        run: Run,
        kept: KeptModel,
    ) -> Trained:
        """Returns a run that has ended, as it can be saved."""
        tasks = self.tasks[sequence.name]
        return Trained(
            self.loaded[sequence.name],
            sequence,
            arm,
            seed,
            tasks,
            self.inputs,
            run,
            kept.models,
        )

    def records(self) -> list[dict[str, Any]]:
        """Returns the finished runs of this configuration, in its order."""
        return ordered(self.configuration, read_runs(self.folder))

    def save_results(self, records: Sequence[dict[str, Any]]) -> None:
        """Writes `results.json`: configuration, versions, machine, tables and runs."""
        save_results(
            self.folder, self.configuration, records, self.distributions, self.labels
        )

    def _logits_file(
        self, sequence: SequenceSettings, arm: ArmSettings, seed: int
    ) -> str:
        configuration = self.configuration
        where = [configuration.sequences.index(sequence), configuration.arms.index(arm)]
        return f"logits/{'-'.join(map(str, [*where, seed]))}.npz"


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
    found = assembled(configuration, folder)
    check_inputs(folder, found.inputs, bool(records))
    _warn_of_lost_logits(folder, records)
    claim(configuration, folder, found.inputs)
    return found


def assembled(configuration: Configuration, folder: Path) -> Comparison:
    """Returns a comparison with all that its runs need; the folder is left alone.

    Args:
        configuration: What is compared, resolved.
        folder: Where the results will lie.

    Raises:
        ValueError: If an input breaks a rule.
        OSError: If an input is missing.
    """
    given = named_distributions(configuration)
    check_counts(configuration)
    names = {name for sequence in configuration.sequences for name in sequence.tasks}
    loaded = loading.load(configuration, names)
    scheme = loaded.trainer.scheme
    rates = {arm.name: arm_rates(arm, given, scheme) for arm in configuration.arms}
    strategies = {
        arm.name: loading.arm_strategy(configuration, arm, loaded)
        for arm in configuration.arms
    }
    shifted = {s.name: loaded.shifted(s) for s in configuration.sequences}
    tasks = {name: list(found.tasks.values()) for name, found in shifted.items()}
    for of_sequence in tasks.values():
        of_sequence[0] = _reported(of_sequence[0], rates)
        if configuration.first is not None:
            shared = first_rates(configuration.first, given, scheme)
            of_sequence[0] = replace(of_sequence[0], shared_rates=shared)
    for arm in configuration.arms:
        with loading.errors_named(arm):
            for of_sequence in tasks.values():
                loaded.trainer.check(
                    of_sequence,
                    for_run(arm, rates[arm.name], len(of_sequence)),
                    strategies[arm.name],
                    configuration.seeds[0],
                )
    inputs = inputs_of(
        configuration,
        loaded.trainer.encoder,
        loaded.tokenizer,
        loaded.texts,
        configuration.arms,
        loaded.given,
    )
    return Comparison(
        configuration, folder, loaded.trainer, tasks, rates, strategies, shifted, inputs
    )


def _reported(first: TaskData, rates: Mapping[str, Rates]) -> TaskData:
    """Returns the first task with the validation examples that no search has used.

    A search on a loaded model takes its rewards from half of them.
    """
    if first.given is None:
        return first
    provenance = [d.provenance for of_arm in rates.values() for d in of_arm]
    if examples_digest(first) not in json.dumps(provenance, default=str):
        return first
    rest = validation_half(first, 1)
    print(
        f"lrdist: '{printable(first.name)}' is reported on {len(rest.validation):,} of "
        f"its {len(first.validation):,} validation examples: an arm's rates were "
        "searched with rewards on the others.",
        file=sys.stderr,
    )
    return rest


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
