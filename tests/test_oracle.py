"""The oracle: budgets of Hyperband, proposals, state."""

import json
import os
import subprocess
import sys
import textwrap
import time

import keras_tuner
import numpy as np
import pytest
from keras_tuner.src.engine import trial as trial_module

from lrdist_keras.errors import SearchFailed
from lrdist_keras.search.durable_oracle import FATAL
from lrdist_keras.search.oracle import BayesianHyperbandOracle

OBJECTIVE = keras_tuner.Objective("score", "max")


def space(dimensions=2):
    names = [f"rate_{i}" for i in range(dimensions)]
    hyperparameters = keras_tuner.HyperParameters()
    for name in names:
        hyperparameters.Float(name, 1e-7, 1e-3, sampling="log")
    return hyperparameters


def make(folder, **options):
    options = {"max_epochs": 9, "seed": 0, "model": "random"} | options
    options.setdefault("hyperparameters", space())
    oracle = BayesianHyperbandOracle(OBJECTIVE, **options)
    oracle._set_project_dir(str(folder), "search")
    oracle.verbose = 0
    return oracle


def score(values, budget=1.0):
    x = np.array([np.log10(v) for k, v in values.items() if k.startswith("rate")])
    return float(-((x + 5) ** 2).sum() - (1 - budget))


def begin(oracle, worker="w"):
    return oracle.create_trial(worker)


def finish(oracle, trial, value=None):
    values = trial.hyperparameters.values
    value = score(values, oracle.budget(trial)) if value is None else value
    oracle.update_trial(trial.trial_id, {"score": value})
    trial.status = "COMPLETED"
    oracle.end_trial(trial)


def run(oracle, most=10**6):
    """Runs trials until none is left; returns their values."""
    done = []
    while len(done) < most:
        trial = begin(oracle)
        if trial.status != "RUNNING":
            assert trial.status == "STOPPED"
            break
        finish(oracle, trial)
        done.append(dict(trial.hyperparameters.values))
    return done


# Hyperband, as its Keras Tuner's oracle is tested, with random proposals.


def test_brackets_rungs_and_budgets(tmp_path):
    """R = 9, factor 3: 9 -> 3 -> 1, 5 -> 2, 3 (Keras Tuner's bracket sizes)."""
    done = run(make(tmp_path))
    counts = {}
    for values in done:
        key = values["tuner/bracket"], values["tuner/round"], values["tuner/epochs"]
        counts[key] = counts.get(key, 0) + 1
    assert counts == {
        (2, 0, 1): 9, (2, 1, 3): 3, (2, 2, 9): 1,
        (1, 0, 3): 5, (1, 1, 9): 2,
        (0, 0, 9): 3,
    }  # fmt: skip


def test_the_best_are_promoted_and_trained_from_their_start(tmp_path):
    oracle = make(tmp_path)
    trials = [begin(oracle) for _ in range(1)]
    while len(trials) < 9:
        finish(oracle, trials[-1])
        trials.append(begin(oracle))
    finish(oracle, trials[-1])
    best = sorted(trials, key=lambda t: -t.score)[:3]
    promoted = []
    for _ in range(3):
        trial = begin(oracle)
        assert trial.hyperparameters.values["tuner/round"] == 1
        assert trial.hyperparameters.values["tuner/initial_epoch"] == 0
        assert "tuner/trial_id" not in trial.hyperparameters.values
        promoted.append(trial.hyperparameters.values["rate_0"])
        finish(oracle, trial)
    assert promoted == [t.hyperparameters.values["rate_0"] for t in best]


def test_a_promotion_waits_for_those_that_run(tmp_path):
    oracle = make(tmp_path)
    running = [begin(oracle, f"w{i}") for i in range(9)]
    other = begin(oracle, "w9")  # of the next bracket, meanwhile
    assert other.hyperparameters.values["tuner/bracket"] == 1
    for trial in running[:6]:
        finish(oracle, trial)
    values = begin(oracle, "w10").hyperparameters.values
    assert values["tuner/round"] == 0
    for trial in running[6:]:
        finish(oracle, trial)
    values = begin(oracle, "w11").hyperparameters.values
    # Not the number of the bracket that was started last.
    assert (values["tuner/round"], values["tuner/bracket"]) == (1, 2)


