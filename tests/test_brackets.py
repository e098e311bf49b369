"""Hyperband's rungs: their sizes, promotions, and what cannot fill them."""

import math

import keras_tuner
import pytest
from keras_tuner.oracles import HyperbandOracle
from test_oracle import begin, finish, make, run

from lrdist_keras.search.oracle import BayesianHyperbandOracle


def paper(largest, eta):
    """Trials per rung of each bracket by Algorithm 1 of arXiv 1603.06560."""
    s_max = 0
    while eta ** (s_max + 1) <= largest:
        s_max += 1
    rungs = {}
    for s in range(s_max + 1):
        n = -(-(s_max + 1) * eta**s // (s + 1))  # ceil(B / R * eta^s / (s + 1))
        rungs[s] = [n // eta**i for i in range(s + 1)]
    return rungs


def ours(largest, eta):
    oracle = BayesianHyperbandOracle(max_epochs=largest, factor=eta)
    return {
        s: [oracle._get_size(s, i) for i in range(oracle._get_num_rounds(s))]
        for s in range(oracle._get_num_brackets())
    }


def test_rungs_are_those_of_keras_tuner_which_rounds_up():
    """The paper rounds down: of 5 it promotes 1, and not 2."""
    assert paper(9, 3) == {2: [9, 3, 1], 1: [5, 1], 0: [3]}
    assert ours(9, 3) == {2: [9, 3, 1], 1: [5, 2], 0: [3]}
    # The table of the paper for R = 81.
    assert paper(81, 3) == {
        4: [81, 27, 9, 3, 1], 3: [34, 11, 3, 1], 2: [15, 5, 1], 1: [8, 2], 0: [5],
    }  # fmt: skip
    assert ours(81, 3) == {
        4: [81, 27, 9, 3, 1], 3: [34, 12, 4, 2], 2: [15, 5, 2], 1: [8, 3], 0: [5],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("largest", "eta"), [(1, 3), (8, 2), (9, 3), (27, 3), (64, 4), (81, 3), (125, 5)]
)
def test_a_rung_holds_at_most_one_more_than_in_the_paper(largest, eta):
    found, wanted = ours(largest, eta), paper(largest, eta)
    assert found.keys() == wanted.keys()
    for s in wanted:
        assert found[s][0] == wanted[s][0]
        for mine, theirs in zip(found[s], wanted[s], strict=True):
            assert theirs <= mine <= theirs + 1


def test_between_two_powers_brackets_are_larger_in_proportion():
    """N = ceil(1 + log_eta R) where the paper has 1 + floor(log_eta R)."""
    stock = HyperbandOracle(max_epochs=100, factor=3)
    for s, rungs in ours(100, 3).items():
        n = math.ceil(1 + math.log(100, 3)) / (s + 1)
        assert rungs == [math.ceil(n * 3 ** (s - i)) for i in range(s + 1)]
        assert rungs == [stock._get_size(s, i) for i in range(s + 1)]
    assert paper(100, 3) == paper(81, 3)


def diverge(oracle, trial, value=float("nan")):
    oracle.update_trial(trial.trial_id, {"score": value})
    trial.status = "COMPLETED"
    oracle.end_trial(trial)


def test_a_rung_of_which_too_few_are_left_is_shorter(tmp_path):
    """Of nine, two succeed: both go on where there is room for three."""
    oracle = make(tmp_path, max_consecutive_failed_trials=99)
    first = [begin(oracle)]
    for number in range(9):
        trial = first[-1]
        if number in (3, 5):
            finish(oracle, trial, float(number))
        elif number % 2:
            trial.status, trial.message = "INVALID", "it broke"
            oracle.end_trial(trial)
        else:
            diverge(oracle, trial)
        first.append(begin(oracle))
    second = [first.pop()]
    finish(oracle, second[0], 1.0)
    second.append(begin(oracle))
    values = [trial.hyperparameters.values for trial in second]
    assert [v["tuner/round"] for v in values] == [1, 1]
    assert [v["rate_0"] for v in values] == [
        first[i].hyperparameters.values["rate_0"] for i in (5, 3)
    ]
    finish(oracle, second[1], 2.0)
    after = begin(oracle)
    assert after.hyperparameters.values["tuner/round"] == 2
    assert after.hyperparameters.values["rate_0"] == values[1]["rate_0"]
    finish(oracle, after)
    assert len(run(oracle)) == 7 + 3  # the other two brackets


def test_nothing_that_failed_or_diverged_is_promoted(tmp_path):
    oracle = make(tmp_path, max_consecutive_failed_trials=99, hyperband_iterations=3)
    number = 0
    while (trial := begin(oracle)).status == "RUNNING":
        values, number = trial.hyperparameters.values, number + 1
        if values["rate_0"] > 1e-4:
            diverge(oracle, trial, [math.nan, math.inf, -math.inf][number % 3])
        elif values["rate_0"] > 1e-5:
            trial.status, trial.message = "FAILED", "it broke"
            oracle.end_trial(trial)
        else:
            finish(oracle, trial)
    rungs = {0: 0, 1: 0, 2: 0}
    for trial in oracle.trials.values():
        values = trial.hyperparameters.values
        rungs[values["tuner/round"]] += 1
        assert values["tuner/round"] == 0 or values["rate_0"] <= 1e-5
    assert rungs[0] == 3 * (9 + 5 + 3) and rungs[1] > 6 and rungs[2] == 3


def test_where_all_diverge_the_search_comes_to_its_end(tmp_path):
    oracle = make(tmp_path, model="joint")
    number = 0
    while (trial := begin(oracle)).status == "RUNNING":
        diverge(oracle, trial)
        number += 1
    assert trial.status == "STOPPED" and number == 9 + 5 + 3
    assert {t.status for t in oracle.trials.values()} == {"INVALID"}
    assert oracle.get_best_trials(3) == []
    with pytest.raises(ValueError, match="no best trial"):
        oracle.best_values()


def test_the_last_of_several_workers_waits_and_is_then_told(tmp_path):
    oracle = make(tmp_path, max_epochs=3)
    running = []
    while (trial := begin(oracle, f"w{len(running)}")).status == "RUNNING":
        running.append(trial)
    assert trial.status == "IDLE" and len(running) == 3 + 2
    for trial in running[:-1]:
        diverge(oracle, trial)
    assert begin(oracle, "last").status == "IDLE"
    diverge(oracle, running[-1])
    assert begin(oracle, "last").status == "STOPPED"


def test_in_a_small_space_the_best_reach_the_full_budget(tmp_path):
    """Eight combinations do not fill a rung of nine: what there is goes on."""
    hp = keras_tuner.HyperParameters()
    for name in "abc":
        hp.Boolean(name)
    oracle = make(tmp_path, hyperparameters=hp)
    done = []
    while (trial := begin(oracle)).status == "RUNNING":
        values = dict(trial.hyperparameters.values)
        finish(oracle, trial, sum(values[name] for name in "abc"))
        done.append(values)
    assert trial.status == "STOPPED"
    rungs = [values["tuner/round"] for values in done]
    assert rungs == [0] * 8 + [1] * 3 + [2]
    assert all(done[-1][name] for name in "abc") and done[-1]["tuner/epochs"] == 9
    assert oracle.best_values() == {"a": True, "b": True, "c": True}


def test_a_space_that_grows_while_workers_wait_is_not_exhausted(tmp_path):
    oracle = make(tmp_path, hyperparameters=None)
    trial = begin(oracle, "first")
    assert begin(oracle, "second").status == "IDLE"
    trial.hyperparameters.Float("rate_0", 1e-7, 1e-3, sampling="log")
    finish(oracle, trial, 1.0)
    finish(oracle, begin(oracle, "second"), 2.0)
    assert len(run(oracle)) > 15


def test_of_a_small_space_several_are_promoted_at_once(tmp_path):
    """A worker need not wait for what another has been given of a closed rung."""
    hp = keras_tuner.HyperParameters()
    hp.Choice("kind", list("abcdefgh"))
    oracle = make(tmp_path, hyperparameters=hp)
    first = [begin(oracle, f"w{i}") for i in range(8)]
    assert begin(oracle, "ninth").status == "IDLE"
    for number, trial in enumerate(first):
        finish(oracle, trial, float(number))
    second = [begin(oracle, f"w{i}") for i in range(3)]
    assert [t.hyperparameters.values["kind"] for t in second] == [
        trial.hyperparameters.values["kind"] for trial in first[:4:-1]
    ]
    assert begin(oracle, "fourth").status == "IDLE"
