"""The state file of a search: what it must hold to be taken up."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from keras_tuner.src.engine import hyperparameters as hp_module
from keras_tuner.src.engine import trial as trial_module
from pydantic import BaseModel, ConfigDict, Field, model_validator

FORMAT = 1
ENDS = ("COMPLETED", "INVALID", "FAILED")

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0)]
_Value = bool | int | _Finite | str


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Space(_Strict):
    space: list[dict[str, Any]]
    values: dict[str, _Value]


class _Trial(_Strict):
    trial_id: str
    status: Literal["RUNNING", "STOPPED", "IDLE", "COMPLETED", "INVALID", "FAILED"]
    hyperparameters: _Space
    metrics: dict[str, Any]
    score: _Finite | None
    best_step: int | float | None
    message: str | None

    @model_validator(mode="after")
    def _can_be_made(self) -> Self:
        # Made of a copy, since Keras Tuner takes it apart.
        trial = trial_module.Trial.from_state(plain(self.model_dump()))
        for history in trial.metrics.metrics.values():
            history.get_last_value()  # fails where something is no number
        names = [hp.name for hp in trial.hyperparameters.space]
        for hp in trial.hyperparameters.space:
            # Of a name in several scopes Keras Tuner may drop the value.
            if names.count(hp.name) == 1 and not hp.conditions:
                if hp.name not in self.hyperparameters.values:
                    raise ValueError(f"hyperparameter '{hp.name}' has no value")
        return self


class _Entry(_Strict):
    past_id: str | None
    id: str


class _Bracket(_Strict):
    bracket_num: _Count
    rounds: Annotated[list[list[_Entry]], Field(min_length=1)]
    closed: bool = False


class _Display(_Strict):
    search_start: str | None
    trial_start: dict[str, str]
    trial_number: dict[str, int]

    @model_validator(mode="after")
    def _has_times(self) -> Self:
        for time in (self.search_start, *self.trial_start.values()):
            datetime.fromisoformat(time or "2000-01-01")
        return self


class _State(_Strict):
    """All keys that our oracles write; those of an oracle made of them may be added."""

    format: Literal[1]
    trials: list[_Trial]
    ongoing_trials: dict[str, str]
    hyperparameters: _Space
    start_order: list[str]
    end_order: list[str]
    retry_queue: list[str]
    run_times: dict[str, _Count]
    seed: int
    seed_state: int
    tried_so_far: list[str]
    id_to_hash: dict[str, str | None]
    display: _Display
    objective: dict[str, str]
    is_done: bool
    hyperband_iterations: _Finite | None
    max_epochs: _Finite
    min_epochs: _Finite
    factor: _Finite
    brackets: list[_Bracket]
    current_bracket: _Count
    current_iteration: _Count
    proposed: _Count = 0
    repeating: bool = False
    repeated: list[str] = []

    @model_validator(mode="after")
    def _names_its_trials(self) -> Self:
        ids = [trial.trial_id for trial in self.trials]
        if len(set(ids)) < len(ids):
            raise ValueError("a trial stands in it twice")
        entries = [e for b in self.brackets for rung in b.rounds for e in rung]
        named = [
            *self.ongoing_trials.values(), *self.start_order, *self.end_order,
            *self.retry_queue, *self.repeated, *(e.id for e in entries),
            *(e.past_id for e in entries if e.past_id is not None),
        ]  # fmt: skip
        if unknown := set(named) - set(ids):
            raise ValueError(f"it names trials that it does not hold: {unknown}")
        if len(set(self.start_order)) < len(self.start_order) or len(
            set(self.end_order)
        ) < len(self.end_order):
            raise ValueError("a trial began or ended twice")
        ends = {trial.trial_id for trial in self.trials if trial.status in ENDS}
        if unfinished := set(self.end_order) - ends:
            raise ValueError(f"it has ended trials that still run: {unfinished}")
        hp_module.HyperParameters.from_config(plain(self.hyperparameters.model_dump()))
        return self


def read_state(path: Path, wanted: set[str]) -> dict[str, Any]:
    """Reads a state file and checks it as a whole.

    A state of another format is returned as it is: it belongs to another program.

    Args:
        path: The file.
        wanted: The keys that it must have.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is damaged in any way.
    """
    try:
        state = json.loads(path.read_text("utf-8"))
        # Keras Tuner's own has no format, but an order.
        if not isinstance(state, dict) or not {"format", "start_order"} & set(state):
            raise ValueError("it holds no state")
        if state.get("format") != FORMAT:
            return state
        if missing := wanted - set(state):
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        _State.model_validate(state)
    except (OSError, ValueError):
        raise
    # Keras Tuner reads parts of it, and fails in its own ways where they are damaged.
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return state


def plain(value: Any) -> Any:
    """Returns what JSON makes of a value."""
    return json.loads(json.dumps(value))