def test_two_iterations_are_twice_the_trials(tmp_path):
    assert len(run(make(tmp_path, hyperband_iterations=2))) == 2 * 23


def test_an_exhausted_space_ends_the_search(tmp_path):
    hyperparameters = keras_tuner.HyperParameters()
    hyperparameters.Float("rate", 1.0, 2.0, step=0.5)
    done = run(make(tmp_path, hyperparameters=hyperparameters))
    assert {v["rate"] for v in done if v["tuner/round"] == 0} == {1.0, 1.5, 2.0}


def test_smaller_is_better_where_the_objective_says_so(tmp_path):
    oracle = BayesianHyperbandOracle(
        keras_tuner.Objective("score", "min"), 9, seed=0, hyperparameters=space()
    )
    oracle._set_project_dir(str(tmp_path), "search")
    oracle.verbose = 0
    while (trial := begin(oracle)).status == "RUNNING":
        finish(oracle, trial, -score(trial.hyperparameters.values))
    assert score(oracle.best_values()) > -0.5


# Budget, start points, proposals, repeats.


def test_the_whole_budget_is_kept(tmp_path):
    oracle = make(tmp_path, max_budget=7.0, repeats=2, hyperband_iterations=0)
    done = run(oracle)
    assert 6.5 < oracle.spent <= 7.0
    assert oracle.spent == pytest.approx(sum(v["tuner/epochs"] for v in done) / 9)
    assert oracle.is_done


def test_where_a_new_bracket_cannot_be_paid_the_best_are_repeated(tmp_path):
    """1 + 1 full runs in the first bracket, 2 in the next, and a repeat."""
    options = {"max_epochs": 3, "max_budget": 5.0, "repeats": 1}
    oracle = make(tmp_path, hyperband_iterations=0, model="joint", **options)
    seeds = [values["tuner/seed"] for values in run(oracle)]
    assert seeds == [0] * 6 + [1] and oracle.spent == pytest.approx(5.0)
    assert oracle._proposed == 5  # one for each trial of a first rung


def test_start_points_come_first(tmp_path):
    points = [{"rate_0": 1e-5, "rate_1": 1e-5}, {"rate_0": 1e-4, "rate_1": 1e-6}]
    oracle = make(tmp_path, start_points=[*points, points[0]], model="joint")
    done = run(oracle, 4)
    assert [{k: v[k] for k in points[0]} for v in done[:2]] == points
    # The third is there already: something else takes its place.
    assert len({(v["rate_0"], v["rate_1"]) for v in done}) == 4


@pytest.mark.parametrize("model", ["joint", "highest", "tpe", "cmaes"])
def test_a_model_beats_random_proposals(tmp_path, model):
    pytest.importorskip("optuna" if model == "tpe" else "cmaes")
    options = {"max_epochs": 1, "hyperband_iterations": 0, "max_budget": 30.0}
    options["hyperparameters"] = space(4)

    def regret(model, seed):
        oracle = make(tmp_path / f"{model}{seed}", model=model, seed=seed, **options)
        return -max(map(score, run(oracle)))

    ours = np.mean([regret(model, seed) for seed in range(3)])
    assert ours < 0.6 * np.mean([regret("random", seed) for seed in range(3)])


def test_the_best_are_repeated_with_other_seeds(tmp_path):
    oracle = make(tmp_path, repeats=4, model="joint")
    done = run(oracle)
    repeats = [v for v in done if v["tuner/seed"] > 0]
    assert len(done) == 23 + 4 and len(repeats) == 4
    assert {v["tuner/epochs"] for v in repeats} == {9}
    runs = {}
    for values in repeats:
        runs.setdefault((values["rate_0"], values["rate_1"]), []).append(
            values["tuner/seed"]
        )
    assert all(seeds == sorted(set(seeds)) for seeds in runs.values())
    assert len(runs) == 2


