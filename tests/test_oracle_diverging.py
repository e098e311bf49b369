"""Objectives that are not finite: the worst, never the best, and no failure."""

import math
import warnings

import numpy as np
import pytest
from test_oracle import begin, finish, make, score, space

from lrdist_keras.search.tuner import Tuner

NOT_FINITE = [math.nan, math.inf, -math.inf]


def diverges(values):
    return values["rate_0"] > 1e-5  # half of the space


def search(oracle, bad):
    """Runs a search half of whose space diverges; returns the share that did."""
    seen = []
    while (trial := begin(oracle)).status == "RUNNING":
        values = trial.hyperparameters.values
        seen.append(diverges(values))
        finish(oracle, trial, bad if seen[-1] else score(values, oracle.budget(trial)))
    assert trial.status == "STOPPED"
    return np.mean(seen)


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_model_learns_where_it_diverges(tmp_path, bad):
    """Half of random proposals would; of keras-tuner#1032 45 of 53 did."""
    options = {"max_epochs": 3, "hyperband_iterations": 5, "model": "joint"}
    oracle = make(tmp_path, **options)
    assert search(oracle, bad) < 0.3
    assert len(oracle.trials) == 5 * 6
    for trial in oracle.trials.values():
        wrong = diverges(trial.hyperparameters.values)
        assert trial.status == ("INVALID" if wrong else "COMPLETED")
        assert (trial.score is None) == wrong
    assert not diverges(oracle.best_values())
    assert all(t.status == "COMPLETED" for t in oracle.get_best_trials(100))


@pytest.mark.parametrize("direction", ["max", "min"])
@pytest.mark.parametrize("bad", NOT_FINITE)
def test_what_is_not_finite_counts_as_the_worst_that_was_seen(tmp_path, bad, direction):
    oracle = make(tmp_path, max_epochs=1, hyperband_iterations=0, max_budget=9.0)
    oracle.objective.direction = direction
    try:
        for number in range(6):
            finish(oracle, begin(oracle), bad if number % 2 else float(number))
        expected = [0, 0, 2, 0, 4, 0] if direction == "max" else [0, -4, -2, -4, -4, -4]
        assert oracle.observations().scores.tolist() == expected
    finally:
        oracle.objective.direction = "max"


def test_before_anything_was_finite_all_are_alike(tmp_path):
    oracle = make(tmp_path, model="joint", random_share=0.0)
    for _ in range(5):
        finish(oracle, begin(oracle), math.nan)
    assert oracle.observations().scores.tolist() == [0.0] * 5
    # Nothing to learn from: what comes next is random, not near to what diverged.
    drawn = make(tmp_path / "random", model="random")
    for _ in range(5):
        finish(drawn, begin(drawn), math.nan)
    assert begin(oracle).hyperparameters.values == begin(drawn).hyperparameters.values


def test_it_is_no_failure_in_a_row(tmp_path):
    oracle = make(tmp_path, max_consecutive_failed_trials=2)
    for number in range(9):
        trial = begin(oracle)
        if number % 3 == 1:
            trial.status, trial.message = "INVALID", "it broke"
            oracle.end_trial(trial)
        else:
            finish(oracle, trial, NOT_FINITE[number % 3])
    assert begin(oracle).status == "RUNNING"
    broken = begin(oracle)
    for trial in (broken, None):
        trial = trial or begin(oracle)
        trial.status, trial.message = "INVALID", "it broke"
        if trial is broken:
            oracle.end_trial(trial)
        else:
            with pytest.raises(RuntimeError, match="it broke"):
                oracle.end_trial(trial)


@pytest.mark.parametrize("bad", NOT_FINITE)
def test_it_is_not_tried_again_for_it_would_diverge_again(tmp_path, bad):
    oracle = make(tmp_path, max_retries_per_trial=2)
    trial = begin(oracle)
    finish(oracle, trial, bad)
    assert trial.status == "INVALID" and "not finite" in trial.message
    assert trial.trial_id in oracle.end_order
    assert begin(oracle).trial_id != trial.trial_id


