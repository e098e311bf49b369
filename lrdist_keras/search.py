"""A search for the distribution of a sequence of tasks."""

from __future__ import annotations

import csv
import io
import json
import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner.src.engine import trial as trial_module
from keras_tuner.src.engine.base_tuner import BaseTuner

from lrdist_keras import metrics
from lrdist_keras.config import (
    ArmSettings,
    Configuration,
    DecayPoint,
    SearchSettings,
    SequenceSettings,
)
from lrdist_keras.distribution import (
    Distribution,
    flat,
    get,
    llrd,
    ranked_combination,
    read_trials,
)
from lrdist_keras.files import claim_folder, locked, write_text
from lrdist_keras.groups import Scheme
from lrdist_keras.oracle import SEED, BayesianHyperbandOracle
from lrdist_keras.training import SequentialTrainer, TaskData

__all__ = ["BayesianHyperbandOracle", "Search", "Tuner", "prepare"]

OBJECTIVE = "reward"
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
_COLUMNS = ("a1", "p_s", "p_o")
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
        self._beat = oracle.lease / 6
        self._started, self._ended = on_start, on_end
        oracle.verbose = 0
        super().__init__(oracle, directory=str(folder), project_name=_PROJECT)

    def _populate_initial_space(self) -> None:
        # Keras Tuner looks for its own file, which is written later than the oracle's.
        if Path(self.oracle._get_oracle_fname()).exists():
            self.oracle.reload()

    def search(self) -> None:  # type: ignore[override]
        """Runs trials until the oracle has none left, waiting where it asks to."""
        wait = 0.05
        while True:
            trial = self.oracle.create_trial(self.tuner_id)
            if trial.status == trial_module.TrialStatus.STOPPED:
                return
            if trial.status == trial_module.TrialStatus.IDLE:
                time.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)
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
        return dict(self.evaluate(values, self._budget(trial), seed))

    def _try_run_and_update_trial(self, trial: Any) -> None:
        try:
            self._run_and_update_trial(trial)
            trial.status = trial_module.TrialStatus.COMPLETED
        except _PROGRAMMING:
            raise
        except Exception:
            trial.status = trial_module.TrialStatus.INVALID
            trial.message = traceback.format_exc()
            print(f"Trial {trial.trial_id} failed:\n{trial.message}", flush=True)

    def save(self) -> None:
        """Does nothing: the oracle saves itself at every change."""

    def reload(self) -> None:
        """Takes up the state of the oracle."""
        self.oracle.reload()