def test_the_best_is_not_the_luckiest(tmp_path):
    """One lucky run among many bad ones nearby, against a reliable plateau."""
    oracle = make(tmp_path, max_epochs=1, hyperband_iterations=0, max_budget=16.0)
    rng = np.random.default_rng(0)
    for number in range(16):
        trial = begin(oracle)
        good = number % 2
        x = (0.7 if good else 0.2) + rng.normal(0, 0.01, 2)
        for name, p in zip(("rate_0", "rate_1"), x, strict=True):
            trial.hyperparameters.values[name] = 10 ** (-7 + 4 * p)
        value = 1.0 + rng.normal(0, 0.02) if good else 0.2 + rng.normal(0, 0.02)
        finish(oracle, trial, 1.2 if number == 4 else value)
    assert oracle.best_values()["rate_0"] > 1e-5
    # What was observed is sorted as Keras Tuner does it.
    assert oracle.get_best_trials(1)[0].score == 1.2


def test_everything_follows_from_the_seed(tmp_path):
    runs = [
        run(make(tmp_path / str(i), seed=seed, model="joint"))
        for i, seed in enumerate([0, 0, 1])
    ]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_budget": 0.1},
            r"one trial of the smallest rung \(0.111 of a full run\)",
        ),
        ({"max_budget": 3.0, "repeats": 3}, "the 3 repeats. Received: 3.0"),
        ({"start_points": [{"rate_0": 1e-5}]}, "Start point 0 must name every"),
        (
            {"start_points": [{"rate_0": 1e-5, "rate_1": 1e-2}]},
            r"Start point 0: 'rate_1' must be a number in \[1e-07, 0.001\]. "
            "Received: 0.01",
        ),
        (
            {"start_points": [{"rate_0": 1e-5, "rate_1": "1e-5"}]},
            "'rate_1' must be a number in .* Received: '1e-5'",
        ),
        ({"model": "magic"}, "`model` must be one of joint"),
        ({"random_share": 2.0}, "`random_share` must be in"),
        ({"max_epochs": 0}, "`max_epochs` must be at least 1. Received: 0"),
        ({"repeats": -2}, "`repeats` must be at least 0. Received: -2"),
        ({"lease": -1.0}, "`lease` must be above 0 seconds. Received: -1.0"),
    ],
)
def test_wrong_arguments(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **options)


def mixed_space():
    """Every kind of hyperparameter, one name in two scopes.

    Keras Tuner drops the value of such a name where the last scope is not active.
    """
    hp = keras_tuner.HyperParameters()
    hp.Float("rate_0", 1e-7, 1e-3, sampling="log")
    hp.Int("layers", 1, 5)
    hp.Boolean("bias")
    hp.Choice("kind", ["a", "b"])
    with hp.conditional_scope("kind", ["a"]):
        hp.Choice("x", ["p", "q"])
    with hp.conditional_scope("kind", ["b"]):
        hp.Choice("x", ["r", "s"])
    return hp


@pytest.mark.parametrize("model", ["joint", "highest"])
def test_conditional_and_discrete_values(tmp_path, model):
    oracle = make(tmp_path, hyperparameters=mixed_space(), model=model, repeats=2)
    done = run(oracle)
    assert len(done) == 25
    for values in done:
        expected = {"a": (None,), "b": ("r", "s")}[values["kind"]]
        assert values.get("x") in expected
        assert values["layers"] in range(1, 6) and values["bias"] in (True, False)
    # The second rate is missing: the score is that of the first alone.
    assert oracle.best_values()["rate_0"] == pytest.approx(1e-5, rel=3.0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "zzz"}, "'kind' must be one of .*'a', 'b'.*. Received: 'zzz'"),
        ({"layers": 99}, r"'layers' must be a number in \[1, 5\], a whole one."),
        ({"layers": 2.5}, r"'layers' must be a number in \[1, 5\], a whole one."),
        ({"bias": "yes"}, "'bias' must be one of"),
    ],
)
def test_start_points_of_every_kind_are_checked(tmp_path, wrong, message):
    point = {"rate_0": 1e-5, "layers": 2, "bias": True, "kind": "a", "x": "p"}
    hp = keras_tuner.HyperParameters()
    hp.Float("rate_0", 1e-7, 1e-3, sampling="log")
    hp.Int("layers", 1, 5)
    hp.Boolean("bias")
    hp.Choice("kind", ["a", "b"])
    del point["x"]
    make(tmp_path, hyperparameters=hp, start_points=[point])
    with pytest.raises(ValueError, match=message):
        make(tmp_path, hyperparameters=hp, start_points=[point | wrong])


