"""`BayesianHyperbandOracle`: Hyperband of Keras Tuner with proposals from a model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from lrdist_keras.errors import InputError
from lrdist_keras.search.brackets import succeeded
from lrdist_keras.search.durable_oracle import DurableHyperbandOracle
from lrdist_keras.search.samplers import PROPOSERS, check_installed
from lrdist_keras.search.surrogate import Observations, Surrogate, propose
from lrdist_keras.search.unit_cube import (
    categories,
    check_start_points,
    is_active,
    point_of,
    searched,
    values_at,
)

Model = Literal["joint", "highest", "random", "cmaes", "tpe"]
SEED = "tuner/seed"
_HYPERBAND = ("_brackets", "_current_bracket", "_current_iteration", "_seed_state")
_LEAST = 3  # finite scores that a model is made of
_REPEATS_EACH = 2  # of how many repeats one of the best is to have


class BayesianHyperbandOracle(DurableHyperbandOracle):
    """Hyperband decides the budgets, a Gaussian process proposes the values.

    Trials whose `tuner/round` is 0 get the point of the largest expected improvement
    at the full budget; a promoted one is trained again from its start. At the end the
    best few are repeated with other seeds, `tuner/seed` in their values, and the best
    is the one with the best expectation of the model: a single reward is noisy, and the
    best of many is mostly the luckiest. One that diverged counts for the model as the
    worst that was seen, and is never promoted, repeated or the best.

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
        hyperparameters: The search space, of hyperparameters of any kind; it may be
            empty, and a hypermodel may add to it. See `unit_cube` for how a model sees
            them.
        allow_new_entries: Whether a hypermodel may add to the space.
        tune_new_entries: Whether what it adds is searched.
        max_retries_per_trial: How often a trial that failed is tried again; one that
            diverged is not.
        max_consecutive_failed_trials: After how many failures in a row to stop.
        max_budget: Budget of the whole search in full runs, repeats included; None for
            whatever Hyperband takes.
        start_points: Values to try first, each a mapping of all names of the space that
            are active there.
        model: `joint`, one model of all budgets with the budget as an input; `highest`,
            of the highest budget that has enough trials; `random`, none; `tpe` and
            `cmaes`, those of the packages optuna and cmaes.
        random_share: Share of proposals that are random, in [0, 1].
        repeats: Full runs at the end that repeat the best with other seeds.
        requires: Name of a metric that is 0 where a run does not count as a good one;
            of settings of which it is 0 in half of the runs or more none is the best or
            repeated, unless there are no others.
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
        requires: str | None = None,
        lease: float = 60.0,
    ) -> None:
        for name, value, least in (
            ("max_epochs", max_epochs, 1),
            ("factor", factor, 2),
            ("repeats", repeats, 0),
        ):
            if value < least:
                raise InputError(
                    f"`{name}` must be at least {least}. Received: {value}"
                )
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
            lease=lease,
        )
        self.max_budget = max_budget
        self.start_points = [dict(point) for point in start_points]
        self.model = model
        self.random_share = random_share
        self.repeats = repeats
        self.requires = requires
        self._proposed = 0
        self._repeating = False
        self._repeated: list[str] = []
        self._check_arguments()
        if hyperparameters:
            check_start_points(self._space(), self.start_points)

    def _check_arguments(self) -> None:
        smallest = self._get_epochs(self._get_num_brackets() - 1, 0) / self.max_epochs
        if self.max_budget is not None and self.max_budget < smallest + self.repeats:
            raise InputError(
                "`max_budget` must hold one trial of the smallest rung "
                f"({smallest:.3g} of a full run) and the {self.repeats} repeats. "
                f"Received: {self.max_budget}"
            )
        if self.model not in (known := get_args(Model)):
            raise InputError(
                f"`model` must be one of {', '.join(known)}. Received: {self.model!r}"
            )
        check_installed(self.model)
        if not 0 <= self.random_share <= 1:
            raise InputError(
                f"`random_share` must be in [0, 1]. Received: {self.random_share}"
            )

    # Budgets.

    def budget(self, trial: Any) -> float:
        """Returns the budget of a trial in full runs; 1 where it says nothing of it."""
        epochs = trial.hyperparameters.values.get("tuner/epochs", self.max_epochs)
        return epochs / self.max_epochs

    @property
    def spent(self) -> float:
        """The budget of all trials that were started, in full runs."""
        with self.lock:
            return sum(map(self.budget, self.trials.values()))

    # Proposals.

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Returns the status and the values of the next trial, as Keras Tuner asks."""
        check_start_points(self._space(), self.start_points)
        if not self._repeating:
            before = {name: copy.deepcopy(getattr(self, name)) for name in _HYPERBAND}
            response = super().populate_space(trial_id)
            if response["status"] == "RUNNING":
                values = response["values"]
                if self._affords(values["tuner/epochs"]):
                    if values["tuner/round"] == 0:
                        values |= {**self._proposal(values), SEED: 0}
                    return response
                response = {"status": "IDLE" if self.ongoing_trials else "STOPPED"}
                for name, value in before.items():
                    setattr(self, name, value)
            if response["status"] != "STOPPED":
                return response
            self._repeating = True
        return self._repeat(trial_id)

    def _affords(self, epochs: int) -> bool:
        if self.max_budget is None:
            return True
        left = self.max_budget - self.repeats - self.spent
        return epochs / self.max_epochs <= left + 1e-9

    def _proposal(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """Returns values of the space: a start point, a proposal, or those drawn."""
        space = self._space()
        drawn = {hp.name: drawn[hp.name] for hp in space if hp.name in drawn}
        number = self._proposed
        self._proposed += 1
        if number < len(self.start_points):
            point = self.start_points[number]
            point = {hp.name: point[hp.name] for hp in space if is_active(hp, point)}
            return drawn if self._duplicate(point) else point
        rng = np.random.default_rng([self.seed, number])
        if self.model == "random" or rng.random() < self.random_share:
            return drawn
        if not searched(space) or len(self._done()) < _LEAST:
            return drawn
        observations = self.observations()
        if self.model == "highest":
            observations = observations.highest_budget(len(searched(space)) + 1)
        if len(observations.scores) < _LEAST:
            return drawn
        if self.model in PROPOSERS:
            found = PROPOSERS[self.model](observations, self.seed)
            best = next(iter(self._untried(found[None])), None)
        else:
            running = [t.hyperparameters.values for t in self.ongoing_trials.values()]
            pending = self._points(running)
            best = propose(observations, pending, rng, self._untried)
        return drawn if best is None else values_at(space, best.tolist())

    def _untried(self, points: np.ndarray) -> np.ndarray:
        """Returns the points of values that were not tried, as those values lie."""
        values = [values_at(self._space(), point) for point in points.tolist()]
        return self._points([v for v in values if not self._duplicate(v)])

    def _points(self, values: Sequence[Mapping[str, Any]]) -> np.ndarray:
        points = [point_of(v, self._space()) for v in values]
        return np.reshape(points, (len(points), len(searched(self._space()))))

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
        """Returns the ended trials as points, scores (higher is better), budgets.

        One that diverged has the worst of the finite scores; one that failed is left
        out, since its values need not be the reason.
        """
        with self.lock:
            ended = set(self.end_order)
            seen = [
                trial
                for trial in self.trials.values()
                if succeeded(trial)
                or (trial.status == "INVALID" and trial.trial_id in ended)
            ]
            scores = np.array(
                [self._sign * t.score if succeeded(t) else np.nan for t in seen]
            )
            worst = np.min(scores, initial=np.inf, where=np.isfinite(scores))
            scores[np.isnan(scores)] = worst if np.isfinite(worst) else 0.0
            return Observations(
                self._points([t.hyperparameters.values for t in seen]),
                scores,
                np.array([self.budget(t) for t in seen]),
                np.array(categories(self._space()), int),
            )

    def best_values(self) -> dict[str, Any]:
        """Returns the values of the space with the best expectation of the model.

        Raises:
            ValueError: If no trial is finished.
        """
        with self.lock:
            ranked = self._ranked()
        if not ranked:
            raise InputError("There is no best trial, because none is finished.")
        return ranked[0]

    def runs_of(self, values: Mapping[str, Any]) -> list[Any]:
        """Returns the finished trials of these values with their largest budget."""
        with self.lock:
            runs = [t for t in self._done() if self._values(t) == values]
            most = max(map(self.budget, runs), default=0.0)
            return [trial for trial in runs if self.budget(trial) == most]

    def get_best_trials(self, num_trials: int = 1) -> list[Any]:
        """Returns the best trials as observed, those of the largest budget first.

        Scores of different budgets do not compare. For the values that the model
        expects most of, see `best_values`: the best of many noisy scores is mostly the
        luckiest.
        """
        with self.lock:
            return sorted(
                self._done(),
                key=lambda t: (self.meets(t), self.budget(t), self._sign * t.score),
                reverse=True,
            )[:num_trials]

    def _ranked(self) -> list[dict[str, Any]]:
        """Returns the distinct values of the highest budget, best expectation first.

        Of those of which most runs have what is required, unless none do.
        """
        done = self._done()
        highest = max(map(self.budget, done), default=0.0)
        runs: dict[bytes, list[Any]] = {}
        for trial in done:
            if self.budget(trial) == highest:
                point = self._points([trial.hyperparameters.values])
                runs.setdefault(point.tobytes(), []).append(trial)
        found = [of for of in runs.values() if 2 * sum(map(self.meets, of)) > len(of)]
        values = [self._values(of[0]) for of in found or runs.values()]
        if len(values) < 2:
            return values
        rng = np.random.default_rng([self.seed, len(done)])
        surrogate = Surrogate(self.observations().aligned(), rng)
        expected, _ = surrogate.predict(self._points(values))
        return [values[i] for i in np.argsort(-expected, kind="stable")]

    def meets(self, trial: Any) -> bool:
        """Whether a trial has what is required of the best, as far as it is known."""
        name = self.requires
        if name is None or not trial.metrics.exists(name):
            return True
        return bool(trial.metrics.get_last_value(name) > 0)

    def _trials_of(self, values: Mapping[str, Any]) -> list[Any]:
        return [t for t in self.trials.values() if self._values(t) == values]

    def _done(self) -> list[Any]:
        return list(filter(succeeded, self.trials.values()))

    def _space(self) -> list[Any]:
        return self.hyperparameters.space

    def _values(self, trial: Any) -> dict[str, Any]:
        values = trial.hyperparameters.values
        return {hp.name: values[hp.name] for hp in self._space() if hp.name in values}

    # State.

    def get_state(self) -> dict[str, Any]:
        """Everything that a search needs to go on, its trials included."""
        return {
            **super().get_state(),
            "proposed": self._proposed,
            "repeating": self._repeating,
            "repeated": self._repeated,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Takes up a state; trials that were running are to be run again.

        Raises:
            ValueError: If it is the state of another search.
        """
        super().set_state(state)
        self._proposed = state["proposed"]
        self._repeating = state["repeating"]
        self._repeated = state["repeated"]
