"""What a search makes of its trials: the best setting, the files, what it left out."""

import csv
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from lrdist_keras import config
from lrdist_keras.distribution import Distribution, kenneweg2022
from lrdist_keras.groups import Scheme
from lrdist_keras.search.search import Search
from lrdist_keras.search.space import make_oracle
from lrdist_keras.search.trials import ranked_combination, read_trials

SCHEME = Scheme(2, 2)
TOML = """
name = "small"
[model]
preset = "none"
[data]
dir = "none"
[search]
budget = 20
repeats = {repeats}
units = {units}
sampler = "{sampler}"
[[tasks]]
name = "first"
source = "glue/sst2"
[[tasks]]
name = "second"
source = "glue/mrpc"
[[sequences]]
tasks = ["first", "second"]
[[arms]]
name = "flat"
rate = 1e-5
"""


def prepared(folder, repeats=0, units=1, sampler="random", scheme=SCHEME):
    """A search as `search.prepare` makes it, but for what trains."""
    path = folder / "c.toml"
    path.write_text(TOML.format(repeats=repeats, units=units, sampler=sampler))
    configuration = config.load(path)
    oracle = make_oracle(configuration.search, scheme)
    oracle._set_project_dir(str(folder / "out"), "search")
    oracle.verbose = 0
    trainer = SimpleNamespace(scheme=scheme)
    return Search(configuration, folder / "out", trainer, [], oracle)


def end(search, learned=1.0, reward=None, **found):
    """Runs the next trial of a search; returns its values."""
    trial = search.oracle.create_trial("w")
    assert trial.status == "RUNNING"
    found = {"a1": 0.9, "p_s": 0.8, "p_o": 0.7, "seconds": 1.0, **found}
    found["reward"] = found["p_s"] + found["p_o"] if reward is None else reward
    if learned is not None:
        found["learned"] = learned
    search.oracle.update_trial(trial.trial_id, found)
    trial.status = "COMPLETED"
    search.oracle.end_trial(trial)
    return search.rates(trial.hyperparameters.values)


def results(search):
    search.save_results()
    return json.loads((search.folder / "search.json").read_text())


