"""What users of Keras Tuner's oracles count on, for any space and any tuner."""

import threading

import keras_tuner
import numpy as np
import pytest
from keras_tuner.src import protos
from keras_tuner.src.distribute.oracle_chief import OracleServicer
from keras_tuner.src.engine import trial as trial_module
from keras_tuner.src.engine.base_tuner import BaseTuner
from test_oracle import OBJECTIVE, begin, finish, make, run, score

from lrdist_keras.search.oracle import BayesianHyperbandOracle


def play(oracle, value_of):
    """Runs trials until none is left; returns the values of each."""
    done = []
    while (trial := begin(oracle)).status == "RUNNING":
        values = trial.hyperparameters.values
        done.append({k: v for k, v in values.items() if not k.startswith("tuner/")})
        finish(oracle, trial, value_of(done[-1]))
    assert trial.status == "STOPPED"
    return done


def choices():
    hp = keras_tuner.HyperParameters()
    hp.Choice("kind", [f"k{i}" for i in range(6)])
    hp.Choice("size", [8, 16, 32, 64])
    hp.Boolean("bias")
    hp.Int("layers", 1, 6)
    return hp


def liking(values):
    """Best with one kind of six, a bias, and the middle of the numbers."""
    right = values["kind"] == "k4"
    return right + 0.5 * values["bias"] - 0.1 * abs(values["layers"] - 4)


@pytest.mark.parametrize("model", ["joint", "highest", "random", "tpe", "cmaes"])
def test_a_space_without_a_float_is_searched(tmp_path, model):
    pytest.importorskip("optuna" if model == "tpe" else "cmaes")
    oracle = make(tmp_path, hyperparameters=choices(), model=model, max_epochs=3)
    done = play(oracle, liking)
    assert len(done) == 3 + 1 + 2
    for values in done:
        assert values["kind"] in {f"k{i}" for i in range(6)}
        assert values["size"] in {8, 16, 32, 64} and values["layers"] in range(1, 7)
        assert isinstance(values["bias"], bool)
    assert oracle.best_values() in done


def test_of_choices_a_model_finds_better_ones_than_chance(tmp_path):
    options = {"max_epochs": 1, "hyperband_iterations": 0, "max_budget": 24.0}

    def mean(model, seed):
        options["hyperparameters"] = choices()
        oracle = make(tmp_path / f"{model}{seed}", model=model, seed=seed, **options)
        done = play(oracle, liking)
        assert len({tuple(v.items()) for v in done}) == 24  # none is tried twice
        return np.mean([liking(values) for values in done[8:]])

    ours = np.mean([mean("joint", seed) for seed in range(2)])
    assert ours > 0.3 + np.mean([mean("random", seed) for seed in range(2)])


def test_a_small_space_is_tried_to_its_end_by_a_model_too(tmp_path):
    hp = keras_tuner.HyperParameters()
    hp.Choice("kind", ["a", "b", "c"])
    hp.Boolean("bias")
    options = {"max_epochs": 1, "hyperband_iterations": 0, "random_share": 0.0}
    oracle = make(tmp_path, hyperparameters=hp, model="joint", **options)
    done = play(oracle, lambda values: float(values["kind"] == "b") + values["bias"])
    assert len({tuple(v.items()) for v in done}) == len(done) == 6
    assert oracle.best_values() == {"kind": "b", "bias": True}


def test_an_empty_space_is_one_trial(tmp_path):
    oracle = make(tmp_path, hyperparameters=None, model="joint", repeats=1)
    assert oracle.get_best_trials() == []
    done = play(oracle, lambda values: 0.5)
    assert done == [{}, {}, {}, {}]  # on each rung, and repeated
    assert oracle.best_values() == {}
    assert oracle.get_best_trials(1)[0].score == 0.5
    fixed = keras_tuner.HyperParameters()
    fixed.Fixed("version", 3)
    oracle = make(tmp_path / "fixed", hyperparameters=fixed, model="joint")
    assert play(oracle, lambda values: 0.5) == [{"version": 3}] * 3


def test_nothing_is_the_best_before_a_trial_is_finished(tmp_path):
    oracle = make(tmp_path)
    assert oracle.get_best_trials(5) == []
    begin(oracle)
    assert oracle.get_best_trials(5) == []
    with pytest.raises(ValueError, match="no best trial, because none is finished"):
        oracle.best_values()


def test_the_best_trials_are_sorted_by_what_was_observed(tmp_path):
    """Of full runs first: scores of different budgets do not compare."""
    oracle = make(tmp_path, model="joint", max_epochs=3)
    rng = np.random.default_rng(0)
    while (trial := begin(oracle)).status == "RUNNING":
        low = trial.hyperparameters.values["tuner/epochs"] < 3
        finish(oracle, trial, rng.random() + 10 * low)
    best = oracle.get_best_trials(100)
    found = [(oracle.budget(trial), trial.score) for trial in best]
    assert len(found) == len(oracle.trials) == 6
    assert found == sorted(found, reverse=True)


