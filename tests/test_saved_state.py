"""The state of a search on disk: damaged, doubled, and resumed."""

import copy
import json
import math

import keras_tuner
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_oracle import begin, finish, make, mixed_space, run, score, state_of

from lrdist_keras.errors import InputError


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The state of a search in its middle: trials of every status."""
    folder = tmp_path_factory.mktemp("saved")
    options = {"hyperparameters": mixed_space(), "repeats": 2}
    oracle = make(folder, max_retries_per_trial=1, **options)
    for value in (1.0, 2.0, math.nan, math.nan, 3.0):
        finish(oracle, begin(oracle), value)
    for _ in range(2):
        trial = begin(oracle)
        trial.status, trial.message = "INVALID", "it broke"
        oracle.end_trial(trial)
    begin(oracle, "a")
    begin(oracle, "b")
    state = state_of(folder)
    found = {trial["status"] for trial in state["trials"]}
    assert found == {"COMPLETED", "INVALID", "FAILED", "RUNNING"}
    return state


def reload(folder, state, backup):
    search = folder / "search"
    search.mkdir(exist_ok=True)
    (search / "oracle.json").write_text(state)
    (search / "oracle.bak").write_text(backup)
    oracle = make(folder, hyperparameters=mixed_space(), repeats=2)
    oracle.reload()
    return oracle


def test_what_was_saved_is_taken_up(tmp_path, saved):
    oracle = reload(tmp_path, json.dumps(saved), "{")
    assert list(oracle.trials) == [trial["trial_id"] for trial in saved["trials"]]
    assert {begin(oracle, name).trial_id for name in ("c", "d")} == set(
        saved["ongoing_trials"].values()
    )


def put(*path, value):
    def change(state):
        at = state
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value

    return change


def twice(state):
    state["trials"].append(copy.deepcopy(state["trials"][0]))


WRONG = {
    "a trial twice": twice,
    "no trials": put("trials", value=None),
    "trials by name": put("trials", value={}),
    "a trial that is none": put("trials", 0, value=7),
    "an unknown status": put("trials", 0, "status", value="DONE"),
    "a score that is no number": put("trials", 0, "score", value="high"),
    "a score that is not finite": put("trials", 0, "score", value=math.inf),
    "a value that is not finite": put(
        "trials", 0, "hyperparameters", "values", "rate_0", value=math.nan
    ),
    "a value that is a list": put(
        "trials", 0, "hyperparameters", "values", "rate_0", value=[1e-5]
    ),
    "no values": put("trials", 0, "hyperparameters", "values", value=None),
    "a value that is missing": lambda state: state["trials"][0]["hyperparameters"][
        "values"
    ].pop("rate_0"),
    "a kind of value that is unknown": put(
        "trials", 0, "hyperparameters", "space", 0, "class_name", value="Complex"
    ),
    "metrics of another shape": put("trials", 0, "metrics", value={"metrics": [1]}),
    "a metric that is no number": put(
        "trials", 0, "metrics", "metrics", "score", "observations", 0, "value",
        value=["x"],
    ),
    "an end of a trial that is not there": put("end_order", 0, value="9999"),
    "an end of a trial that runs": lambda state: state["end_order"].append(
        next(iter(state["ongoing_trials"].values()))
    ),
    "an end that came twice": lambda state: state["end_order"].append(
        state["end_order"][0]
    ),
    "a bracket without rounds": put("brackets", 0, "rounds", value=[]),
    "a rung of a trial that is not there": put(
        "brackets", 0, "rounds", 0, 0, value={"past_id": None, "id": "9999"}
    ),
    "a space that is none": put("hyperparameters", "space", value=[{}]),
    "a seed that is none": put("seed", value=None),
    "an iteration below 0": put("current_iteration", value=-1),
    "proposals that are text": put("proposed", value="5"),
    "repeats that are not there": put("repeated", value=["9999"]),
    "times that are none": put("display", "trial_start", value={"0000": "noon"}),
    "a largest budget that is none": put("max_epochs", value="nine"),
    "a key that is missing": lambda state: state.pop("tried_so_far"),
}  # fmt: skip


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_a_damaged_state_gives_way_to_its_backup(tmp_path, saved, change):
    wrong = copy.deepcopy(saved)
    change(wrong)
    oracle = reload(tmp_path, json.dumps(wrong), json.dumps(saved))
    assert list(oracle.trials) == [trial["trial_id"] for trial in saved["trials"]]
    assert json.loads((tmp_path / "search" / "oracle.json").read_text())["trials"]
    with pytest.raises(InputError, match="cannot be read; remove the folder") as error:
        reload(tmp_path, json.dumps(wrong), "[]")
    assert "oracle.json: " in str(error.value) and "oracle.bak: " in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["", "{", "{}", "null", "7", '"x"', "[" * 100_000, '{"a":' * 100_000, "\ufeff{}",
     '{"format": 1}', '{"format": 1, "trials": 1' + "0" * 5000 + "}"],
)  # fmt: skip
def test_what_is_no_state_at_all_gives_way_too(tmp_path, saved, text):
    assert len(reload(tmp_path, text, json.dumps(saved)).trials) == len(saved["trials"])
    with pytest.raises(InputError, match="cannot be read; remove the folder"):
        reload(tmp_path, text, text)


@pytest.mark.parametrize(
    "text", ['{"format": 2, "hyperparameters": [1]}', '{"start_order": 7}']
)
def test_a_state_of_another_program_is_refused_by_name(tmp_path, saved, text):
    with pytest.raises(InputError, match="belongs to another search.*format"):
        reload(tmp_path, text, json.dumps(saved))


def places(content, path=()):
    """Every place in a JSON document."""
    yield path
    children = {}
    if isinstance(content, dict):
        children = content
    elif isinstance(content, list):
        children = dict(enumerate(content))
    for key, child in children.items():
        yield from places(child, (*path, key))


ANYTHING = st.sampled_from([None, True, -1, 2.5, "x", [], {}, [[]], {"x": 1}, 10**30])


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_whatever_stands_anywhere_it_is_taken_up_or_refused(tmp_path, saved, data):
    """Never half: an oracle that took it up can go on."""
    place = data.draw(st.sampled_from([place for place in places(saved) if place]))
    wrong = copy.deepcopy(saved)
    put(*place, value=data.draw(ANYTHING))(wrong)
    try:
        oracle = reload(tmp_path, json.dumps(wrong), "[]")
    except InputError as error:
        assert "cannot be read" in str(error) or "belongs to another" in str(error)
        return
    trial = begin(oracle, "someone")
    assert trial.status in ("RUNNING", "IDLE", "STOPPED")
    oracle.save()


@pytest.mark.parametrize("model", ["joint", "random"])
def test_a_search_that_was_resumed_twice_is_the_undisturbed_one(tmp_path, model):
    """Its second half must not start over what the first resumption added.

    See keras-tuner#1055. A part of the space diverges, and a part of it fails.
    """

    def oracle(folder):
        hp = keras_tuner.HyperParameters()
        hp.Float("rate_0", 1e-7, 1e-3, sampling="log")
        hp.Choice("kind", ["a", "b", "c"])
        options = {"max_epochs": 4, "factor": 2, "max_retries_per_trial": 1}
        options |= {"repeats": 2, "max_consecutive_failed_trials": 99}
        return make(tmp_path / folder, hyperparameters=hp, model=model, **options)

    def go_on(oracle, most):
        done = 0
        while done < most and (trial := begin(oracle)).status == "RUNNING":
            values, done = trial.hyperparameters.values, done + 1
            if values["kind"] == "c":
                trial.status, trial.message = "INVALID", "it broke"
                oracle.end_trial(trial)
            else:
                bad = values["rate_0"] > 1e-4
                finish(oracle, trial, math.nan if bad else score(values))
        return oracle

    undisturbed = go_on(oracle("undisturbed"), 10**6)
    go_on(oracle("resumed"), 4)
    for most in (5, 10**6):
        resumed = oracle("resumed")
        resumed.reload()
        begin(resumed)  # killed while it ran
        resumed = oracle("resumed")
        resumed.reload()
        go_on(resumed, most)
    assert begin(resumed).status == "STOPPED"
    theirs, ours = ({**o.get_state()} for o in (undisturbed, resumed))
    for state in (theirs, ours):
        del state["display"]
    assert json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True)


def test_a_finished_search_stays_finished(tmp_path):
    done = run(make(tmp_path, max_epochs=3))
    for _ in range(2):
        oracle = make(tmp_path, max_epochs=3)
        oracle.reload()
        assert begin(oracle).status == "STOPPED"
        assert len(oracle.trials) == len(done)
