"""`DurableHyperbandOracle`: Hyperband of Keras Tuner for workers that come and go."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from keras_tuner.src.engine import metrics_tracking
from keras_tuner.src.engine import oracle as oracle_module
from keras_tuner.src.engine import trial as trial_module

from lrdist_keras._storage import write_text
from lrdist_keras.errors import InputError, SearchFailed
from lrdist_keras.search.brackets import SteadyHyperbandOracle
from lrdist_keras.search.saved_state import ENDS, FORMAT, plain, read_state

MESSAGE = "tuner/message"  # Keras Tuner's messages have no place for an error's text
# How the message of a trial begins whose error another trial would have too.
FATAL = "A mistake in the program: "
_LONGEST = 300  # characters of what is wrong with a file
_FORMER = {"COMPLETE": "COMPLETED"}  # how Keras Tuner once called it


class DurableHyperbandOracle(SteadyHyperbandOracle):
    """Hyperband whose trials survive: those of a lost worker, those of a killed search.

    One lock guards everything, a worker that falls silent loses its trial to another,
    and the whole state is one file, replaced at once.

    A trial whose objective is not finite has diverged: it ends as INVALID, without a
    score. It is no failure, of which some in a row end the search, and is not tried
    again, for it would diverge again.

    Args:
        seed: What everything random follows from; None draws one, or takes that of
            the state that is taken up.
        lease: Seconds after which a worker that sent signs of life and no longer does
            is given up, and its trial goes to another.
        **options: Those of `keras_tuner.oracles.HyperbandOracle`.

    `lock` is held while anything changes; who reads several things at once while
    workers are served holds it too.

    Raises:
        ValueError: If `lease` is not above 0.
    """

    def __init__(self, *, seed: int | None, lease: float, **options: Any) -> None:
        if not lease > 0:
            raise InputError(f"`lease` must be above 0 seconds. Received: {lease}")
        super().__init__(seed=seed, **options)
        # The base class takes 0 for "none given".
        self.seed = random.randint(1, 10**6) if seed is None else seed
        self._has_given_seed = seed is not None
        self._seed_state = self.seed
        self.lease = lease
        self.is_done = False  # once a worker was told so
        self.has_leases = False  # whether every worker must give signs of life
        self._seen: dict[str, float] = {}
        self.lock = threading.RLock()
        # One lock, not two: `keras_tuner.synchronized` may guard who calls us.
        oracle_module.LOCKS[self] = self.lock

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
                again.metrics, again.message = metrics_tracking.MetricsTracker(), None
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
            with _quiet(trial, metrics.values()):
                trial = super().update_trial(trial_id, metrics, step)
            # A chief that is killed now must know it when the worker ends the trial.
            self.save()
            return trial

    def end_trial(
        self,
        trial: Any = None,
        status: str = "COMPLETED",
        *,
        trial_id: str | None = None,
    ) -> None:
        """Ends a trial; one that another worker has ended already stays as it is.

        Args:
            trial: The trial, with the status that it ends with, `COMPLETED` where it
                says none and the objective was reported; or its id.
            status: How a trial that is given by its id ends.
            trial_id: Its id, as older versions of Keras Tuner call it.

        Raises:
            ValueError: If it is not one of this search, or has not come to an end.
            SearchFailed: If too many failed in a row, or it failed by a mistake that
                others would repeat.
        """
        with self._guarded():
            if isinstance(ended := trial_id or trial, str):
                values = self._known(ended).hyperparameters
                trial = trial_module.Trial(values, ended, status)
            trial.status = _FORMER.get(trial.status, trial.status)
            known = self._known(trial.trial_id)
            if trial.status == "RUNNING" and known.metrics.exists(self.objective.name):
                trial.status = "COMPLETED"  # who ends it forgot to say so
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
        if trial.status not in ENDS:
            raise InputError(
                f"A trial ends as one of {', '.join(ENDS)}. Received: {trial.status}"
            )
        theirs, ours = trial.hyperparameters.values, known.hyperparameters.values
        if not self.allow_new_entries and not _same(theirs, ours):
            known.metrics = metrics_tracking.MetricsTracker()
            raise InputError(
                f"The trial {trial.trial_id} of this search has other values; the "
                "worker belongs to another search."
            )
        name = self.objective.name
        if trial.status == "COMPLETED" and not known.metrics.exists(name):
            if self.has_leases:  # it went to another worker meanwhile
                return False
            raise InputError(
                f"A completed trial must have reported the objective '{name}'. "
                f"Received: none for trial {trial.trial_id}"
            )
        if trial.status == "FAILED" and (trial.message or "").startswith(FATAL):
            # It stays to be run, once the mistake is mended.
            raise SearchFailed(trial.message)
        return True

    def score_trial(self, trial: Any) -> None:
        """Takes the score of a trial; NaN for any that is not finite."""
        with _quiet(trial):
            super().score_trial(trial)
        if not math.isfinite(trial.score):
            trial.score = math.nan  # which Keras Tuner takes for INVALID

    def _retry(self, trial: Any) -> bool:
        if trial.score is None or not math.isnan(trial.score):
            return super()._retry(trial)
        trial.score, trial.status = None, trial_module.TrialStatus.INVALID
        trial.message = f"The objective '{self.objective.name}' is not finite."
        return False

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
            raise InputError(
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
            "format": FORMAT,
            "tried_so_far": sorted(state["tried_so_far"]),
            "trials": [trial.get_state() for trial in self.trials.values()],
            "objective": {
                "name": self.objective.name,
                "direction": self.objective.direction,
            },
            "is_done": self.is_done,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Takes up a state; trials that were running are to be run again.

        Raises:
            ValueError: If it is the state of another search.
        """
        ours = {
            "format": FORMAT,
            "max_epochs": self.max_epochs,
            "factor": self.factor,
            "objective": {
                "name": self.objective.name,
                "direction": self.objective.direction,
            },
        }
        if self._has_given_seed:
            ours["seed"] = self.seed
        differing = [key for key in ours if plain(ours[key]) != state.get(key)]
        if "format" not in differing:
            space = plain(self.hyperparameters.get_config()["space"])
            theirs = state["hyperparameters"]["space"]
            # To a part of a space a hypermodel has added the rest.
            known = all(entry in theirs for entry in space)
            if not known or (len(space) < len(theirs) and not self.allow_new_entries):
                differing.append("hyperparameters")
        if differing:
            raise InputError(
                f"The folder '{self._project_dir}' belongs to another search; name "
                f"another folder, or remove it. What differs: {', '.join(differing)}"
            )
        self.seed = state["seed"]
        self.is_done = state["is_done"]
        trials = map(trial_module.Trial.from_state, state["trials"])
        self.trials = {trial.trial_id: trial for trial in trials}
        super().set_state(state)
        self.hyperband_iterations = state["hyperband_iterations"] or math.inf
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
        problems = []
        for candidate in (path, path.with_suffix(".bak")):
            try:
                state = read_state(candidate, wanted)
            except (OSError, ValueError) as error:
                problems.append(f"{candidate.name}: {str(error)[:_LONGEST]}")
                continue
            self.set_state(state)
            if candidate != path:  # the next save makes a backup of what it finds
                write_text(path, candidate.read_text("utf-8"))
            return
        raise InputError(
            f"The state of the search in '{path.parent}' cannot be read; remove the "
            f"folder to start anew. {'; '.join(problems)}"
        )

    def _save_trial(self, trial: Any) -> None:
        # For people and other tools: the state file holds all trials.
        path = Path(self._get_trial_dir(trial.trial_id)) / "trial.json"
        write_text(path, json.dumps(trial.get_state()))


@contextmanager
def _quiet(trial: Any, reported: Iterable[float] = ()) -> Iterator[None]:
    """Silences NumPy where Keras Tuner looks for the best of metrics that are NaN."""
    steps = (h.get_history() for h in trial.metrics.metrics.values())
    means = (step.mean() for history in steps for step in history)
    if not any(value != value for value in chain(reported, means)):
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
        yield


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether values are the same but for the precision of a message."""
    return one.keys() == other.keys() and all(
        math.isclose(value, other[name], rel_tol=1e-5)
        if isinstance(value, float)
        else value == other[name]
        for name, value in one.items()
    )
