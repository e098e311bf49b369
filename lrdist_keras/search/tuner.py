"""A search for the distribution of a sequence of tasks."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner.src.engine import trial as trial_module
from keras_tuner.src.engine.base_tuner import BaseTuner

from lrdist_keras._storage import claim_folder, locked, write_text
from lrdist_keras.config import (
    ArmSettings,
    Configuration,
    DecayPoint,
    SearchSettings,
    SequenceSettings,
)
from lrdist_keras.data.batches import take
from lrdist_keras.data.tasks import search_slice
from lrdist_keras.distribution import (
    OF_TRIALS,
    Distribution,
    flat,
    get,
    llrd,
    ranked_combination,
    read_trials,
)
from lrdist_keras.groups import Scheme
from lrdist_keras.laboratory import loading, metrics
from lrdist_keras.search.oracle import (
    FATAL,
    MESSAGE,
    SEED,
    BayesianHyperbandOracle,
    SearchFailed,
)
from lrdist_keras.training.mlm_fisher import PretrainingFisher
from lrdist_keras.training.trainer import SequentialTrainer, TaskData

__all__ = ["BayesianHyperbandOracle", "Search", "SearchFailed", "Tuner", "prepare"]

OBJECTIVE = "reward"
FLAT = "rate"  # the hyperparameter of a flat space
STRENGTH = "strength"  # that of the strategy, where it is searched
_PROJECT = "search"
# Errors that another learning rate would not mend.
_PROGRAMMING = (
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    SyntaxError,
    TypeError,
)
_COLUMNS = ("a1", "p_s", "p_o", "reward")
_FEWEST = 3  # settings to correlate
_PLAIN = ArmSettings(name="search", rate=1.0)  # the rates are those of the trial
_FINGERPRINT = "tuner/configuration"
_LONGEST_MESSAGE = 20_000  # characters, of which the last count
_LONGEST_WAIT = 2.0  # seconds between two questions for work

Evaluate = Callable[[Mapping[str, Any], float, int], Mapping[str, float]]


class Tuner(BaseTuner):
    """Runs the trials of an oracle by a function, here or for a chief elsewhere.

    A killed one goes on where it stood. An error of a trial is shown with its
    traceback; one that is a mistake in the program ends the search.

    Args:
        oracle: Says what to try.
        evaluate: Called with the values of the space, the budget as a share of a full
            run and the number of the seed; returns metrics, the objective among them.
        folder: Where the state lies.
        on_start: Called with each trial before it runs.
        on_end: Called with each trial after it ran.

    Raises:
        ConnectionError: If the chief searches something else.
    """

    def __init__(
        self,
        oracle: BayesianHyperbandOracle,
        evaluate: Evaluate,
        folder: str | os.PathLike[str],
        on_start: Callable[[Any], None] = lambda trial: None,
        on_end: Callable[[Any], None] = lambda trial: None,
    ) -> None:
        self.evaluate = evaluate
        self._budget = oracle.budget
        self._beat = oracle.lease / 6  # seconds between two signs of life
        self._started, self._ended = on_start, on_end
        self._failure: SearchFailed | None = None  # of the search, told meanwhile
        oracle.verbose = 0
        super().__init__(oracle, directory=str(folder), project_name=_PROJECT)
        self._is_remote = not isinstance(self.oracle, BayesianHyperbandOracle)
        if self._is_remote:
            from lrdist_keras.search.distributed import PatientClient

            self.oracle: Any = PatientClient(self.oracle)
            if _outline(self.oracle.get_space()) != _outline(oracle.get_space()):
                raise ConnectionError(
                    "The chief searches with another configuration; start the worker "
                    "with the same CONFIG and --set as the chief, and set "
                    "model.precision where 'auto' means different things on them."
                )

    def _populate_initial_space(self) -> None:
        # Keras Tuner looks for its own file, which is written later than the oracle's.
        if Path(self.oracle._get_oracle_fname()).exists():
            self.oracle.reload()

    def search(self) -> None:
        """Runs trials until the oracle has none left, waiting where it asks to."""
        wait = 0.05
        while True:
            trial = self.oracle.create_trial(self.tuner_id)
            if trial.status == trial_module.TrialStatus.STOPPED:
                return
            if trial.status == trial_module.TrialStatus.IDLE:
                time.sleep(wait)
                wait = min(2 * wait, self._beat, _LONGEST_WAIT)
                continue
            wait = 0.05
            self._started(trial)
            with self._alive():
                self._try_run_and_update_trial(trial)
            self.on_trial_end(trial)
            self._ended(trial)

    def run_trial(self, trial: Any) -> dict[str, float]:
        """Evaluates one trial; returns its metrics."""
        values = {
            name: value
            for name, value in trial.hyperparameters.values.items()
            if not name.startswith("tuner/")
        }
        seed = trial.hyperparameters.values[SEED]
        found = dict(self.evaluate(values, self._budget(trial), seed))
        if self._failure is not None:
            raise self._failure
        return found

    def _try_run_and_update_trial(self, trial: Any) -> None:
        try:
            self._run_and_update_trial(trial)
            trial.status = trial_module.TrialStatus.COMPLETED
        except _PROGRAMMING:
            if self._is_remote:
                trial.status = trial_module.TrialStatus.FAILED
                self._explain(trial, traceback.format_exc(), FATAL)
                with suppress(SearchFailed, ConnectionError):
                    self.oracle.end_trial(trial)
            raise
        except (SearchFailed, ConnectionError):  # what the chief says of the search
            raise
        except Exception:
            trial.status = trial_module.TrialStatus.INVALID
            self._explain(trial, traceback.format_exc())
            print(f"Trial {trial.trial_id} failed:\n{trial.message}", flush=True)

    def _explain(self, trial: Any, message: str, prefix: str = "") -> None:
        trial.message = prefix + message[-_LONGEST_MESSAGE:]
        if self._is_remote:
            trial.hyperparameters.values[MESSAGE] = trial.message

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """Gives a chief signs of life while a trial runs."""
        if not self._is_remote:
            yield
            return
        over = threading.Event()

        def beat() -> None:
            while not over.wait(self._beat):
                try:
                    self.oracle.create_trial(self.tuner_id)
                except SearchFailed as error:
                    self._failure = error
                    return
                except Exception:
                    pass  # it may answer when the trial ends

        with suppress(Exception):
            self.oracle.create_trial(self.tuner_id)
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(timeout=1.0)  # it may be waiting for a chief that is gone

    def save(self) -> None:
        """Does nothing: the oracle saves itself at every change."""

    def reload(self) -> None:
        """Takes up the state of the oracle."""
        self.oracle.reload()


def _outline(space: Any) -> dict[str, Any]:
    """Returns what of a space arrives unchanged: names, and values that are fixed."""
    return {hp.name: getattr(hp, "value", None) for hp in space.space}


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
        arm: The strategy that trials train with.
        fisher: Fisher of the pretrained weights, if the strategy needs it.
    """

    configuration: Configuration
    folder: Path
    trainer: SequentialTrainer
    tasks: list[TaskData]
    oracle: BayesianHyperbandOracle
    arm: ArmSettings = _PLAIN
    fisher: PretrainingFisher | None = None

    def evaluate(
        self,
        values: Mapping[str, float],
        budget: float,
        seed: int,
        on_steps: Callable[[int], None] = lambda steps: None,
    ) -> dict[str, float]:
        """Trains the sequence with these rates; returns metrics on the slices.

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
        arm = self.arm
        if STRENGTH in values:
            arm = arm.model_copy(update={STRENGTH: values[STRENGTH]})
        seed = self.configuration.search.seed + seed
        run = self.trainer.run(
            self.tasks,
            distribution,
            arm,
            seed,
            on_steps,
            budget=budget,
            pretraining_fisher=self.fisher.fisher if self.fisher else None,
        )
        found = {name: getattr(metrics, name)(run.accuracy) for name in _COLUMNS}
        if "early_stopping_first_task" in self.configuration.compat and budget < 1:
            found["reward"] = found["a1"] / 2
        return {
            **found,
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
        return self.trainer.steps(self.tasks, budget, self.arm)

    def rates(self, values: Mapping[str, float]) -> dict[str, float]:
        """Returns the learning rate of each group that values of the space mean."""
        names = self.trainer.scheme.names
        return {name: values[FLAT if FLAT in values else name] for name in names}

    def rows(self) -> list[dict[str, Any]]:
        """Returns the rows of `trials.csv`: finished trials in order of their start."""
        rows: list[dict[str, Any]] = []
        names = (*_COLUMNS, "seconds")
        with self.oracle.lock:
            for trial_id in self.oracle.start_order:
                trial = self.oracle.trials[trial_id]
                completed = trial.status == trial_module.TrialStatus.COMPLETED
                if not completed or not all(map(trial.metrics.exists, names)):
                    continue
                values = trial.hyperparameters.values
                found = {name: trial.metrics.get_best_value(name) for name in names}
                rows.append(
                    {
                        **{name: found[name] for name in _COLUMNS},
                        **self.rates(values),
                        **{k: v for k, v in values.items() if k == STRENGTH},
                        "budget": self.oracle.budget(trial),
                        "seed": values[SEED],
                        "seconds": round(found["seconds"], 3),
                        "sampler": self.configuration.search.sampler,
                    }
                )
        return rows

    def save_results(self) -> Distribution | None:
        """Writes `trials.csv`, `scheme.json`, `search.json` and two distributions.

        `distribution.json` is the ranked combination of the trials, `best.json` the
        setting of the largest budget with the best expectation of the model.

        Returns:
            The ranked combination, or None while no trial is finished.
        """
        rows = self.rows()
        if not rows:
            return None
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        scheme = json.dumps(self.trainer.scheme.to_json()) + "\n"
        write_text(self.folder / "scheme.json", scheme)
        write_text(self.folder / "trials.csv", text.getvalue())
        distribution = ranked_combination(read_trials(self.folder))
        sequence = search_sequence(self.configuration).name
        provenance = {
            "search": self.configuration.name,
            "sequence": sequence,
            "trials": len(rows),
            "base": distribution.provenance["base"],
            "ranked": distribution.provenance["ranked"],
        }
        arm, compat = self.configuration.search_arm, self.configuration.compat
        conditions: dict[str, Any] = {}
        if arm is not None:
            conditions["strategy"] = arm.strategy
        if compat:
            conditions["compat"] = compat
        distribution = replace(distribution, provenance={**provenance, **conditions})
        distribution.save(self.folder / "distribution.json")
        values = self.oracle.best_values()
        best = Distribution(
            self.trainer.scheme,
            self.rates(values),
            {
                **{k: provenance[k] for k in ("search", "sequence", "trials")},
                **conditions,
                **{k: v for k, v in values.items() if k == STRENGTH},
            },
        )
        best.save(self.folder / "best.json")
        results = {
            "name": self.configuration.name,
            "sequence": sequence,
            "configuration": self.configuration.model_dump(exclude={"arms", "seeds"}),
            "arm": arm.model_dump() if arm is not None else None,
            **({"compat": compat} if compat else {}),
            "versions": loading.versions(),
            "machine": loading.machine(),
            "trials": len(rows),
            "spent": self.oracle.spent,
            "seconds": sum(row["seconds"] for row in rows),
            "best": best.to_json(),
            "distribution": distribution.to_json(),
            **correlations(rows),
        }
        content = json.dumps(results, indent=1, allow_nan=False)
        write_text(self.folder / "search.json", content + "\n")
        return distribution


def correlations(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns rank correlations that say whether rungs and reward mean anything.

    Args:
        rows: Trials as `Search.rows` gives them.

    Returns:
        `between_rungs`: for two budgets that at least three settings ran with,
        Spearman's correlation of their rewards, averaged over seeds, and the number of
        settings; `reward_and_forgetting`: that of reward and a1 - p_o over the trials
        of the largest budget. None where there are fewer than three or one does not
        vary.
    """
    names = [k for k in rows[0] if k not in OF_TRIALS or k == STRENGTH] if rows else []
    runs: dict[float, dict[tuple, list[float]]] = {}
    for row in rows:
        setting = tuple(row[name] for name in names)
        runs.setdefault(row["budget"], {}).setdefault(setting, []).append(row["reward"])
    rewards = {
        budget: {setting: float(np.mean(found)) for setting, found in of.items()}
        for budget, of in runs.items()
    }
    budgets = sorted(rewards)
    between = [
        {
            "budgets": [low, high],
            "settings": len(both),
            "spearman": _spearman(
                [rewards[low][s] for s in both], [rewards[high][s] for s in both]
            ),
        }
        for i, low in enumerate(budgets)
        for high in budgets[i + 1 :]
        if len(both := [s for s in rewards[low] if s in rewards[high]]) >= _FEWEST
    ]
    full = [row for row in rows if row["budget"] == budgets[-1]]
    found = _spearman(
        [row["reward"] for row in full],
        [row["a1"] - row["p_o"] for row in full],
    )
    return {"between_rungs": between, "reward_and_forgetting": found}


