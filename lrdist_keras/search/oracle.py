"""`BayesianHyperbandOracle`: Hyperband of Keras Tuner with proposals from a model."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import os
import random
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from keras_tuner.oracles import HyperbandOracle
from keras_tuner.src.engine import hyperparameters as hp_module
from keras_tuner.src.engine import metrics_tracking
from keras_tuner.src.engine import oracle as oracle_module
from keras_tuner.src.engine import trial as trial_module

from lrdist_keras._storage import write_text
from lrdist_keras.search.samplers import PROPOSERS
from lrdist_keras.search.surrogate import Observations, Surrogate, propose

Model = Literal["joint", "highest", "random", "cmaes", "tpe"]
SEED = "tuner/seed"
MESSAGE = "tuner/message"  # Keras Tuner's messages have no place for an error's text
_FORMAT = 1
_HYPERBAND = ("_brackets", "_current_bracket", "_current_iteration")
_LEAST = 3  # observations that a model is made of
_REPEATS_EACH = 2  # of how many repeats one of the best is to have
_ENDS = ("COMPLETED", "INVALID", "FAILED")
# How the message of a trial begins whose error another trial would have too.
FATAL = "A mistake in the program: "
_PACKAGES = {"tpe": "optuna", "cmaes": "cmaes"}


class SearchFailed(RuntimeError):
    """Trials failed, in a row or by a mistake; the message holds the traceback."""


class BayesianHyperbandOracle(HyperbandOracle):
    """Hyperband decides the budgets, a Gaussian process proposes the values.

    Trials whose `tuner/round` is 0 get the point of the largest expected improvement
    at the full budget. A promoted trial is trained again from its start, since a
    learning-rate schedule is fitted to its length. At the end the best few are repeated
    with other seeds, `tuner/seed` in their values, and the best is the one with the
    best expectation of the model: a single reward is noisy, and the best of many is
    mostly the luckiest.

    Everything random follows from the seed and the number of the trial; the whole state
    is one file, replaced at once, so that a killed search goes on as if it had not
    been: with one worker it proposes the same.

    Args:
        objective: A metric and its direction, see `keras_tuner.Objective`.
        max_epochs: Budget of a full run, in units of the smallest possible.
        factor: Reduction factor from one rung to the next.
        hyperband_iterations: How often to go through all brackets.
        seed: What everything random follows from; None draws one, or takes that of
            the state that is taken up.
        hyperparameters: The search space. Values that are no numbers are handled as
            `keras_tuner` maps them to [0, 1].
        allow_new_entries: Whether a hypermodel may add to the space.
        tune_new_entries: Whether what it adds is searched.
        max_retries_per_trial: How often a failed trial is tried again.
        max_consecutive_failed_trials: After how many failures in a row to stop.
        max_budget: Budget of the whole search in full runs, repeats included; None for
            whatever Hyperband takes.
        start_points: Values to try first, each a mapping of all names of the space.
        model: `joint`, one model of all budgets with the budget as an input; `highest`,
            of the highest budget that has enough trials; `random`, none; `tpe` and
            `cmaes`, those of the packages optuna and cmaes.
        random_share: Share of proposals that are random, in [0, 1].
        repeats: Full runs at the end that repeat the best with other seeds.
        lease: Seconds after which a worker that sent signs of life and no longer does
            is given up, and its trial goes to another.

    `lock` is held while anything changes; who reads several things at once while
    workers are served holds it too.

    Raises:
        ValueError: If an argument breaks a rule; for a space that a hypermodel makes
            at the first trial.
        ImportError: If the model's package is not installed.
    """

    def __init__(
        self,
        objective: Any = None,
        max_epochs: int = 100,
        factor: int = 3,
        hyperband_iterations: int = 1,
        seed: int | None = None,
        hyperparameters: Any = None,
        allow_new_entries: bool = True,
        tune_new_entries: bool = True,
        max_retries_per_trial: int = 0,
        max_consecutive_failed_trials: int = 3,
        *,
        max_budget: float | None = None,
        start_points: Sequence[Mapping[str, Any]] = (),
        model: Model = "joint",
        random_share: float = 0.1,
        repeats: int = 0,
        lease: float = 60.0,
    ) -> None:
        for name, value, least in (
            ("max_epochs", max_epochs, 1),
            ("factor", factor, 2),
            ("repeats", repeats, 0),
        ):
            if value < least:
                raise ValueError(
                    f"`{name}` must be at least {least}. Received: {value}"
                )
        if not lease > 0:
            raise ValueError(f"`lease` must be above 0 seconds. Received: {lease}")
        super().__init__(
            objective=objective,
            max_epochs=max_epochs,
            factor=factor,
            hyperband_iterations=hyperband_iterations,
            seed=seed,
            hyperparameters=hyperparameters,
            allow_new_entries=allow_new_entries,
            tune_new_entries=tune_new_entries,
            max_retries_per_trial=max_retries_per_trial,
            max_consecutive_failed_trials=max_consecutive_failed_trials,
        )
        # The base class takes 0 for "none given".
        self.seed = random.randint(1, 10**6) if seed is None else seed
        self._has_given_seed = seed is not None
        self._seed_state = self.seed
        self.max_budget = max_budget
        self.start_points = [dict(point) for point in start_points]
        self.model = model
        self.random_share = random_share
        self.repeats = repeats
        self.lease = lease
        self._proposed = 0
        self._repeating = False
        self._repeated: list[str] = []
        self.is_done = False  # once a worker was told so
        self.has_leases = False  # whether every worker must give signs of life
        self._seen: dict[str, float] = {}
        self.lock = threading.RLock()
        self._check_arguments()
        if hyperparameters:
            self._check_space()

    def _check_arguments(self) -> None:
        smallest = self._get_epochs(self._get_num_brackets() - 1, 0) / self.max_epochs
        if self.max_budget is not None and self.max_budget < smallest + self.repeats:
            raise ValueError(
                "`max_budget` must hold one trial of the smallest rung "
                f"({smallest:.3g} of a full run) and the {self.repeats} repeats. "
                f"Received: {self.max_budget}"
            )
        if self.model not in (known := get_args(Model)):
            raise ValueError(
                f"`model` must be one of {', '.join(known)}. Received: {self.model!r}"
            )
        package = _PACKAGES.get(self.model)
        if package is not None and importlib.util.find_spec(package) is None:
            raise ImportError(
                f"The model '{self.model}' needs the package {package}; install it "
                "with `pip install 'lrdist-keras[samplers]'`."
            )
        if not 0 <= self.random_share <= 1:
            raise ValueError(
                f"`random_share` must be in [0, 1]. Received: {self.random_share}"
            )

    def _check_space(self) -> None:
        space = self.hyperparameters.space
        if not any(isinstance(hp, hp_module.Float) for hp in space):
            raise ValueError(
                "The search space must have at least one `Float`, for example "
                "`hyperparameters.Float('rate', 1e-7, 1e-3, sampling='log')`. "
                f"Received: {[hp.name for hp in space]}"
            )
        names = {hp.name for hp in space}
        for number, point in enumerate(self.start_points):
            if set(point) != names:
                raise ValueError(
                    f"Start point {number} must name every hyperparameter and no "
                    f"other. Received: {sorted(point)}; the space: {sorted(names)}"
                )
            for hp in space:
                _check_start_value(hp, point[hp.name], f"Start point {number}")

    # Budgets.

    def budget(self, trial: Any) -> float:
        """Returns the budget of a trial in full runs."""
        return trial.hyperparameters.values["tuner/epochs"] / self.max_epochs

    @property
    def spent(self) -> float:
        """The budget of all trials that were started, in full runs."""
        with self.lock:
            return sum(map(self.budget, self.trials.values()))

    # Proposals.

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Returns the status and the values of the next trial, as Keras Tuner asks."""
        self._check_space()
        if not self._repeating:
            before = {name: copy.deepcopy(getattr(self, name)) for name in _HYPERBAND}
            response = super().populate_space(trial_id)
            if response["status"] == "RUNNING":
                values = response["values"]
                if self._affords(values["tuner/epochs"]):
                    values = self._completed(values, trial_id)
                    return {"status": "RUNNING", "values": values}
                for name, value in before.items():
                    setattr(self, name, value)
                response = {"status": "IDLE" if self.ongoing_trials else "STOPPED"}
            if response["status"] != "STOPPED":
                return response
            self._repeating = True
        return self._repeat(trial_id)

    def _affords(self, epochs: int) -> bool:
        if self.max_budget is None:
            return True
        left = self.max_budget - self.repeats - self.spent
        return epochs / self.max_epochs <= left + 1e-9

    def _completed(self, values: dict[str, Any], trial_id: str) -> dict[str, Any]:
        """Completes what Hyperband says: a proposal, or the values promoted."""
        if values["tuner/round"] == 0:
            return {**values, **self._proposal(values), SEED: 0}
        del values["tuner/trial_id"]  # what to continue from
        values["tuner/initial_epoch"] = 0
        # The base class names the bracket that was started last.
        values["tuner/bracket"] = next(
            bracket["bracket_num"]
            for bracket in self._brackets
            for trials in bracket["rounds"]
            if any(entry["id"] == trial_id for entry in trials)
        )
        return values

    def _proposal(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """Returns values of the space: a start point, a proposal, or those drawn."""
        drawn = {hp.name: drawn[hp.name] for hp in self._space() if hp.name in drawn}
        number = self._proposed
        self._proposed += 1
        if number < len(self.start_points):
            point = self.start_points[number]
            return drawn if self._duplicate(point) else dict(point)
        rng = np.random.default_rng([self.seed, number])
        if self.model == "random" or rng.random() < self.random_share:
            return drawn
        observations = self.observations()
        if self.model == "highest":
            observations = observations.highest_budget(len(self._searched()) + 1)
        if len(observations.scores) < _LEAST:
            return drawn
        pending = [self._point(t) for t in self.ongoing_trials.values()]
        shape = (len(pending), len(self._searched()))
        if self.model in ("cmaes", "tpe"):
            best = PROPOSERS[self.model](observations, self.seed)
        else:
            best = propose(observations, np.reshape(pending, shape), rng)
        searched = iter(best)
        hyperparameters = self.hyperparameters.copy()
        proposed = hyperparameters.values = {}
        for hp in self._space():
            p = None if isinstance(hp, hp_module.Fixed) else float(next(searched))
            if hyperparameters.is_active(hp):
                proposed[hp.name] = hp.value if p is None else hp.prob_to_value(p)
        return drawn if self._duplicate(proposed) else proposed

    def _repeat(self, trial_id: str) -> dict[str, Any]:
        """Repeats one of the best with another seed, the one that ran least often.

        A seed that failed is not tried again.
        """
        ranked = self._ranked() if len(self._repeated) < self.repeats else []
        if not ranked:
            return {"status": "IDLE" if self.ongoing_trials else "STOPPED"}
        few = ranked[: -(-self.repeats // _REPEATS_EACH)]
        runs = [
            sum(self.budget(trial) == 1 for trial in self._trials_of(values))
            for values in few
        ]
        values = few[runs.index(min(runs))]
        self._repeated.append(trial_id)
        own = {
            "tuner/epochs": self.max_epochs,
            "tuner/initial_epoch": 0,
            "tuner/bracket": 0,
            "tuner/round": 0,
            SEED: min(runs),
        }
        return {"status": "RUNNING", "values": {**values, **own}}

    def _compute_values_hash(self, values: Mapping[str, Any]) -> str:
        # Values are the same whatever the rung and the seed.
        own = {k: v for k, v in values.items() if not k.startswith("tuner/")}
        return super()._compute_values_hash(own)

    # What has been seen.

    def observations(self) -> Observations:
        """Returns the finished trials as points, scores (higher is better), budgets.

        A score that is not finite counts as the worst, or best, of the others.
        """
        with self.lock:
            return self._observed(self._done())

    def _observed(self, done: Sequence[Any]) -> Observations:
        sign = 1.0 if self.objective.direction == "max" else -1.0
        scores = np.array([sign * trial.score for trial in done])
        finite = scores[np.isfinite(scores)]
        if len(finite) < len(scores):
            bounds = (finite.min(), finite.max()) if len(finite) else (0.0, 0.0)
            scores = np.clip(scores, *bounds)
        return Observations(
            np.reshape([self._point(t) for t in done], (-1, len(self._searched()))),
            scores,
            np.array([self.budget(t) for t in done]),
        )

    def best_values(self) -> dict[str, Any]:
        """Returns the values of the space with the best expectation of the model.

        Raises:
            ValueError: If no trial is finished.
        """
        with self.lock:
            ranked = self._ranked()
        if not ranked:
            raise ValueError("There is no best trial, because none is finished.")
        return ranked[0]

    def get_best_trials(self, num_trials: int = 1) -> list[Any]:
        """Returns the trials of the best expectations, each that of most budget."""
        with self.lock:
            done = self._done()
            return [
                max((t for t in done if self._values(t) == values), key=self.budget)
                for values in self._ranked()[:num_trials]
            ]

    def _ranked(self) -> list[dict[str, Any]]:
        """Returns the distinct values of the highest budget, best expectation first."""
        done = self._done()
        if not done:
            return []
        observations = self._observed(done)
        highest = observations.budgets == observations.budgets.max()
        distinct: dict[bytes, tuple[np.ndarray, dict[str, Any]]] = {}
        for trial, point, chosen in zip(
            done, observations.points, highest, strict=True
        ):
            if chosen:
                distinct.setdefault(point.tobytes(), (point, self._values(trial)))
        points = np.array([point for point, _ in distinct.values()])
        rng = np.random.default_rng([self.seed, len(done)])
        expected, _ = Surrogate(observations.aligned(), rng).predict(points)
        values = [values for _, values in distinct.values()]
        return [values[i] for i in np.argsort(-expected, kind="stable")]

    def _trials_of(self, values: Mapping[str, Any]) -> list[Any]:
        return [t for t in self.trials.values() if self._values(t) == values]

    def _done(self) -> list[Any]:
        # A tuner in this process sets the status before it ends the trial.
        return [
            trial
            for trial in self.trials.values()
            if trial.status == "COMPLETED" and trial.score is not None
        ]

    def _space(self) -> list[Any]:
        return self.hyperparameters.space

    def _searched(self) -> list[Any]:
        return [hp for hp in self._space() if not isinstance(hp, hp_module.Fixed)]

    def _values(self, trial: Any) -> dict[str, Any]:
        values = trial.hyperparameters.values
        return {hp.name: values[hp.name] for hp in self._space() if hp.name in values}

    def _point(self, trial: Any) -> list[float]:
        hyperparameters = trial.hyperparameters
        values = hyperparameters.values
        return [
            hp.value_to_prob(
                values[hp.name]
                if hp.name in values and hyperparameters.is_active(hp)
                else hp.default
            )
            for hp in self._searched()
        ]

    # Workers.

    def create_trial(self, tuner_id: str) -> Any:
        """Returns a trial to run, or the one that this worker is running.

        Asking again while it runs is a sign of life. Once a worker has given one, it
        must give one every `lease` seconds.
        """
        with self._guarded():
            if self.has_leases or tuner_id in self.ongoing_trials:
                self._seen[tuner_id] = time.monotonic()
            self.expire()
            if tuner_id not in self.ongoing_trials and self._retry_queue:
                # What a failed attempt reported does not count.
                again = self.trials[self._retry_queue[-1]]
                again.metrics = metrics_tracking.MetricsTracker()
            trial = super().create_trial(tuner_id)
            stopped = trial.status == trial_module.TrialStatus.STOPPED
            if stopped:
                self._seen.pop(tuner_id, None)
            if stopped != self.is_done and trial.status != "IDLE":
                self.is_done = stopped
                self.save()
            return trial

    def update_trial(
        self, trial_id: str, metrics: Mapping[str, float], step: int = 0
    ) -> Any:
        """Takes the metrics of a trial; of a finished one the first stay."""
        with self._guarded():
            trial = self._known(trial_id)
            if trial_id in self.end_order:
                return trial
            trial = super().update_trial(trial_id, metrics, step)
            # A chief that is killed now must know it when the worker ends the trial.
            self.save()
            return trial

    def end_trial(self, trial: Any) -> None:
        """Ends a trial; one that another worker has ended already stays as it is.

        Raises:
            ValueError: If it is not one of this search, or has not come to an end.
            SearchFailed: If too many failed in a row, or it failed by a mistake that
                others would repeat.
        """
        with self._guarded():
            known = self._known(trial.trial_id)
            if message := trial.hyperparameters.values.pop(MESSAGE, None):
                trial.message = message
                print(f"Trial {trial.trial_id} failed on a worker:\n{message}")
            if trial.trial_id in self.end_order or not self._has_ended(trial, known):
                return
            if trial.trial_id in self._retry_queue:
                self._retry_queue.remove(trial.trial_id)
            if not self.allow_new_entries:
                trial.hyperparameters = known.hyperparameters
            try:
                super().end_trial(trial)
            except RuntimeError as error:
                raise SearchFailed(str(error)) from None

    def _has_ended(self, trial: Any, known: Any) -> bool:
        """Checks the end of a trial; whether it is one, or has to be run again."""
        if trial.status not in _ENDS:
            raise ValueError(
                f"A trial ends as one of {', '.join(_ENDS)}. Received: {trial.status}"
            )
        theirs, ours = trial.hyperparameters.values, known.hyperparameters.values
        if not self.allow_new_entries and not _same(theirs, ours):
            known.metrics = metrics_tracking.MetricsTracker()
            raise ValueError(
                f"The trial {trial.trial_id} of this search has other values; the "
                "worker belongs to another search."
            )
        name = self.objective.name
        if trial.status == "COMPLETED" and not known.metrics.exists(name):
            if self.has_leases:  # it went to another worker meanwhile
                return False
            raise ValueError(
                f"A completed trial must have reported the objective '{name}'. "
                f"Received: none for trial {trial.trial_id}"
            )
        if trial.status == "FAILED" and (trial.message or "").startswith(FATAL):
            # It stays to be run, once the mistake is mended.
            raise SearchFailed(trial.message)
        return True

    def expire(self) -> None:
        """Gives up the workers that are silent; their trials go to others."""
        with self._guarded():
            now = time.monotonic()
            for tuner_id, seen in list(self._seen.items()):
                if now - seen <= self.lease:
                    continue
                del self._seen[tuner_id]
                self.tuner_ids.discard(tuner_id)
                trial = self.ongoing_trials.pop(tuner_id, None)
                if trial is not None and trial.status == "RUNNING":
                    self._requeue(trial)
                    self.save()

    def _known(self, trial_id: str) -> Any:
        if trial_id not in self.trials:
            raise ValueError(
                f"There is no trial {trial_id!r} in this search; the worker belongs to "
                "another one, or to an older state of this folder."
            )
        return self.trials[trial_id]

    def _requeue(self, trial: Any) -> None:
        self._retry_queue.insert(0, trial.trial_id)  # the last is taken first

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """One thread at a time; an error leaves no lock of Keras Tuner behind."""
        with self.lock:
            try:
                yield
            except BaseException:
                if oracle_module.THREADS[self] is not None:
                    oracle_module.THREADS[self] = None
                    oracle_module.LOCKS[self].release()
                raise

    # State.

    def get_state(self) -> dict[str, Any]:
        """Everything that a search needs to go on, its trials included."""
        state = super().get_state()
        if math.isinf(self.hyperband_iterations):  # JSON has no word for it
            state["hyperband_iterations"] = None
        return {
            **state,
            "format": _FORMAT,
            "trials": [trial.get_state() for trial in self.trials.values()],
            "objective": {
                "name": self.objective.name,
                "direction": self.objective.direction,
            },
            "is_done": self.is_done,
            "proposed": self._proposed,
            "repeating": self._repeating,
            "repeated": self._repeated,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Takes up a state; trials that were running are to be run again.

        Raises:
            ValueError: If it is the state of another search.
        """
        ours = {
            "format": _FORMAT,
            "max_epochs": self.max_epochs,
            "factor": self.factor,
            "objective": {
                "name": self.objective.name,
                "direction": self.objective.direction,
            },
        }
        if self._has_given_seed:
            ours["seed"] = self.seed
        differing = [key for key in ours if _plain(ours[key]) != state.get(key)]
        space = _plain(self.hyperparameters.get_config()["space"])
        theirs = (state.get("hyperparameters") or {}).get("space", [])
        # To a part of a space a hypermodel has added the rest.
        known = all(entry in theirs for entry in space)
        if not known or (len(space) < len(theirs) and not self.allow_new_entries):
            differing.append("hyperparameters")
        if differing:
            raise ValueError(
                f"The folder '{self._project_dir}' belongs to another search; name "
                f"another folder, or remove it. What differs: {', '.join(differing)}"
            )
        self.seed = state["seed"]
        self.is_done = state["is_done"]
        trials = map(trial_module.Trial.from_state, state["trials"])
        self.trials = {trial.trial_id: trial for trial in trials}
        super().set_state(state)
        self.hyperband_iterations = state["hyperband_iterations"] or math.inf
        self._proposed = state["proposed"]
        self._repeating = state["repeating"]
        self._repeated = state["repeated"]
        self.ongoing_trials: dict[str, Any] = {}
        waiting = set(self._retry_queue)
        for trial in self.trials.values():
            if trial.status == "RUNNING" and trial.trial_id not in waiting:
                self._requeue(trial)

    def save(self) -> None:
        """Replaces the state file; the state before stays as a backup."""
        path = Path(self._get_oracle_fname())
        if path.is_file():
            backup = path.with_suffix(".bak")
            temporary = path.with_suffix(".bak.new")
            temporary.unlink(missing_ok=True)
            try:
                os.link(path, temporary)
            except OSError:  # not every file system has links
                shutil.copyfile(path, temporary)
            os.replace(temporary, backup)
        write_text(path, json.dumps(self.get_state()))

    def reload(self) -> None:
        """Takes up the state in the project folder, or its backup if it is damaged.

        Raises:
            ValueError: If it is the state of another search, or nothing can be read.
        """
        path = Path(self._get_oracle_fname())
        wanted = set(self.get_state())
        for candidate in (path, path.with_suffix(".bak")):
            try:
                text = candidate.read_text("utf-8")
                state = json.loads(text)
            except (OSError, ValueError):
                continue
            if not isinstance(state, dict):
                continue
            if state.get("format") == _FORMAT and not wanted <= set(state):
                continue
            self.set_state(state)
            if candidate != path:  # the next save makes a backup of what it finds
                write_text(path, text)
            return
        raise ValueError(
            f"The state of the search in '{path.parent}' cannot be read; remove the "
            "folder to start anew."
        )

    def _save_trial(self, trial: Any) -> None:
        # For people and other tools: the state file holds all trials.
        path = Path(self._get_trial_dir(trial.trial_id)) / "trial.json"
        write_text(path, json.dumps(trial.get_state()))


def _check_start_value(hp: Any, value: Any, what: str) -> None:
    """Raises ValueError unless the value is one that the hyperparameter can have."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(hp, hp_module.Float | hp_module.Int):
        rule = f"be a number in [{hp.min_value:g}, {hp.max_value:g}]"
        if isinstance(hp, hp_module.Int):
            number, rule = isinstance(value, int) and number, f"{rule}, a whole one"
        allowed = number and hp.min_value <= value <= hp.max_value
    else:
        rule = f"be one of {list(hp.values)}"
        allowed = value in hp.values
    if not allowed:
        raise ValueError(f"{what}: '{hp.name}' must {rule}. Received: {value!r}")


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether values are the same but for the precision of a message."""
    return one.keys() == other.keys() and all(
        math.isclose(value, other[name], rel_tol=1e-5)
        if isinstance(value, float)
        else value == other[name]
        for name, value in one.items()
    )


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))