def written(search):
    with (search.folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def run_of(matrix):
    """A run of the trainer on two tasks of 100 examples, half of each class."""
    return SimpleNamespace(
        accuracy=np.array(matrix),
        majority_rates=np.array([0.5, 0.5]),
        examples=np.array([100, 100]),
        seconds=1.0,
        compilations=0,
    )


def evaluated(tmp_path, matrix, budget=1.0):
    search = prepared(tmp_path)
    search.trainer.run = lambda *arguments: run_of(matrix)
    return search.evaluate(dict.fromkeys(SCHEME.names, 1e-5), budget, 0)


def test_a_trial_says_whether_it_learned(tmp_path):
    """More than two standard errors sqrt(0.25 / 100) above 0.5 on the diagonal."""
    found = evaluated(tmp_path, [[0.61, math.nan], [0.5, 0.61]])
    assert (found["learned"], found["reward"]) == (1.0, pytest.approx(1.11))
    found = evaluated(tmp_path, [[0.61, math.nan], [0.61, 0.59]])
    # The reward stays as it was measured.
    assert (found["learned"], found["reward"]) == (0.0, pytest.approx(1.20))


@pytest.mark.parametrize(
    "matrix",
    [
        [[math.nan, math.nan], [0.5, 0.6]],
        [[0.6, math.nan], [math.nan, 0.6]],
        [[0.6, math.nan], [0.5, math.inf]],
    ],
)
@pytest.mark.parametrize("budget", [1.0, 1 / 3])
def test_a_run_whose_accuracies_are_not_finite_has_diverged(tmp_path, matrix, budget):
    assert math.isnan(evaluated(tmp_path, matrix, budget)["reward"])


def test_a_search_over_groups_of_ones_own(tmp_path):
    scheme = Scheme(12, layer_groups=(1, 2, 9))
    search = prepared(tmp_path, scheme=scheme)
    tried = [end(search) for _ in range(5)]
    assert all(list(rates) == list(scheme.names) for rates in tried)
    published = kenneweg2022().resample(scheme).rates
    assert any(rates == pytest.approx(published) for rates in tried)
    decayed = [5e-5 * 0.9**depth for depth in (13, 12, 10.5, 5, 0)]
    assert any(list(rates.values()) == pytest.approx(decayed) for rates in tried)
    search.save_results()
    for name in ("distribution.json", "best.json"):
        assert Distribution.load(search.folder / name).scheme == scheme
    beside = json.loads((search.folder / "scheme.json").read_text())
    assert beside == {"layers": 12, "layer_groups": [1, 2, 9]}
    assert ranked_combination(read_trials(search.folder)).scheme == scheme


def test_what_learned_nothing_is_not_recommended(tmp_path):
    search = prepared(tmp_path)
    collapsed = end(search, learned=0.0, p_s=0.9, p_o=0.9)
    good = [end(search, p_s=0.5 + 0.02 * i, p_o=0.6) for i in range(9)]
    found = results(search)
    best = Distribution.load(search.folder / "best.json")
    assert best.rates != collapsed and dict(best.rates) in good
    assert found["best"] == best.to_json()
    place = good.index(dict(best.rates))
    assert best.provenance | {"criterion": ""} == {
        "search": "small",
        "sequence": "first -> second",
        "trials": 10,
        "criterion": "",
        "reward": pytest.approx(1.1 + 0.02 * place),
        "runs": 1,
        "runs_that_learned": 1,
        "budget": 1.0,
    }
    assert "expectation of the model at the full budget" in best.provenance["criterion"]
    assert best.provenance["criterion"].endswith("of the largest budget that learned")
    assert [row["learned"] for row in written(search)] == ["false"] + ["true"] * 9
    # It is ranked as the paper has it, and counted.
    combined = Distribution.load(search.folder / "distribution.json")
    assert combined.rates == ranked_combination(read_trials(search.folder)).rates
    assert (combined.provenance["ranked"], combined.provenance["not_learned"]) == (
        10,
        1,
    )
    assert found["distribution"]["provenance"]["not_learned"] == 1


def test_where_none_learned_the_best_of_them_is_said_to_be_one(tmp_path):
    search = prepared(tmp_path)
    for i in range(4):
        end(search, learned=0.0, p_s=0.5 + 0.02 * i)
    provenance = results(search)["best"]["provenance"]
    assert provenance["runs_that_learned"] == 0
    assert provenance["criterion"].endswith("of which none learned")


def test_the_best_rests_on_all_its_runs_of_the_largest_budget(tmp_path):
    search = prepared(tmp_path, repeats=4, units=3, sampler="hyperband")
    runs = {}
    while True:
        trial = search.oracle.create_trial("w")
        if trial.status == "STOPPED":
            break
        budget = search.oracle.budget(trial)
        values = search.rates(trial.hyperparameters.values)
        reward = 1.0 + (trial.hyperparameters.values["head"] > 1e-5) / 10
        reward += 0.01 * trial.hyperparameters.values["tuner/seed"]
        if budget == 1:
            runs.setdefault(tuple(values.values()), []).append(reward)
        found = {"a1": 0.5, "p_s": reward / 2, "p_o": reward / 2, "reward": reward}
        search.oracle.update_trial(
            trial.trial_id, {**found, "seconds": 1.0, "learned": 1.0}
        )
        search.oracle.end_trial(trial)
    best = results(search)["best"]
    mine = runs[tuple(best["rates"].values())]
    assert best["provenance"]["runs"] == len(mine) > 1
    assert best["provenance"]["reward"] == pytest.approx(np.mean(mine))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_diverged_is_counted_and_left_out(tmp_path, bad):
    search = prepared(tmp_path)
    end(search, reward=bad)
    assert search.save_results() is None
    end(search)
    end(search, reward=bad)
    trial = search.oracle.create_trial("w")
    search.oracle.end_trial(trial.trial_id, "FAILED")
    end(search)
    found = results(search)
    assert (found["trials"], found["diverged"], found["failed"]) == (2, 2, 1)
    assert len(written(search)) == len(read_trials(search.folder).p_s) == 2
    assert search.oracle.trials["0000"].status == "INVALID"


@pytest.mark.parametrize(
    "wrong",
    [
        {"p_s": math.nan}, {"a1": math.inf}, {"p_o": 7.0}, {"p_s": -0.1},
        {"reward": -1.0},
    ],
)  # fmt: skip
def test_what_a_worker_cannot_have_measured_is_left_out(tmp_path, wrong):
    search = prepared(tmp_path)
    end(search)
    end(search, **({"reward": 1.0} | wrong))
    found = results(search)
    assert (found["trials"], found["diverged"]) == (1, 1)
    assert len(read_trials(search.folder).p_s) == 1


def test_a_search_of_nothing_but_zeros_has_results(tmp_path):
    search = prepared(tmp_path)
    for _ in range(3):
        end(search, learned=0.0, a1=0.0, p_s=0.0, p_o=0.0)
    found = results(search)
    assert found["best"]["provenance"]["reward"] == 0.0
    assert read_trials(search.folder).reward.tolist() == [0.0] * 3
    # And once more, as after a restart.
    assert results(search) == found


def test_every_correlation_has_its_number_of_trials(tmp_path):
    search = prepared(tmp_path)
    for i in range(7):
        end(search, p_s=0.5 + 0.02 * i, p_o=0.7 - 0.05 * i)
    found = results(search)
    assert found["reward_and_forgetting"] is None
    assert found["reward_and_forgetting_trials"] == 7
    end(search, p_s=0.9, p_o=0.1)
    found = results(search)
    assert found["reward_and_forgetting"] == pytest.approx(-1.0)
    assert found["reward_and_forgetting_trials"] == 8


def test_trials_of_an_older_version_are_taken_as_they_are(tmp_path):
    """It did not report whether they learned: nothing is said of it."""
    search = prepared(tmp_path)
    end(search, learned=None)
    end(search, learned=0.0, p_s=0.9)
    found = results(search)
    assert "learned" not in written(search)[0]
    assert found["distribution"]["provenance"]["not_learned"] is None
    assert found["best"]["rates"] != search.rates(
        search.oracle.trials["0001"].hyperparameters.values
    )


def test_what_did_not_learn_is_not_repeated(tmp_path):
    search = prepared(tmp_path, repeats=2)
    count = 0
    while search.oracle.spent < 17.5:
        end(search, learned=float(count % 6 == 5), p_s=0.9 - 0.1 * (count % 6 == 5))
        count += 1
    for trial in list(search.oracle.trials.values())[18:]:
        assert trial.metrics.get_best_value("learned") == 1.0