def test_a_loss_that_is_infinite_is_the_worst(tmp_path):
    options = {"model": "joint", "random_share": 0.0}
    oracle = make(tmp_path, **options)
    oracle.objective = keras_tuner.Objective("score", "min")
    for number in range(12):
        finish(oracle, begin(oracle), np.inf if number < 2 else float(number))
    scores = oracle.observations().scores
    assert scores[:3].tolist() == [-11.0, -11.0, -2.0]
    assert np.isfinite(scores).all()


def test_an_attempt_that_failed_does_not_count(tmp_path):
    oracle = make(tmp_path, max_retries_per_trial=1)
    trial = begin(oracle)
    oracle.update_trial(trial.trial_id, {"score": 9.0})
    trial.status, trial.message = "INVALID", "it broke"
    oracle.end_trial(trial)
    again = begin(oracle)
    assert again.trial_id == trial.trial_id
    finish(oracle, again, 1.0)
    assert oracle.trials[trial.trial_id].score == 1.0
    assert oracle.trials[trial.trial_id].status == "COMPLETED"


def test_a_repeat_that_fails_is_not_repeated_with_its_seed(tmp_path):
    oracle = make(tmp_path, repeats=4, model="joint", max_consecutive_failed_trials=5)
    seeds = []
    while (trial := begin(oracle)).status == "RUNNING":
        seed = trial.hyperparameters.values["tuner/seed"]
        if seed != 1:
            finish(oracle, trial)
        else:
            trial.status, trial.message = "INVALID", "it broke"
            oracle.end_trial(trial)
        if oracle._repeated:
            seeds.append(seed)
    assert trial.status == "STOPPED"
    assert seeds == [1, 1, 2, 2]  # of the two best in turn


def test_the_best_is_one_that_has_ended(tmp_path):
    oracle = make(tmp_path)
    run(oracle, 9)
    running = begin(oracle)  # a promotion of the best
    (best,) = oracle.get_best_trials(1)
    assert best.status == "COMPLETED" and best.trial_id != running.trial_id


@pytest.mark.parametrize(("model", "package"), [("tpe", "optuna"), ("cmaes", "cmaes")])
def test_a_missing_package_is_named_at_once(tmp_path, monkeypatch, model, package):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf"package {package};.*\[samplers\]"):
        make(tmp_path, model=model)


# State.


def state_of(folder):
    return json.loads((folder / "search" / "oracle.json").read_text())


def test_reloaded_it_goes_on_as_if_nothing_had_been(tmp_path):
    undisturbed = run(make(tmp_path / "a", model="joint", repeats=2))
    done = run(make(tmp_path / "b", model="joint", repeats=2), 1)
    while True:
        oracle = make(tmp_path / "b", model="joint", repeats=2)
        oracle.reload()
        trial = begin(oracle)  # killed while it runs
        oracle = make(tmp_path / "b", model="joint", repeats=2)
        oracle.reload()
        again = begin(oracle)
        assert again.trial_id == trial.trial_id
        if again.status != "RUNNING":
            break
        finish(oracle, again)
        done.append(dict(again.hyperparameters.values))
    assert done == undisturbed


