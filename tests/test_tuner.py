"""Trials on the trainer, their files, and what stops a search."""

import csv
import json
import os
import signal
import subprocess
import sys

import keras_tuner
import numpy as np
import pytest
from keras_tuner.src import protos
from test_oracle import make, score

from lrdist_keras import config, distribution
from lrdist_keras.data.sampling import search_slice
from lrdist_keras.data.splits import Split
from lrdist_keras.distribution import Distribution, kenneweg2022
from lrdist_keras.groups import Scheme
from lrdist_keras.laboratory import comparison
from lrdist_keras.search import search, space, trials, tuner
from lrdist_keras.search.trials import read_trials
from lrdist_keras.training.strategies.elastic import Ewc

LRDIST = [sys.executable, "-c", "from lrdist_keras.cli import main; main()"]
SMALL = [
    "search.budget=5", "search.repeats=1", "search.slice_examples=20",
    "search.units=3", "training.epochs=1",
]  # fmt: skip


def command(path, out):
    overrides = [word for setting in SMALL for word in ("--set", setting)]
    return [*LRDIST, "search", str(path), "--out", str(out), *overrides]


def environment():
    return os.environ | {"COLUMNS": "100", "NO_COLOR": "1"}


def test_a_search_from_beginning_to_end(tmp_path, toml):
    """Killed once in the middle; the programs are compiled once; a fault is named."""
    path, out = tmp_path / "c.toml", tmp_path / "out"
    path.write_text('compat = ["no_shuffling"]\n' + toml)
    with subprocess.Popen(
        command(path, out), stdout=subprocess.PIPE, text=True, env=environment()
    ) as process:
        for line in process.stdout:
            if line.startswith("trial 0002"):
                break
        process.send_signal(signal.SIGKILL)
    result = subprocess.run(
        command(path, out), capture_output=True, text=True, env=environment(),
        timeout=280,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    compiled = [
        int(line.split(" compilations")[0].split()[-1])
        for line in result.stdout.splitlines()
        if line.startswith("trial ")
    ]
    assert compiled[0] > 0 and len(compiled) >= 3
    assert sum(compiled[1:]) == 0
    # The kill may have left a file that was being written, under another name.
    names = {p.name for p in out.iterdir() if not p.name.startswith(".")}
    assert names == {
        "best.json", "configuration.json", "distribution.json", "inputs.json",
        "scheme.json", "search", "search.json", "search.png", "trials.csv",
    }  # fmt: skip
    with (out / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    state = json.loads((out / "search" / "oracle.json").read_text())
    ids = [trial["trial_id"] for trial in state["trials"]]
    assert len(ids) == len(set(ids)) == len(rows)
    spent = sum(float(row["budget"]) for row in rows)
    assert spent == pytest.approx(5.0)
    assert [row["budget"] for row in rows].count("1.0") == 4
    trials = read_trials(out)
    found = Distribution.load(out / "distribution.json")
    assert found.scheme == trials.scheme
    assert all(1e-7 <= rate <= 1e-3 for rate in found.rates.values())
    results = json.loads((out / "search.json").read_text())
    assert results["trials"] == len(rows)
    assert (results["diverged"], results["failed"]) == (0, 0)
    assert {row["learned"] for row in rows} <= {"true", "false"}
    best = Distribution.load(out / "best.json")
    assert results["best"] == best.to_json()
    assert results["compat"] == ["no_shuffling"]
    assert best.provenance["compat"] == found.provenance["compat"] == ["no_shuffling"]
    assert result.stdout.splitlines().count("compat: no_shuffling") == 1
    assert best.values.tolist() in trials.ranked()[0].tolist()
    at = (trials.rates == best.values).all(axis=1) & (trials.budget == 1)
    assert best.provenance["runs"] == at.sum() >= 1
    assert best.provenance["reward"] == pytest.approx(trials.reward[at].mean())
    assert best.provenance["runs_that_learned"] == trials.learned[at].sum()

    again = subprocess.run(
        [*command(path, out), "--set", "search.factor=2"],
        capture_output=True, text=True, env=environment(),
    )  # fmt: skip
    assert again.returncode == 2
    assert "What differs: search.factor" in again.stderr


def test_a_programming_error_ends_the_search(tmp_path):
    def evaluate(values, budget, seed):
        return values["rate_7"]

    with pytest.raises(KeyError, match="rate_7"):
        tuner.Tuner(make(tmp_path), evaluate, tmp_path).search()


def test_a_failed_trial_is_shown_and_tried_again(tmp_path, capsys):
    calls = []

    def evaluate(values, budget, seed):
        calls.append(values)
        if len(calls) == 1:
            raise FloatingPointError("the loss is not finite")
        return {"score": score(values, budget)}

    oracle = make(tmp_path, max_retries_per_trial=1)
    tuner.Tuner(oracle, evaluate, tmp_path).search()
    assert calls[0] == calls[1]
    assert len(calls) == 24
    assert "FloatingPointError: the loss is not finite" in capsys.readouterr().out


def test_a_second_process_is_kept_out(tmp_path, toml):
    path = tmp_path / "c.toml"
    path.write_text(toml)
    prepared = search.prepare(config.load(path, SMALL), tmp_path / "out")
    from lrdist_keras.laboratory.run_folder import locked

    with locked(tmp_path / "out"):
        for call in (prepared.run, lambda: prepared.serve("127.0.0.1:1")):
            with pytest.raises(OSError, match="Another process is working"):
                call()


@pytest.mark.slow
def test_a_second_chief_is_kept_out(tmp_path, toml, free_address):
    path, out = tmp_path / "c.toml", tmp_path / "out"
    path.write_text(toml)
    with subprocess.Popen(
        [*command(path, out), "--chief", free_address()],
        stdout=subprocess.PIPE, text=True, env=environment(),
    ) as chief:  # fmt: skip
        assert "Serving workers" in chief.stdout.readline()
        second = subprocess.run(
            [*command(path, out), "--chief", free_address()],
            capture_output=True, text=True, env=environment(),
        )  # fmt: skip
        chief.kill()
    assert second.returncode == 2
    assert f"Another process is working in '{out}'" in second.stderr


def test_a_flat_space_gives_a_flat_distribution(tmp_path, toml):
    path = tmp_path / "c.toml"
    path.write_text(toml)
    flat_space = [*SMALL, "search.space=flat", "search.budget=2"]
    prepared = search.prepare(config.load(path, flat_space), tmp_path / "out")
    prepared.run()
    combined = prepared.save_results()
    assert "compat" not in combined.provenance
    found = combined.rates
    rows = prepared.rows()
    assert len(rows) >= 3 and len(found) == 4
    assert len({round(rate, 15) for rate in found.values()}) == 1
    for row in rows:
        assert len({row[name] for name in found}) == 1
    # The flat rates among the start points come first.
    assert [row["head"] for row in rows[:3]] == [1e-5, 2e-5, 5e-5]
    best = Distribution.load(tmp_path / "out" / "best.json")
    assert len(set(best.values)) == 1


def test_a_strength_is_searched_with_the_rates(tmp_path, toml):
    path, out = tmp_path / "c.toml", tmp_path / "out"
    path.write_text(toml)
    chosen = [
        *SMALL, "search.budget=3", "search.space=flat", "search.arm=ewc",
        "search.strength=[1, 1e6]", "search.low=1e-3", "search.high=1e-1",
    ]  # fmt: skip
    configuration = config.load(path, chosen)
    prepared = search.prepare(configuration, out)
    prepared.run()
    prepared.save_results()
    with (out / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    strengths = [float(row["strength"]) for row in rows]
    assert strengths[0] == 10.0  # what the arm has, with the first start point
    assert all(1 <= strength <= 1e6 for strength in strengths)
    assert len(set(strengths)) > 1
    # A trial is a run of the arm with its rate and strength.
    row = next(row for row in rows if row["budget"] == "1.0" and row["seed"] == "0")
    trainer = prepared.trainer
    strategy = Ewc(strength=float(row["strength"]))
    rates = distribution.flat(float(row["head"]), trainer.scheme)
    run = trainer.run(prepared.tasks, rates, strategy, seed=0)
    assert [float(row[k]) for k in ("a1", "p_s", "p_o")] == pytest.approx(
        [run.accuracy[0, 0], run.accuracy[1, 1], run.accuracy[1, 0]]
    )
    best = Distribution.load(out / "best.json")
    assert best.provenance["strategy"] == "ewc"
    assert (best.provenance["strength"], best.rates["head"]) in [
        (strength, float(row["head"]))
        for strength, row in zip(strengths, rows, strict=True)
    ]
    assert read_trials(out).strength.tolist() == strengths
    assert json.loads((out / "search.json").read_text())["arm"]["name"] == "ewc"

    # Another strategy is another search; what the other arms are does not matter.
    others = config.load(path, [*chosen, "arms.flat.rate=1e-4"])
    search.prepare(others, out)
    with pytest.raises(ValueError, match="What differs: arms.0.strength"):
        search.prepare(config.load(path, [*chosen, "arms.ewc.strength=20.0"]), out)
    fingerprints = {
        search._fingerprint(config.load(path, [*chosen, *more]), {})
        for more in ([], ["arms.ewc.strength=20.0"], ["search.strength=[1, 10]"])
    }
    assert len(fingerprints) == 3
    assert search._fingerprint(others, {}) == search._fingerprint(configuration, {})


def test_the_strategy_of_an_arm_counts_without_its_strength(tmp_path, toml):
    path = tmp_path / "c.toml"
    path.write_text(toml)
    arms = "arms=[{name='lp_ft', rate=1e-2, strategy='lp_ft'}]"
    chosen = [*SMALL, arms, "search.arm=lp_ft"]
    plain, probing = (
        search.prepare(config.load(path, of), tmp_path / name)
        for name, of in (("plain", SMALL), ("lp_ft", chosen))
    )
    assert trials.STRENGTH not in {hp.name for hp in probing.oracle.get_space().space}
    # The probe takes as many steps as the training after it.
    assert probing.steps(1.0) == 2 * plain.steps(1.0)


def test_settings_that_differ_in_strength_are_two(tmp_path):
    (tmp_path / "scheme.json").write_text(json.dumps(Scheme(1).to_json()))
    header = "p_s,p_o,embeddings,encoder_1,head,strength,budget,seed\n"
    lines = ["0.5,0.5", "0.9,0.7", "0.7,0.7"]
    ends = ["10,1.0,0", "20,1.0,0", "20,1.0,1"]
    (tmp_path / "trials.csv").write_text(
        header
        + "".join(f"{a},1e-5,1e-5,1e-5,{b}\n" for a, b in zip(lines, ends, strict=True))
    )
    rates, rewards = read_trials(tmp_path).ranked()
    assert rewards.tolist() == pytest.approx([1.5, 1.0])
    assert rates.shape == (2, 3)


def test_the_reward_is_of_what_is_reported_where_the_splits_are_one(tmp_path, toml):
    """That of the flat arm's run in a comparison; without the fault of a slice."""
    path = tmp_path / "c.toml"
    path.write_text(toml)
    of = ["arms=[{name='flat', rate=1e-2}]", "seeds=[0]"]
    fault = [*of, 'compat=["report_on_tuning_split"]']
    compared = comparison.prepare(config.load(path, of), tmp_path / "compare")
    (record,) = compared.run(*[lambda *_: None] * 3)
    prepared = search.prepare(config.load(path, [*SMALL, *fault]), tmp_path / "out")
    found = prepared.evaluate({"rate": 1e-2}, 1.0, 0)
    assert [found[k] for k in ("a1", "p_s", "p_o", "reward")] == [
        record[k] for k in ("a1", "p_s", "p_o", "reward")
    ]
    assert [len(task.train) for task in prepared.tasks] == [64, 64]
    sliced = search.prepare(config.load(path, [*SMALL, *of]), tmp_path / "sliced")
    assert [len(task.validation) for task in sliced.tasks] == [12, 12]


def test_what_stops_a_trial_early_sees_the_first_task_only(tmp_path, toml):
    path = tmp_path / "c.toml"
    path.write_text(toml)
    fault = 'compat=["early_stopping_first_task"]'
    prepared = search.prepare(config.load(path, [*SMALL, fault]), tmp_path / "out")
    part, full = (prepared.evaluate({"rate": 1e-2}, b, 0) for b in (1 / 3, 1.0))
    assert part["reward"] == part["a1"] / 2
    assert full["reward"] == full["p_s"] + full["p_o"]
    right = search.prepare(config.load(path, SMALL), tmp_path / "right")
    without = right.evaluate({"rate": 1e-2}, 1 / 3, 0)
    assert without["reward"] == without["p_s"] + without["p_o"]
    assert {k: part[k] for k in ("a1", "p_s", "p_o")} == {
        k: without[k] for k in ("a1", "p_s", "p_o")
    }


def settings(**values):
    return config.SearchSettings(**values)


def rates_of(point):
    return {name: rate for name, rate in point.items() if name != "tuner/configuration"}


def test_start_points_and_range():
    oracle = space.make_oracle(
        settings(start_points=[1e-5, {"rate": 1e-4, "decay": 0.5}, "kenneweg2022"]),
        Scheme(3),
    )
    flat, decayed, published = oracle.start_points
    assert set(rates_of(flat).values()) == {1e-5}
    assert decayed["head"] == 1e-4 and decayed["encoder_3"] == pytest.approx(5e-5)
    resampled = kenneweg2022().resample(Scheme(3))
    assert rates_of(published) == pytest.approx(resampled.rates)
    narrow = space.make_oracle(settings(low=2e-5, high=3e-5), Scheme(3))
    assert all(
        2e-5 <= rate <= 3e-5
        for point in narrow.start_points
        for rate in rates_of(point).values()
    )


@pytest.mark.parametrize(
    ("sampler", "model", "units"),
    [
        ("bayesian_hyperband", "joint", 9),
        ("hyperband", "random", 9),
        ("gaussian_process", "joint", 1),
        ("random", "random", 1),
        ("cmaes", "cmaes", 1),
        ("tpe", "tpe", 1),
    ],
)
def test_samplers_by_one_word(sampler, model, units):
    oracle = space.make_oracle(settings(sampler=sampler), Scheme(3))
    assert (oracle.model, oracle.max_epochs) == (model, units)


def test_the_sequence_must_be_named_where_there_are_several(tmp_path, toml):
    path = tmp_path / "c.toml"
    path.write_text(toml)
    loaded = config.load(path)
    first = loaded.sequences[0]
    turned = first.model_copy(update={"tasks": first.tasks[::-1]})
    several = loaded.model_copy(update={"sequences": [first, turned]})
    with pytest.raises(ValueError, match="name it with search.sequence"):
        search.search_sequence(several)
    with pytest.raises(ValueError, match="search.sequence is 'a -> z', which is none"):
        config.load(path, ["search.sequence=a -> z"])


def test_one_task_is_no_sequence_to_search(tmp_path, toml):
    path = tmp_path / "c.toml"
    path.write_text(toml)
    loaded = config.load(path, ["sequences.0.tasks=['first']"])
    with pytest.raises(ValueError, match="at least two tasks.*Received: 'first'"):
        search.search_sequence(loaded)
    with pytest.raises(ValueError, match="above `repeats`.*budget = 4, repeats = 4"):
        config.load(path, ["search.budget=4"])


def test_of_three_tasks_the_reward_is_of_all(tmp_path, toml):
    path = tmp_path / "c.toml"
    third = (
        toml.replace(
            'tasks = ["first", "second"]',
            """tasks = [
        "first", "second", "third"]""",
        )
        + """
[[tasks]]
name = "third"
source = "files"
train = "first.csv"
validation = "second_validation.csv"
text = "text"
label = "label"
"""
    )
    path.write_text(third)
    short = [*SMALL, "search.repeats=0", "search.budget=1"]
    prepared = search.prepare(config.load(path, short), tmp_path / "out")
    prepared.run()
    for row in prepared.rows():
        # p_o is the mean of the first two.
        assert row["reward"] == pytest.approx(row["p_s"] + 2 * row["p_o"])
    prepared.save_results()
    trials = read_trials(tmp_path / "out")
    assert trials.reward.tolist() == [row["reward"] for row in prepared.rows()]


def test_the_parts_of_a_shift_are_searched(tmp_path, toml):
    path = tmp_path / "c.toml"
    path.write_text(toml)
    shift = ["sequences.0.tasks=['first']", "sequences.0.shift=length"]
    small = [*SMALL, *shift, "search.slice_examples=5"]
    prepared = search.prepare(config.load(path, small), tmp_path / "out")
    assert [task.name for task in prepared.tasks] == ["first (short)", "first (long)"]
    for task in prepared.tasks:
        # Of the 32 texts of a half, 5 make the slice; none is in both.
        assert len(task.validation) == 5 and len(task.train) <= 27


def test_a_worker_of_another_configuration_is_refused(tmp_path, toml, monkeypatch):
    path = tmp_path / "c.toml"
    path.write_text(toml)
    elsewhere = ["data.cache=/else", "model.preset=/else", "seeds=[7]", "name=else"]
    elsewhere.append("measures.probe=false")  # of comparisons
    same, other = (
        search._fingerprint(config.load(path, [*SMALL, *changed]), {})
        for changed in (elsewhere, ["training.epochs=2"])
    )
    own = search._fingerprint(config.load(path, SMALL), {})
    assert own == same != other
    scheme = Scheme(3)
    chief = space.make_oracle(settings(), scheme, own)

    class Client:
        def get_space(self):  # as a message brings it, with numbers of 32 bits
            arrived = chief.get_space().to_proto().SerializeToString()
            proto = protos.get_proto().HyperParameters.FromString(arrived)
            return keras_tuner.HyperParameters.from_proto(proto)

    monkeypatch.setattr(tuner.BaseTuner, "__init__", lambda self, oracle, **_: (
        setattr(self, "oracle", Client())
    ))  # fmt: skip
    tuner.Tuner(space.make_oracle(settings(), scheme, same), None, tmp_path)
    with pytest.raises(ConnectionError, match="The chief searches with another conf"):
        tuner.Tuner(space.make_oracle(settings(), scheme, other), None, tmp_path)


def test_correlations_between_rungs_and_with_forgetting():
    def row(rate, budget, reward, forgetting):
        return {
            "a1": reward / 2 + forgetting, "p_s": reward / 2, "p_o": reward / 2,
            "reward": reward, "head": rate, "budget": budget, "seed": 0,
            "seconds": 1.0, "sampler": "x",
        }  # fmt: skip

    low = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    high = [0.2, 0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    rows = [row(r, 1 / 3, r, 0.0) for r in (*low, 0.9)]
    rows += [row(r, 1.0, y, 1 - y) for r, y in zip(low, high, strict=True)]
    found = trials.correlations(rows)
    # 1 - 6 sum d^2 / (n (n^2 - 1)) with two places changed.
    assert found["between_rungs"] == [
        {
            "budgets": [1 / 3, 1.0],
            "settings": 8,
            "spearman": pytest.approx(1 - 6 * 2 / (8 * 63)),
        }
    ]
    assert found["reward_and_forgetting"] == pytest.approx(-1.0)
    assert found["reward_and_forgetting_trials"] == 8
    # Repeats are averaged: 0.2 and 0.4 are 0.3, above 0.1; 0.2 and -0.1 are not.
    found = trials.correlations([*rows, row(0.1, 1.0, 0.4, 0.6)])
    assert found["between_rungs"][0]["spearman"] < 1
    found = trials.correlations([*rows, row(0.1, 1.0, -0.1, 0.6)])
    assert found["between_rungs"][0]["spearman"] == pytest.approx(1.0)
    assert trials.correlations(rows[:2]) == {
        "between_rungs": [],
        "reward_and_forgetting": None,
        "reward_and_forgetting_trials": 2,
    }


def test_slices_are_cut_by_sentence():
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(300)]
    sentences = [" ".join(rng.choice(words, 8)) for _ in range(100)]
    texts = sentences + [" ".join(s.split()[2:6]) for s in sentences]
    labels = rng.integers(0, 2, len(texts)).astype("int32")
    rest, chosen = search_slice(Split((texts,), labels), 30, np.random.default_rng(1))
    assert len(chosen) == 30 and len(rest) > 100
    trained = [texts[i] for i in rest]
    for i in chosen:
        assert not any(texts[i] in t or t in texts[i] for t in trained)


def test_pairs_that_share_a_text_are_kept_together():
    first = [f"a{i // 2}" for i in range(100)]
    second = [f"b{i}" for i in range(100)]
    split = Split((first, second), np.tile([0, 1], 50).astype("int32"))
    rest, chosen = search_slice(split, 1000, np.random.default_rng(0))
    assert len(chosen) == 20  # a fifth at most
    assert not {first[i] for i in rest} & {first[i] for i in chosen}


def test_sst2_phrases_do_not_leak(shared):
    from lrdist_keras.config import DataSettings, TaskSettings
    from lrdist_keras.data.tasks import load_task

    task = load_task(
        TaskSettings(name="sst2", source="glue/sst2"),
        DataSettings(dir=str(shared / "tfds")),
    )
    train = task.splits["train"]
    rest, chosen = search_slice(train, 2000, np.random.default_rng(0))
    assert len(chosen) == 2000 and len(rest) > 60_000
    texts = [" ".join(text.split()) for text in train.texts[0]]
    trained = {texts[i] for i in rest}
    long = [f" {texts[i]} " for i in rest if len(texts[i].split()) > 12]
    for i in chosen[:100]:
        assert texts[i] not in trained
        assert not any(f" {texts[i]} " in other for other in long)
