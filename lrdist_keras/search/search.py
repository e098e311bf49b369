"""A search for the distribution of a sequence of tasks."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lrdist_keras import machine
from lrdist_keras._storage import write_text
from lrdist_keras.config import ArmSettings, Configuration, SequenceSettings
from lrdist_keras.distribution import Distribution, flat
from lrdist_keras.errors import InputError
from lrdist_keras.laboratory import loading, metrics
from lrdist_keras.laboratory.arms import first_rates, named_distributions
from lrdist_keras.laboratory.inputs import Input, check_inputs, inputs_of, save_inputs
from lrdist_keras.laboratory.run_folder import check_folder, locked, save_configuration
from lrdist_keras.laboratory.task_data import examples_digest, with_search_slices
from lrdist_keras.search.brackets import succeeded
from lrdist_keras.search.oracle import (
    SEED,
    BayesianHyperbandOracle,
)
from lrdist_keras.search.space import FLAT, LEARNED, make_oracle
from lrdist_keras.search.trials import (
    STRENGTH,
    correlations,
    ranked_combination,
    read_trials,
    write_trials,
)
from lrdist_keras.search.tuner import PROJECT, Tuner
from lrdist_keras.training.run import Observer, TaskData
from lrdist_keras.training.shared_results import SharedResults
from lrdist_keras.training.strategies.base import Strategy
from lrdist_keras.training.strategies.plain import Plain
from lrdist_keras.training.trainer import SequentialTrainer

_COLUMNS = ("a1", "p_s", "p_o", "reward")
# What may differ between two starts of a search.
_FREE = ("data.cache", "data.download", "seeds", "measures", "report")
_PLAIN = Plain()


@dataclass(frozen=True)
class Search:
    """A search that is ready to run: everything in it has been checked.

    Args:
        configuration: What is searched.
        folder: Where the results lie.
        trainer: Trains sequences on the encoder.
        tasks: The sequence, each task with what rewards are taken on in place of its
            validation.
        oracle: Says what to try.
        strategy: What trials train with.
        arm: Where it is from, if from an arm.
        halved: Digests of all validation examples of the tasks whose rewards are taken
            on half of them, by name.
    """

    configuration: Configuration
    folder: Path
    trainer: SequentialTrainer
    tasks: list[TaskData]
    oracle: BayesianHyperbandOracle
    strategy: Strategy = _PLAIN
    arm: ArmSettings | None = None
    halved: Mapping[str, str] = field(default_factory=dict)

    def evaluate(
        self,
        values: Mapping[str, float],
        budget: float,
        seed: int,
        on_steps: Callable[[int], None] = lambda steps: None,
    ) -> dict[str, float]:
        """Trains the sequence with these rates; returns metrics on the slices.

        Among them is `learned`, 1 if all tasks were, see `metrics.learned`. The reward
        of what did not learn stays as it is measured; where an accuracy is not finite,
        the reward is NaN: the run diverged.

        Under the fault `early_stopping_first_task` the reward of less than a full run
        is a1 / 2, which the authors' code reports to its scheduler at every epoch of
        the first task; what it reports of the second task can stop no trial.

        Args:
            values: Values of the oracle's space: a learning rate per group, or one, and
                the strength where it is searched.
            budget: Share of a full run.
            seed: Number of the seed, from 0.
            on_steps: Called with the number of training steps just done.
        """
        distribution = Distribution(self.trainer.scheme, self.rates(values))
        strategy = self.strategy
        if STRENGTH in values:
            strategy = strategy.model_copy(update={STRENGTH: values[STRENGTH]})
        seed = self.configuration.search.seed + seed
        # With [first] all trials of a seed share the training of the first task.
        shared = SharedResults(self.folder / "shared", trainings=1)
        observer = Observer(on_steps, shared=shared if self._shares else None)
        with loading.errors_named(self.arm) if self.arm else nullcontext():
            run = self.trainer.run(
                self.tasks, distribution, strategy, seed, budget, observer
            )
        found = {name: getattr(metrics, name)(run.accuracy) for name in _COLUMNS}
        if "early_stopping_first_task" in self.configuration.compat and budget < 1:
            found["reward"] = found["a1"] / 2
        if not all(map(math.isfinite, found.values())):
            found["reward"] = math.nan
        learned = metrics.learned(run.accuracy, run.majority_rates, run.examples)
        return {
            **found,
            LEARNED: float(learned),
            "seconds": run.seconds,
            "compilations": run.compilations,
        }

    def run(
        self,
        on_start: Callable[[Any], None] = lambda trial: None,
        on_steps: Callable[[int], None] = lambda steps: None,
        on_end: Callable[[Any], None] = lambda trial: None,
    ) -> None:
        """Runs the trials that are left, here or as a worker of a chief.

        Raises:
            OSError: If another process works in the folder.
        """

        def evaluate(
            values: Mapping[str, Any], budget: float, seed: int
        ) -> Mapping[str, float]:
            return self.evaluate(values, budget, seed, on_steps)

        with locked(self.folder):
            Tuner(self.oracle, evaluate, self.folder, on_start, on_end).search()
            shutil.rmtree(self.folder / "shared", ignore_errors=True)

    @property
    def _shares(self) -> bool:
        return any(task.shared_rates is not None for task in self.tasks)

    def serve(self, address: str, on_end: Callable[[], Any] = lambda: None) -> None:
        """Answers workers elsewhere until the search is done, see `distributed.serve`.

        Raises:
            OSError: If another process works in the folder, or the address is taken.
        """
        from lrdist_keras.search.distributed import serve

        with locked(self.folder):
            Tuner(self.oracle, self.evaluate, self.folder)
            serve(self.oracle, address, on_end)

    def steps(self, budget: float) -> int:
        """Returns the training steps of a trial of this budget."""
        return self.trainer.steps(self.tasks, budget, self.strategy)

    def rates(self, values: Mapping[str, float]) -> dict[str, float]:
        """Returns the learning rate of each group that values of the space mean."""
        names = self.trainer.scheme.names
        return {name: values[FLAT if FLAT in values else name] for name in names}

    def rows(self) -> list[dict[str, Any]]:
        """Returns the rows of `trials.csv`: finished trials in order of their start.

        What failed or diverged is left out. `learned` is left out where trials of an
        older version, which did not report it, are among them.
        """
        rows: list[dict[str, Any]] = []
        names = (*_COLUMNS, "seconds")
        with self.oracle.lock:
            trials = [self.oracle.trials[i] for i in self.oracle.start_order]
            trials = [t for t in trials if succeeded(t)]
            trials = [t for t in trials if all(map(t.metrics.exists, names))]
            knows = all(trial.metrics.exists(LEARNED) for trial in trials)
            for trial in trials:
                values = trial.hyperparameters.values
                found = {name: trial.metrics.get_last_value(name) for name in names}
                if not _is_measured(found):
                    continue
                rows.append(
                    {
                        **{name: float(found[name]) for name in _COLUMNS},
                        **self.rates(values),
                        **{k: v for k, v in values.items() if k == STRENGTH},
                        "budget": self.oracle.budget(trial),
                        "seed": values[SEED],
                        **({LEARNED: self.oracle.meets(trial)} if knows else {}),
                        "seconds": round(float(found["seconds"]), 3),
                        "sampler": self.configuration.search.sampler,
                    }
                )
        return rows

    def save_results(self) -> Distribution | None:
        """Writes `trials.csv`, `scheme.json`, `search.json` and two distributions.

        `distribution.json` is the ranked combination of the trials, `best.json` the
        setting with the best expectation of the model, of those that ran with the
        largest budget and learned in most of their runs; if none did, of all.

        Returns:
            The ranked combination, or None while no trial is finished.
        """
        rows = self.rows()
        if not rows:
            return None
        write_trials(self.folder, self.trainer.scheme, rows)
        distribution = ranked_combination(read_trials(self.folder))
        sequence = search_sequence(self.configuration).name
        of = {
            "search": self.configuration.name,
            "sequence": sequence,
            "trials": len(rows),
        }
        arm, compat = self.configuration.search_arm, self.configuration.compat
        conditions: dict[str, Any] = {}
        if self.halved:
            conditions["rewards_on_half_of"] = dict(self.halved)
        if arm is not None:
            conditions["strategy"] = arm.strategy.name
        if compat:
            conditions["compat"] = compat
        ranking = {k: v for k, v in distribution.provenance.items() if k != "trials"}
        distribution = replace(distribution, provenance={**of, **ranking, **conditions})
        distribution.save(self.folder / "distribution.json")
        best = self._best({**of, **conditions})
        best.save(self.folder / "best.json")
        results = {
            "name": self.configuration.name,
            "sequence": sequence,
            "configuration": self.configuration.model_dump(exclude={"arms", "seeds"}),
            "arm": arm.model_dump() if arm is not None else None,
            **({"compat": compat} if compat else {}),
            "versions": machine.versions(),
            "machine": machine.description(),
            "trials": len(rows),
            **self._lost(len(rows)),
            "spent": self.oracle.spent,
            "seconds": sum(row["seconds"] for row in rows),
            "best": best.to_json(),
            "distribution": distribution.to_json(),
            **correlations(rows),
        }
        content = json.dumps(results, indent=1, allow_nan=False)
        write_text(self.folder / "search.json", content + "\n")
        return distribution

    def _best(self, provenance: Mapping[str, Any]) -> Distribution:
        """Returns the best setting, with why it is the best and how often it ran."""
        with self.oracle.lock:
            values = self.oracle.best_values()
            runs = self.oracle.runs_of(values)
        learned = sum(map(self.oracle.meets, runs))
        among = "that learned" if 2 * learned > len(runs) else "of which none learned"
        return Distribution(
            self.trainer.scheme,
            self.rates(values),
            {
                **provenance,
                **{k: v for k, v in values.items() if k == STRENGTH},
                "criterion": "highest expectation of the model at the full budget, "
                f"among the settings of the largest budget {among}",
                "reward": float(np.mean([run.score for run in runs])),
                "runs": len(runs),
                "runs_that_learned": learned,
                "budget": self.oracle.budget(runs[0]),
            },
        )

    def _lost(self, finished: int) -> dict[str, int]:
        """Returns how many trials diverged, and how many failed."""
        with self.oracle.lock:
            ended = [self.oracle.trials[i].status for i in self.oracle.end_order]
        failed = ended.count("FAILED")
        return {"diverged": len(ended) - finished - failed, "failed": failed}


def _is_measured(found: Mapping[str, float]) -> bool:
    """Whether metrics are what accuracies can give; a worker may send others."""
    accuracies = [found[name] for name in ("a1", "p_s", "p_o")]
    return all(0 <= value <= 1 for value in accuracies) and found["reward"] >= 0


def search_sequence(configuration: Configuration) -> SequenceSettings:
    """Returns the sequence that is searched.

    Raises:
        ValueError: If there are several and none is named, or it has one task.
    """
    wanted = configuration.search.sequence
    if wanted is None and len(configuration.sequences) > 1:
        raise InputError(
            "A search is of one sequence; name it with search.sequence. There are: "
            + ", ".join(f"'{s.name}'" for s in configuration.sequences)
        )
    found = next(s for s in configuration.sequences if wanted in (None, s.name))
    if len(found.tasks) < 2 and found.shift == "task":
        raise InputError(
            "A search needs a sequence of at least two tasks, since its reward is of "
            f"the first as well. Received: '{found.name}'"
        )
    return found


def prepare(configuration: Configuration, folder: str | os.PathLike[str]) -> Search:
    """Loads and checks all that a search needs.

    Raises:
        ValueError: If the folder belongs to another configuration, or an input breaks a
            rule.
        OSError: If an input is missing or the folder cannot be written to.
    """
    folder = Path(folder)
    configuration = loading.resolved(configuration)
    settings = configuration.search
    sequence = search_sequence(configuration)
    state = folder / PROJECT / "oracle.json"
    arm = configuration.search_arm
    # Of the arms only that one counts, wherever it stands.
    own = configuration.model_copy(update={"arms": [arm]}) if arm else configuration
    content = own.model_dump()
    free = _FREE if arm else (*_FREE, "arms")
    check_folder(folder, content, state.is_file(), f"{PROJECT}/oracle.json", free)
    training = configuration.training.model_copy(update={"curve_points": 0})
    configuration = configuration.model_copy(update={"training": training})
    whole = loading.load(configuration, sequence.tasks)
    inputs = inputs_of(
        configuration,
        whole.trainer.encoder,
        whole.tokenizer,
        whole.texts,
        [arm] if arm else [],
        whole.given,
    )
    check_inputs(folder, inputs, state.is_file())
    loaded, halved = whole.shifted(sequence), {}
    if "report_on_tuning_split" in configuration.compat:
        tasks = list(loaded.tasks.values())
    else:
        tasks = with_search_slices(configuration, loaded.tasks, loaded.texts)
        halved = {n: examples_digest(loaded.tasks[n]) for n in loaded.given}
    if (first := configuration.first) is not None:
        given = named_distributions(configuration.model_copy(update={"arms": []}))
        shared = first_rates(first, given, loaded.trainer.scheme)
        tasks[0] = replace(tasks[0], shared_rates=shared)
    strategy = loading.arm_strategy(configuration, arm, loaded) if arm else _PLAIN
    with loading.errors_named(arm) if arm else nullcontext():
        loaded.trainer.check(
            tasks, flat(settings.high, loaded.trainer.scheme), strategy, settings.seed
        )
    oracle = make_oracle(
        settings,
        loaded.trainer.scheme,
        _fingerprint(configuration, inputs),
        getattr(strategy, STRENGTH, None),
    )
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        save_configuration(folder, content)
        save_inputs(folder, inputs)
    return Search(
        configuration, folder, loaded.trainer, tasks, oracle, strategy, arm, halved
    )


def _fingerprint(configuration: Configuration, inputs: Mapping[str, Input]) -> str:
    """Returns a hash of what the trials of all workers must have in common."""
    content = configuration.model_dump(
        exclude={"name", "arms", "seeds", "data", "measures", "report"}
    )
    arm = configuration.search_arm
    content["arm"] = arm.model_dump() if arm else None
    content["inputs"] = {name: entry.sha256 for name, entry in inputs.items()}
    # The same weights may lie elsewhere on another machine.
    del content["model"]["preset"]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