def test_a_damaged_state_has_a_backup(tmp_path):
    oracle = make(tmp_path)
    run(oracle, 3)
    path = tmp_path / "search" / "oracle.json"
    path.write_text(path.read_text()[:100])
    other = make(tmp_path)
    other.reload()
    assert len(other.trials) == 3
    # The damaged file must not become the backup of the next save.
    assert json.loads(path.read_text())["trials"] == other.get_state()["trials"]
    for damaged in ("[]", json.dumps({"format": 1})):
        path.write_text(damaged)
        make(tmp_path).reload()
    path.write_text("{")
    path.with_suffix(".bak").write_text("{")
    with pytest.raises(ValueError, match="cannot be read; remove the folder"):
        make(tmp_path).reload()


def test_another_search_is_refused_by_name(tmp_path):
    run(make(tmp_path), 1)
    with pytest.raises(ValueError, match="What differs: factor, seed"):
        make(tmp_path, seed=1, factor=2).reload()
    with pytest.raises(ValueError, match="What differs: hyperparameters"):
        make(tmp_path, hyperparameters=space(3)).reload()
    other = make(tmp_path)
    other.objective = keras_tuner.Objective("score", "min")
    with pytest.raises(ValueError, match="What differs: objective"):
        other.reload()
    stock = keras_tuner.oracles.HyperbandOracle(OBJECTIVE, hyperparameters=space())
    stock._set_project_dir(str(tmp_path), "stock")
    stock.save()
    with pytest.raises(ValueError, match="another search.*format"):
        make(tmp_path).__class__.reload(_in(make(tmp_path), tmp_path, "stock"))


def test_a_seed_that_was_drawn_is_taken_up(tmp_path):
    first = make(tmp_path, seed=None)
    run(first, 3)
    second = make(tmp_path, seed=None)
    second.reload()
    assert second.seed == first.seed and len(second.trials) == 3


def test_a_space_that_a_hypermodel_completed_is_taken_up(tmp_path):
    first = make(tmp_path)
    first.update_space(space(3))
    run(first, 2)
    second = make(tmp_path)
    second.reload()
    assert [hp.name for hp in second._space()] == ["rate_0", "rate_1", "rate_2"]
    with pytest.raises(ValueError, match="What differs: hyperparameters"):
        make(tmp_path, allow_new_entries=False).reload()


def _in(oracle, folder, project):
    oracle._set_project_dir(str(folder), project)
    return oracle


def test_failed_trials_are_tried_again_and_then_end_the_search(tmp_path):
    oracle = make(tmp_path, max_retries_per_trial=1, max_consecutive_failed_trials=2)
    for expected in ("0000", "0000", "0001"):
        trial = begin(oracle)
        assert trial.trial_id == expected
        trial.status, trial.message = "INVALID", "it broke"
        oracle.end_trial(trial)
    trial = begin(oracle)
    trial.status, trial.message = "INVALID", "it broke"
    with pytest.raises(RuntimeError, match="it broke"):
        oracle.end_trial(trial)
    assert begin(oracle, "other").status == "RUNNING"  # no lock was left behind


def test_a_silent_workers_trial_goes_to_another(tmp_path):
    oracle = make(tmp_path, lease=0.05)
    trial = begin(oracle, "dies")
    assert begin(oracle, "dies").trial_id == trial.trial_id  # a sign of life
    quiet = begin(oracle, "quiet")  # gave none, and may take its time
    time.sleep(0.1)
    again = begin(oracle, "lives")
    assert again.trial_id == trial.trial_id
    assert begin(oracle, "new").trial_id not in (trial.trial_id, quiet.trial_id)
    finish(oracle, again)
    finish(oracle, trial, 10.0)  # comes too late: the first result stays
    assert oracle.trials[trial.trial_id].score != 10.0
    assert len(oracle.end_order) == 1