def _spearman(a: list[float], b: list[float]) -> float | None:
    from scipy.stats import spearmanr

    if len(a) < _FEWEST or len(set(a)) == 1 or len(set(b)) == 1:
        return None
    return float(spearmanr(a, b).statistic)


def search_sequence(configuration: Configuration) -> SequenceSettings:
    """Returns the sequence that is searched.

    Raises:
        ValueError: If there are several and none is named, or it has one task.
    """
    wanted = configuration.search.sequence
    if wanted is None and len(configuration.sequences) > 1:
        raise ValueError(
            "A search is of one sequence; name it with search.sequence. There are: "
            + ", ".join(f"'{s.name}'" for s in configuration.sequences)
        )
    found = next(s for s in configuration.sequences if wanted in (None, s.name))
    if len(found.tasks) < 2 and found.shift == "task":
        raise ValueError(
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
    folder.mkdir(parents=True, exist_ok=True)
    configuration = loading.resolved(configuration)
    settings = configuration.search
    sequence = search_sequence(configuration)
    state = folder / _PROJECT / "oracle.json"
    arm = configuration.search_arm
    # Of the arms only that one counts, wherever it stands.
    own = configuration.model_copy(update={"arms": [arm]}) if arm else configuration
    free = ("data.cache", "data.download", "seeds", "measures", "report")
    with locked(folder):
        claim_folder(
            folder,
            own.model_dump(),
            has_results=state.is_file(),
            results=f"{_PROJECT}/oracle.json",
            free=free if arm else (*free, "arms"),
        )
    training = configuration.training.model_copy(update={"curve_points": 0})
    configuration = configuration.model_copy(update={"training": training})
    loaded = loading.load(configuration, sequence.tasks).shifted(sequence)
    tasks = []
    for name, task in loaded.tasks.items():
        if "report_on_tuning_split" in configuration.compat:
            tasks.append(task)
            continue
        rng = np.random.default_rng(0)
        rest, chosen = search_slice(loaded.train[name], settings.slice_examples, rng)
        wanted = task.train_examples or 0
        if wanted > len(rest):
            raise ValueError(
                f"Task '{name}': `train_examples` must be at most the {len(rest)} that "
                f"the slice of the search leaves. Received: {wanted}"
            )
        tasks.append(
            replace(
                task,
                train=take(task.train, rest),
                validation=take(task.train, chosen),
            )
        )
    fisher = None
    if arm is not None and arm.strategy == "ewc_pretraining":
        fisher = loading.arm_fisher(configuration, arm, loaded)
    fingerprint = _fingerprint(configuration)
    oracle = make_oracle(
        settings, loaded.trainer.scheme, fingerprint, arm.strength if arm else None
    )
    return Search(
        configuration, folder, loaded.trainer, tasks, oracle, arm or _PLAIN, fisher
    )


def _fingerprint(configuration: Configuration) -> str:
    """Returns a hash of what the trials of all workers must have in common."""
    content = configuration.model_dump(
        exclude={"name", "arms", "seeds", "data", "measures", "report"}
    )
    arm = configuration.search_arm
    content["arm"] = arm.model_dump() if arm else None
    # The same weights may lie elsewhere on another machine.
    del content["model"]["preset"]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def make_oracle(
    settings: SearchSettings,
    scheme: Scheme,
    fingerprint: str = "",
    strength: float | None = None,
) -> BayesianHyperbandOracle:
    """Returns the oracle of a configuration, on the groups of a scheme.

    Args:
        settings: How it searches.
        scheme: The groups.
        fingerprint: What a chief and its workers must agree in.
        strength: Where the strength is searched: that of the start points.

    Raises:
        ValueError: If the settings contradict each other.
        FileNotFoundError: If a start point is no distribution.
    """
    space = keras_tuner.HyperParameters()
    for name in [FLAT] if settings.space == "flat" else scheme.names:
        space.Float(name, settings.low, settings.high, sampling="log")
    fixed: dict[str, Any] = {_FINGERPRINT: fingerprint}
    if settings.strength is not None:
        least, most = settings.strength
        space.Float(STRENGTH, least, most, sampling="log")
        fixed[STRENGTH] = min(max(strength or least, least), most)
    space.Fixed(_FINGERPRINT, fingerprint)
    points = [{**point, **fixed} for point in _start_points(settings, scheme)]
    models = {"bayesian_hyperband": settings.model, "gaussian_process": settings.model}
    by_rungs = settings.sampler in ("bayesian_hyperband", "hyperband")
    named: Any = {"hyperband": "random", **models}
    return BayesianHyperbandOracle(
        keras_tuner.Objective(OBJECTIVE, "max"),
        max_epochs=settings.units if by_rungs else 1,
        factor=settings.factor,
        hyperband_iterations=0,  # as many as the budget allows
        seed=settings.seed,
        hyperparameters=space,
        allow_new_entries=False,
        max_retries_per_trial=settings.retries,
        max_budget=settings.budget,
        start_points=points,
        model=named.get(settings.sampler, settings.sampler),
        random_share=settings.random_share,
        repeats=settings.repeats,
    )


def _start_points(
    settings: SearchSettings, scheme: Scheme
) -> Iterator[dict[str, float]]:
    def inside(rate: float) -> float:
        return min(max(rate, settings.low), settings.high)

    for point in settings.start_points:
        if settings.space == "flat":
            if isinstance(point, float):
                yield {FLAT: inside(point)}
            continue
        if isinstance(point, DecayPoint):
            distribution = llrd(point.rate, point.decay, scheme)
        elif isinstance(point, str):
            distribution = get(point).resample(scheme)
        else:
            distribution = flat(point, scheme)
        yield {name: inside(rate) for name, rate in distribution.rates.items()}