def test_its_metrics_make_no_noise(tmp_path):
    oracle = make(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        trial = begin(oracle)
        for step in range(3):
            metrics = {"score": math.nan, "loss": math.nan}
            oracle.update_trial(trial.trial_id, metrics, step)
        trial.status = "COMPLETED"
        oracle.end_trial(trial)


def test_a_repeat_that_diverges_speaks_against_its_setting(tmp_path):
    """The best of three full runs diverges when repeated; another is recommended."""
    options = {"max_epochs": 1, "hyperband_iterations": 0, "max_budget": 7.0}
    oracle = make(tmp_path, repeats=4, **options)
    first = {}
    while (trial := begin(oracle)).status == "RUNNING":
        values = trial.hyperparameters.values
        if values["tuner/seed"] == 0:
            first[values["rate_0"]] = [0.9, 1.0, 0.1][len(first)]
            finish(oracle, trial, first[values["rate_0"]])
        else:
            good = first[values["rate_0"]] < 1.0
            finish(oracle, trial, 0.9 if good else math.nan)
    assert first[oracle.best_values()["rate_0"]] == 0.9


@pytest.mark.parametrize("bad", NOT_FINITE)
def test_a_tuner_goes_on_after_it(tmp_path, bad, capsys):
    calls = []

    def evaluate(values, budget, seed):
        calls.append(values)
        wrong = diverges(values)
        return {"score": bad if wrong else score(values, budget), "loss": bad}

    oracle = make(tmp_path, hyperband_iterations=2, max_consecutive_failed_trials=1)
    Tuner(oracle, evaluate, tmp_path).search()
    statuses = [trial.status for trial in oracle.trials.values()]
    assert set(statuses) == {"INVALID", "COMPLETED"}
    assert len(calls) == len(statuses) >= 2 * 17
    assert not diverges(oracle.best_values())
    # It is taken up with all that diverged.
    again = make(tmp_path, hyperband_iterations=2)
    again.reload()
    assert [trial.status for trial in again.trials.values()] == statuses
    assert begin(again).status == "STOPPED"


def test_a_metric_that_is_required_comes_before_the_score(tmp_path):
    options = {"max_epochs": 1, "hyperband_iterations": 0, "max_budget": 8.0}
    oracle = make(tmp_path, requires="learned", repeats=2, **options)

    def end(trial, value, learned):
        metrics = {"score": value, "learned": float(learned)}
        oracle.update_trial(trial.trial_id, metrics)
        trial.status = "COMPLETED"
        oracle.end_trial(trial)

    for number in range(6):
        end(begin(oracle), 1.0 - 0.1 * number, number >= 4)
    trials = list(oracle.trials.values())
    assert oracle.get_best_trials(2) == trials[4:]
    good = [trial.hyperparameters.values["rate_0"] for trial in trials[4:]]
    assert oracle.best_values()["rate_0"] in good
    repeat = begin(oracle)  # what did not learn is not repeated
    assert repeat.hyperparameters.values["rate_0"] in good
    # With one of two runs that did not learn, a setting is not one that learned.
    end(repeat, 1.0, False)
    (other,) = set(good) - {repeat.hyperparameters.values["rate_0"]}
    assert oracle.best_values()["rate_0"] == other


def test_where_nothing_has_what_is_required_the_best_score_is_the_best(tmp_path):
    options = {"max_epochs": 1, "hyperband_iterations": 0, "max_budget": 5.0}
    oracle = make(tmp_path, requires="learned", hyperparameters=space(1), **options)
    while (trial := begin(oracle)).status == "RUNNING":
        x = np.log10(trial.hyperparameters.values["rate_0"])
        oracle.update_trial(trial.trial_id, {"score": float(x), "learned": 0.0})
        trial.status = "COMPLETED"
        oracle.end_trial(trial)
    rates = [t.hyperparameters.values["rate_0"] for t in oracle.trials.values()]
    assert oracle.best_values()["rate_0"] == max(rates)
