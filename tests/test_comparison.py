import json
from functools import partial

import numpy as np
import pytest
from record_cases import record, write_runs

from lrdist_keras import config
from lrdist_keras.config import ArmSettings
from lrdist_keras.distribution import fast_head, flat, kenneweg2022, llrd
from lrdist_keras.groups import Scheme
from lrdist_keras.laboratory import comparison
from lrdist_keras.laboratory.arms import arm_rates, for_run
from lrdist_keras.laboratory.metrics import METRICS
from lrdist_keras.laboratory.results import paired_statistics


@pytest.fixture
def configuration(tmp_path, toml):
    def configuration(*overrides):
        (tmp_path / "c.toml").write_text(toml)
        return config.load(tmp_path / "c.toml", overrides)

    return configuration


def nothing(*arguments):
    return None


def test_an_arms_rates():
    scheme = Scheme(6)
    arm = ArmSettings(name="x", rate=1e-4, decay=0.9)
    assert arm_rates(arm, {}, scheme) == (llrd(1e-4, 0.9, scheme),)
    arm = ArmSettings(name="x", rate=1e-4, fast_head=10)
    (found,) = arm_rates(arm, {}, scheme)
    assert found == fast_head(1e-4, 10, scheme) and found.rates["head"] == 1e-3
    arm = ArmSettings(name="x", distribution="d", resample=True, rescale=1e-4)
    (found,) = arm_rates(arm, {"d": kenneweg2022()}, scheme)
    assert found == kenneweg2022().resample(scheme).rescaled(1e-4)
    arm = ArmSettings(name="x", distribution="d.json")
    with pytest.raises(ValueError, match="Arm 'x'.*12/8/ceil.*6/6.*resample = true"):
        arm_rates(arm, {"d.json": kenneweg2022()}, scheme)


def test_a_folder_takes_more_seeds_but_no_other_configuration(tmp_path, configuration):
    folder = tmp_path / "out"
    claim = partial(comparison.claim, inputs={})
    claim(configuration("training.epochs=3"), folder)
    claim(configuration(), folder)  # nothing has run yet
    write_runs(folder, record())
    claim(configuration("seeds=[0,1,2]", "data.cache=/else"), folder)
    with pytest.raises(
        ValueError, match="another configuration.*arms.0.rate, comp.*, tra.*epochs"
    ):
        other = ("training.epochs=2", "arms.0.rate=1", 'compat=["no_shuffling"]')
        claim(configuration(*other), folder)
    # As does one that an older version made, which measured nothing more.
    old = json.loads((folder / "configuration.json").read_text())
    del old["measures"]
    (folder / "configuration.json").write_text(json.dumps(old))
    claim(configuration("measures.probe=false"), folder)
    write_runs(tmp_path / "foreign", record())
    with pytest.raises(ValueError, match=r"without a configuration\.json"):
        claim(configuration(), tmp_path / "foreign")
    # What a first record left that did not fit on the disk is no result.
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "runs.jsonl").write_text('{"sequence": "a')
    claim(configuration(), tmp_path / "full")
    (folder / "configuration.json").write_text('{"name": ')
    with pytest.raises(ValueError, match=r"configuration\.json is damaged"):
        claim(configuration(), folder)


def test_the_reference_and_the_flat_arms_of_a_configuration(configuration):
    arms = (
        'arms=[{name="a", rate=1e-2}, {name="b", rate=1e-3}, '
        '{name="decay", rate=1e-1, decay=0.9}, {name="d", distribution="kenneweg2022"},'
        '{name="fast", rate=1e-2, fast_head=10},'
        '{name="ewc", rate=1e-3, strategy="ewc", strength=1}]'
    )
    names = ["a", "b", "decay", "d", "fast", "ewc"]
    records = [
        {"sequence": "a -> b", "arm": arm, "seed": seed, "learned": True}
        | {"accuracy": [[0.5, None], [0.5, 0.5]], "examples": [9, 9]}
        | dict.fromkeys(METRICS, 0.5)
        for arm in names
        for seed in (0, 1)
    ]
    found = paired_statistics(configuration(arms), records)
    assert found.reference == "a"
    assert {d.arm for d in found.paired} == {"b", "decay", "d", "fast", "ewc"}
    # The others are compared with the curve, which is made of a and b.
    assert {d.arm for d in found.equal_p_s} == {"decay", "d", "fast", "ewc"}
    chosen = configuration(arms, "report.reference=ewc")
    assert paired_statistics(chosen, records).reference == "ewc"