def test_a_stranger_leaves_no_harm(tmp_path):
    oracle = make(tmp_path, allow_new_entries=False)
    trial = begin(oracle)

    def ending(status, values=trial.hyperparameters.values):
        theirs = trial_module.Trial(space(), trial.trial_id, status)
        theirs.hyperparameters.values = dict(values)
        return lambda: oracle.end_trial(theirs)

    elsewhere = trial.hyperparameters.values | {"rate_0": 3.4e-7}
    for call, message in (
        (lambda: oracle.update_trial("none", {"score": 1.0}), "There is no trial"),
        (lambda: oracle.update_trial(trial.trial_id, {"else": 1.0}), "score"),
        (lambda: oracle.end_trial(trial_module.Trial(space(), "none")), "no trial"),
        (ending("COMPLETED"), "must have reported the objective 'score'"),
        (ending("RUNNING"), "ends as one of COMPLETED.*Received: RUNNING"),
        (ending("COMPLETED", elsewhere), "belongs to another search"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
        assert oracle.trials[trial.trial_id].status == "RUNNING"
    # What a stranger reported before it was refused does not count either.
    oracle.update_trial(trial.trial_id, {"score": 99.0})
    with pytest.raises(ValueError, match="belongs to another search"):
        ending("COMPLETED", elsewhere)()
    finish(oracle, trial)
    assert oracle.trials[trial.trial_id].score < 1
    assert len(run(oracle)) == 22


def test_a_mistake_in_the_program_ends_the_search_and_keeps_the_trial(tmp_path):
    oracle = make(tmp_path)
    trial = begin(oracle)
    trial.message = FATAL + "KeyError: 'rate_7'"
    trial = trial_module.Trial.from_state(trial.get_state() | {"status": "FAILED"})
    with pytest.raises(SearchFailed, match="KeyError: 'rate_7'"):
        oracle.end_trial(trial)
    oracle = make(tmp_path)
    oracle.reload()
    assert begin(oracle).trial_id == trial.trial_id


KILLS = """
    import os, random, signal, sys, time, warnings
    warnings.simplefilter("ignore")
    sys.path.insert(0, "tests")
    import numpy as np
    from test_oracle import make, score, state_of
    from lrdist_keras.search.tuner import Tuner
    from pathlib import Path

    def evaluate(values, budget, seed):
        rng = np.random.default_rng(int(1e9 * sum(values.values())) + seed)
        time.sleep(0.04)
        return {"score": score(values, budget) + rng.normal(0, 0.01)}

    def search(folder):
        oracle = make(folder, model="joint", repeats=2, hyperband_iterations=2)
        Tuner(oracle, evaluate, folder).search()

    folder, moments, done = Path(sys.argv[1]), random.Random(0), 0
    search(folder / "undisturbed")
    for _ in range(20):
        if not (child := os.fork()):
            search(folder / "killed")
            os._exit(0)
        time.sleep(moments.random() * 0.3)
        os.kill(child, signal.SIGKILL)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        state = folder / "killed" / "search" / "oracle.json"
        trials = len(state_of(folder / "killed")["trials"]) if state.exists() else 0
        print(killed, trials, flush=True)
    search(folder / "killed")
"""


def test_killed_at_twenty_moments_nothing_is_lost_or_doubled(tmp_path):
    script = tmp_path / "kills.py"
    script.write_text(textwrap.dedent(KILLS))
    result = subprocess.run(
        [sys.executable, script, tmp_path],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    moments = [line.split() for line in result.stdout.splitlines()]
    # Really killed, at different places, most of them before the end.
    assert sum(killed == "True" for killed, _ in moments) >= 10
    assert len({trials for _, trials in moments}) >= 3
    runs = [state_of(tmp_path / name)["trials"] for name in ("undisturbed", "killed")]
    ids = [trial["trial_id"] for trial in runs[1]]
    assert len(ids) == len(set(ids)) == 2 * 23 + 2
    values = [[t["hyperparameters"]["values"] for t in trials] for trials in runs]
    assert values[0] == values[1]
    assert [t["score"] for t in runs[0]] == [t["score"] for t in runs[1]]
    for file in (tmp_path / "killed").rglob("*.json"):
        json.loads(file.read_text())
