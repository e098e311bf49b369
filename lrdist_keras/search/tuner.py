"""Runs the trials of an oracle, here or for a chief elsewhere."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from keras_tuner.src.engine import trial as trial_module
from keras_tuner.src.engine.base_tuner import BaseTuner

from lrdist_keras.errors import SearchFailed
from lrdist_keras.search.durable_oracle import FATAL, MESSAGE
from lrdist_keras.search.oracle import SEED, BayesianHyperbandOracle

PROJECT = "search"
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
        super().__init__(oracle, directory=str(folder), project_name=PROJECT)
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
        seed = trial.hyperparameters.values.get(SEED, 0)
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