def test_smaller_scores_come_first_where_they_are_better(tmp_path):
    oracle = make(tmp_path, max_epochs=1, hyperband_iterations=0, max_budget=5.0)
    oracle.objective = keras_tuner.Objective("score", "min")
    for value in (3.0, 1.0, 5.0, 2.0, 4.0):
        finish(oracle, begin(oracle), value)
    assert [t.score for t in oracle.get_best_trials(3)] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "end",
    [
        lambda oracle, trial: oracle.end_trial(trial.trial_id, "COMPLETE"),
        lambda oracle, trial: oracle.end_trial(trial.trial_id, "COMPLETED"),
        lambda oracle, trial: oracle.end_trial(trial.trial_id),
        lambda oracle, trial: oracle.end_trial(
            trial_id=trial.trial_id, status="COMPLETED"
        ),
        lambda oracle, trial: oracle.end_trial(trial),  # it says RUNNING
    ],
)
def test_a_trial_can_be_ended_as_of_old(tmp_path, end):
    oracle = make(tmp_path)
    trial = begin(oracle)
    values = dict(trial.hyperparameters.values)
    oracle.update_trial(trial.trial_id, {"score": 0.25})
    end(oracle, trial)
    assert trial.status == "COMPLETED" and trial.score == 0.25
    # Keras Tuner would replace them by the defaults of the space.
    assert trial.hyperparameters.values == values
    assert begin(oracle).trial_id != trial.trial_id


def test_an_end_by_its_id_can_be_a_failure(tmp_path):
    oracle = make(tmp_path)
    trial = begin(oracle)
    oracle.end_trial(trial.trial_id, "FAILED")
    assert trial.status == "FAILED"
    with pytest.raises(ValueError, match="There is no trial 'none'"):
        oracle.end_trial("none", "COMPLETED")


class Own(BayesianHyperbandOracle):
    """An oracle that makes its own values, as subclasses of Keras Tuner's do."""

    def populate_space(self, trial_id):
        status = "RUNNING" if len(self.trials) < 3 else "STOPPED"
        return {"status": status, "values": {"own": len(self.trials)}}


def test_a_trial_that_says_nothing_of_epochs_is_a_full_run(tmp_path):
    oracle = Own(OBJECTIVE, max_epochs=9, seed=0, model="joint")
    oracle._set_project_dir(str(tmp_path), "search")
    oracle.verbose = 0
    while (trial := begin(oracle)).status == "RUNNING":
        finish(oracle, trial, float(trial.hyperparameters.values["own"]))
    assert oracle.spent == 3.0
    assert [t.score for t in oracle.get_best_trials(3)] == [2.0, 1.0, 0.0]
    again = Own(OBJECTIVE, max_epochs=9, seed=0, model="joint")
    again._set_project_dir(str(tmp_path), "search")
    again.reload()
    assert len(again.trials) == 3


class Growing(BaseTuner):
    """A tuner whose space is known only when its trials have run."""

    def run_trial(self, trial):
        hp = trial.hyperparameters
        kind = hp.Choice("kind", ["linear", "deep"])
        with hp.conditional_scope("kind", ["deep"]):
            layers = hp.Int("layers", 1, 5) if kind == "deep" else 0
        return {"score": hp.Float("rate", 0.0, 1.0) + layers}


@pytest.mark.parametrize("model", ["joint", "random"])
def test_a_tuner_of_keras_tuner_fills_the_space_as_it_goes(tmp_path, model):
    oracle = BayesianHyperbandOracle(OBJECTIVE, max_epochs=3, seed=1, model=model)
    tuner = Growing(oracle, directory=str(tmp_path), project_name="p")
    oracle.verbose = 0
    tuner.search()
    names = {hp.name for hp in oracle.get_space().space}
    assert names == {"kind", "layers", "rate"}
    assert len(oracle.trials) == 6
    for trial in oracle.trials.values():
        values = trial.hyperparameters.values
        assert ("layers" in values) == (values["kind"] == "deep")
    best = tuner.get_best_hyperparameters()[0].values
    top = max(t.score for t in oracle.trials.values() if oracle.budget(t) == 1)
    assert best["rate"] + best.get("layers", 0) == top
    # Started again it takes up what it had.
    oracle = BayesianHyperbandOracle(OBJECTIVE, max_epochs=3, seed=1, model=model)
    again = Growing(oracle, directory=str(tmp_path), project_name="p")
    oracle.verbose = 0
    again.search()
    assert len(oracle.trials) == 6
    # Told to overwrite it begins anew.
    oracle = BayesianHyperbandOracle(OBJECTIVE, max_epochs=3, seed=1, model=model)
    Growing(oracle, directory=str(tmp_path), project_name="p", overwrite=True)
    assert oracle.trials == {} and begin(oracle).trial_id == "0000"


