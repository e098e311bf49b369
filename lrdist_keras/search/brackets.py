"""`SteadyHyperbandOracle`: Hyperband's rungs, filled as far as trials succeed."""

from __future__ import annotations

import math
from typing import Any

from keras_tuner.oracles import HyperbandOracle

COMPLETED = "COMPLETED"


def succeeded(trial: Any) -> bool:
    """Whether a trial has ended with a finite score."""
    # A tuner in this process sets the status before it ends the trial.
    return (
        trial.status == COMPLETED
        and trial.score is not None
        and math.isfinite(trial.score)
    )


class SteadyHyperbandOracle(HyperbandOracle):
    """Hyperband of Keras Tuner that goes on where a rung cannot be filled.

    With R = `max_epochs` and eta = `factor`, rung i of bracket s (s_max, ..., 0) holds

        ceil(N / (s + 1) * eta^(s - i)) trials of ceil(R / eta^(s - i)) epochs,

    where N = ceil(1 + log_eta R). These are Keras Tuner's numbers, which its users
    count on. Algorithm 1 of the paper (arXiv 1603.06560) has N = 1 + floor(log_eta R),
    n = ceil(N / (s + 1) * eta^s) trials in rung 0 and floor(n / eta^i) in rung i. Where
    R is a power of eta rung 0 is the same and a later rung holds at most one trial
    more: of 5 trials 2 are promoted, in the paper 1. Where it is none, N is larger by
    one, and so are the rungs in proportion.

    What failed or diverged ranks last in its rung and is never promoted; where fewer
    are left than the next rung holds, all of them go on, and the rung is shorter. Where
    no values are left that were not tried, a first rung ends with what it has, and the
    best of it go on; Keras Tuner would end the search with its smallest budgets only.

    A promoted trial is trained again from its start, since a learning-rate schedule is
    fitted to its length: it has no `tuner/trial_id`, and its `tuner/initial_epoch` is
    0.
    """

    _brackets: list[dict[str, Any]]
    _seed_state: int

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Returns the status and the values of the next trial, as Keras Tuner asks."""
        self._remove_completed_brackets()
        for bracket in self._brackets:
            if (values := self._next(trial_id, bracket)) is not None:
                return {"status": "RUNNING", "values": values}
        is_exhausted = any(map(self._has_room, self._brackets))
        is_last = self._current_bracket == 0 and (
            self._current_iteration + 1 == self.hyperband_iterations
        )
        if not is_exhausted and not is_last:
            self._increment_bracket_num()
            self._start_new_bracket()
            if (values := self._next(trial_id, self._brackets[-1])) is not None:
                return {"status": "RUNNING", "values": values}
        return {"status": "IDLE" if self.ongoing_trials else "STOPPED"}

    def _next(self, trial_id: str, bracket: dict[str, Any]) -> dict[str, Any] | None:
        """Puts a trial into a bracket; None if it has no place for one now."""
        if self._has_room(bracket):
            if (values := self._begun(trial_id, bracket)) is not None:
                return values
            if not self.ongoing_trials:  # which may add to the space
                bracket["closed"] = True
        return self._promoted(trial_id, bracket)

    def _has_room(self, bracket: dict[str, Any]) -> bool:
        """Whether the first rung is not as large as it was to be."""
        return len(bracket["rounds"][0]) < self._get_size(bracket["bracket_num"], 0)

    def _begun(self, trial_id: str, bracket: dict[str, Any]) -> dict[str, Any] | None:
        """Puts a trial into the first rung; None if all values have been tried."""
        before = self._seed_state
        values = self._random_values()
        if values is None:
            self._seed_state = before  # however often a worker asks
            return None
        bracket["rounds"][0].append({"past_id": None, "id": trial_id})
        return {**values, **self._place(bracket, 0)}

    def _promoted(
        self, trial_id: str, bracket: dict[str, Any]
    ) -> dict[str, Any] | None:
        """Puts the best of a rung into the next, as soon as it is sure to belong there.

        That is when more have ended than are left behind, whatever the others give.
        """
        ended, sizes = set(self.end_order), self._sizes(bracket)
        for number, rung in enumerate(bracket["rounds"][1:], start=1):
            taken = {entry["past_id"] for entry in rung}
            left = [
                self.trials[entry["id"]]
                for entry in bracket["rounds"][number - 1]
                if entry["id"] in ended and entry["id"] not in taken
            ]
            candidates = list(filter(succeeded, left))
            enough = len(left) > sizes[number - 1] - sizes[number]
            if len(rung) < sizes[number] and enough and candidates:
                best = max(candidates, key=lambda trial: self._sign * trial.score)
                rung.append({"past_id": best.trial_id, "id": trial_id})
                return {**best.hyperparameters.values, **self._place(bracket, number)}
        return None

    def _place(self, bracket: dict[str, Any], rung: int) -> dict[str, int]:
        number = bracket["bracket_num"]
        return {
            "tuner/epochs": self._get_epochs(number, rung),
            "tuner/initial_epoch": 0,
            "tuner/bracket": number,
            "tuner/round": rung,
        }

    def _sizes(self, bracket: dict[str, Any]) -> list[int]:
        """Returns how many trials each rung of a bracket will hold, as far as known."""
        ended, rounds = set(self.end_order), bracket["rounds"]
        full = [self._get_size(bracket["bracket_num"], i) for i in range(len(rounds))]
        sizes = [len(rounds[0]) if bracket.get("closed") else full[0]]
        for below, size in zip(rounds, full[1:], strict=False):
            ids = [entry["id"] for entry in below]
            if len(ids) == sizes[-1] and ended.issuperset(ids):
                size = min(size, sum(succeeded(self.trials[i]) for i in ids))
            sizes.append(size)
        return sizes

    def _remove_completed_brackets(self) -> None:
        self._brackets = [
            bracket
            for bracket in self._brackets
            if len(bracket["rounds"][-1]) != self._sizes(bracket)[-1]
        ]

    @property
    def _sign(self) -> float:
        return 1.0 if self.objective.direction == "max" else -1.0