def test_too_many_training_examples(tmp_path, configuration):
    with pytest.raises(ValueError, match="'second': `train_examples`.*64 examples"):
        comparison.prepare(
            configuration("tasks.second.train_examples=65"), tmp_path / "out"
        )


def test_more_tokens_than_the_model_has_positions(tmp_path, configuration):
    with pytest.raises(ValueError, match="max_length must be at most the 64 positions"):
        comparison.prepare(configuration("training.max_length=65"), tmp_path / "out")


def test_a_whole_comparison(tmp_path, configuration):
    folder = tmp_path / "out"
    prepared = comparison.prepare(configuration(), folder)
    order = [(arm.name, seed) for _, arm, seed in prepared.pending()]
    names = ["flat", "ewc", "kenneweg"]
    assert order == [(name, seed) for seed in (0, 1) for name in names]
    records = prepared.run(nothing, nothing, nothing)
    prepared.save_results(records)

    assert not prepared.pending()
    assert [(r["arm"], r["seed"]) for r in records] == [
        (name, seed) for name in names for seed in (0, 1)
    ]
    by_key = {(r["arm"], r["seed"]): r for r in records}
    for seed in (0, 1):
        # Paired: up to the second task, EWC is the flat arm.
        flat, ewc = by_key["flat", seed], by_key["ewc", seed]
        assert flat["accuracy"][0] == ewc["accuracy"][0]
    # Fisher, plain and penalised steps, and evaluation, of rows of 16 tokens.
    assert sum(record["compilations"] for record in records) == 4

    results = json.loads((folder / "results.json").read_text())
    assert results["runs"] == records
    assert results["configuration"]["training"]["batch_size"] == 8
    assert results["versions"]["keras"].startswith("3.")
    assert results["machine"]["devices"]
    assert results["distributions"]["flat"]["rates"]["head"] == 1e-2
    row = next(row for row in results["table"] if row["arm"] == "flat")
    values = [by_key["flat", seed]["p_s"] for seed in (0, 1)]
    assert row["mean"]["p_s"] == pytest.approx(np.mean(values))

    statistics = results["statistics"]
    assert statistics["reference"] == "flat" and statistics["equal_p_s"] is None
    (p_s,) = (
        d
        for d in statistics["paired"]
        if (d["arm"], d["metric"]) == ("kenneweg", "p_s")
    )
    others = [by_key["kenneweg", seed]["p_s"] for seed in (0, 1)]
    assert p_s["decision"]["mean"] == pytest.approx(np.mean(others) - np.mean(values))
    assert not p_s["decision"]["marked"]

    with np.load(folder / "logits" / "0-0-0.npz") as arrays:
        assert sorted(arrays) == ["after_0_on_0", "after_1_on_0", "after_1_on_1"]
        assert arrays["after_1_on_1"].shape == (40, 2)

    record = by_key["flat", 0]
    with np.load(folder / "logits" / "0-0-0.npz") as arrays:
        labels = prepared.tasks["first -> second"][1].validation.labels
        own = np.mean(arrays["after_1_on_1"].argmax(1) == labels)
    assert record["task_metrics"]["final"][1] == {"accuracy": own}
    assert (
        len(record["probe"]["final"]) == 1 and len(record["drift"]["pretrained"]) == 2
    )
    assert row["mean"]["probe_p_o"] == pytest.approx(
        np.mean([by_key["flat", seed]["probe_p_o"] for seed in (0, 1)])
    )
    second = results["labels"]["first -> second"][1]
    assert second["classes"] == ["negative", "positive"]
    labels = prepared.tasks["first -> second"][1].train.labels
    assert second["train"] == pytest.approx([np.mean(labels == 0), np.mean(labels)])

    # One line is lost: its run is done again, and gives the same numbers.
    path = folder / "runs.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    again = prepared.run(nothing, nothing, nothing)
    assert len(path.read_text().splitlines()) == 6
    for old, new in zip(records, again, strict=True):
        assert old["accuracy"] == new["accuracy"] and old["curves"] == new["curves"]