def test_a_space_that_must_not_grow_says_so(tmp_path):
    oracle = make(tmp_path, allow_new_entries=False)
    new = oracle.get_space()
    new.Int("layers", 1, 5)
    with pytest.raises(RuntimeError, match="`allow_new_entries` is `False`"):
        oracle.update_space(new)


def test_keras_tuners_own_chief_can_serve_it(tmp_path):
    """Messages to its servicer, as its client sends them."""
    options = {"max_epochs": 1, "hyperband_iterations": 3}
    oracle = make(tmp_path, hyperparameters=choices(), **options)
    chief, messages = OracleServicer(oracle), protos.get_service()
    space = chief.GetSpace(messages.GetSpaceRequest(), None).hyperparameters
    assert {hp.name for hp in keras_tuner.HyperParameters.from_proto(space).space} == {
        "kind", "size", "bias", "layers",
    }  # fmt: skip
    for number in range(3):
        request = messages.CreateTrialRequest(tuner_id="w")
        made = chief.CreateTrial(request, None).trial
        ended = trial_module.Trial.from_proto(made)
        assert ended.hyperparameters.get("kind") in {f"k{i}" for i in range(6)}
        request = messages.UpdateTrialRequest(
            trial_id=ended.trial_id, metrics={"score": float(number)}, step=2
        )
        chief.UpdateTrial(request, None)
        ended.status = "FAILED" if number == 1 else "COMPLETED"
        chief.EndTrial(messages.EndTrialRequest(trial=ended.to_proto()), None)
        request = messages.GetTrialRequest(trial_id=ended.trial_id)
        found = trial_module.Trial.from_proto(chief.GetTrial(request, None).trial)
        assert found.status == ended.status
    request = messages.GetBestTrialsRequest(num_trials=3)
    best = chief.GetBestTrials(request, None).trials
    assert [trial.score.value for trial in best] == [2.0, 0.0]
    request = messages.CreateTrialRequest(tuner_id="w")
    last = trial_module.Trial.from_proto(chief.CreateTrial(request, None).trial)
    assert last.status == "STOPPED"
    assert chief.stop_triggered


class Synchronized(BayesianHyperbandOracle):
    """Takes Keras Tuner's lock first, as its documentation asks of subclasses."""

    @keras_tuner.synchronized
    def create_trial(self, tuner_id):
        return super().create_trial(tuner_id)

    @keras_tuner.synchronized
    def end_trial(self, trial):
        return super().end_trial(trial)


def test_subclasses_that_take_keras_tuners_lock_do_not_wait_for_each_other(tmp_path):
    oracle = Synchronized(OBJECTIVE, 9, hyperband_iterations=0, model="random")
    for name in ("a", "b"):
        oracle.hyperparameters.Float(name, 0.0, 1.0)
    oracle._set_project_dir(str(tmp_path), "search")
    oracle.verbose = 0
    oracle.save = lambda: None

    def work(name):
        for _ in range(25):
            trial = oracle.create_trial(name)
            oracle.update_trial(trial.trial_id, {"score": 1.0})
            trial.status = "COMPLETED"
            oracle.end_trial(trial)

    threads = [
        threading.Thread(target=work, args=(f"w{i}",), daemon=True) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert len(oracle.end_order) == 100


def test_several_objectives_are_one_sum(tmp_path):
    oracle = make(tmp_path, max_epochs=1, hyperband_iterations=0, max_budget=3.0)
    up, down = (
        keras_tuner.Objective("gain", "max"),
        keras_tuner.Objective("loss", "min"),
    )
    oracle.objective = keras_tuner.Oracle([up, down]).objective
    for gain, loss in ((1.0, 0.5), (3.0, 0.5), (2.0, 0.1)):
        trial = begin(oracle)
        metrics = {"gain": gain, "loss": loss}
        metrics["multi_objective"] = oracle.objective.get_value(metrics)
        oracle.update_trial(trial.trial_id, metrics)
        trial.status = "COMPLETED"
        oracle.end_trial(trial)
    assert [t.score for t in oracle.get_best_trials(3)] == [-2.5, -1.9, -0.5]


def test_without_hyperparameters_a_search_can_be_shown(tmp_path, capsys):
    oracle = make(tmp_path, max_epochs=3)
    oracle.verbose = 1
    run(oracle)
    assert "Best score So Far" in capsys.readouterr().out
    assert score(oracle.best_values()) < 0