def test_a_second_process_is_kept_out(tmp_path, configuration):
    fcntl = pytest.importorskip("fcntl")
    prepared = comparison.prepare(configuration(), tmp_path / "out")
    with (tmp_path / "out" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="Another process is working"):
            prepared.run(nothing, nothing, nothing)


def test_the_parts_of_a_task_are_trained_one_after_the_other(tmp_path, configuration):
    shifted = configuration(
        "sequences.0.tasks=['first']", "sequences.0.shift=length",
        "seeds=[0]", "training.curve_points=0",
    )  # fmt: skip
    prepared = comparison.prepare(shifted, tmp_path / "out")
    names = ["first (short)", "first (long)"]
    short, long = prepared.tasks["first (length)"]
    assert [short.name, long.name] == names
    assert len(short.train) + len(long.train) == 64
    assert short.train.lengths.max() <= long.train.lengths.min()
    records = prepared.run(nothing, nothing, nothing)
    assert [r["tasks"] for r in records] == [names] * 3
    assert all(np.isfinite(r["reward"]) for r in records)


def test_rates_that_were_found_stand_in_the_records(tmp_path, configuration):
    arms = (
        'arms=[{name="flat", rate=1e-2}, '
        '{name="fisher", rate=1e-2, rates_from="fisher", rescale=5e-3, head_rate=2e-2},'
        '{name="inverse", rate=1e-2, rates_from="fisher_inverse", rescale=5e-3, '
        "head_rate=2e-2}]"
    )
    prepared = comparison.prepare(configuration(arms), tmp_path / "out")
    records = prepared.run(nothing, nothing, nothing)
    names = prepared.trainer.scheme.names
    by_key = {(r["arm"], r["seed"]): r for r in records}
    for seed in (0, 1):
        assert "rates" not in by_key["flat", seed]
        one, other = (by_key[arm, seed]["rates"] for arm in ("fisher", "inverse"))
        assert one[0] == other[0] == dict.fromkeys(names, 1e-2)
        # The first task is the flat arm's, and what is measured after it the same.
        for arm in ("fisher", "inverse"):
            assert (
                by_key[arm, seed]["accuracy"][0] == by_key["flat", seed]["accuracy"][0]
            )
        assert one[1]["head"] == other[1]["head"] == 2e-2
        for name in names[:-1]:
            assert one[1][name] * other[1][name] == pytest.approx(5e-3**2)
        logs = np.log([one[1][name] for name in names[:-1]])
        assert np.exp(logs.mean()) == pytest.approx(5e-3)
    assert by_key["fisher", 0]["rates"] != by_key["fisher", 1]["rates"]
    prepared.save_results(records)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["runs"] == records
    # As read from its folder; and it is no flat arm.
    again = comparison.prepare(configuration(arms), tmp_path / "out")
    assert not again.pending() and again.records() == records
    assert paired_statistics(again.configuration, records).equal_p_s is None


def test_rates_that_might_be_too_large_are_refused():
    arm = ArmSettings(
        name="x", rate=1e-2, rates_from="fisher", rescale=40.0, head_rate=1.0
    )
    first = flat(1e-2)
    with pytest.raises(ValueError, match="above 1000.*Received: 40.*can be 1200"):
        for_run(arm, (first,), 2)
    assert for_run(ArmSettings(name="x", rate=1e-2), (first,), 2) is first
