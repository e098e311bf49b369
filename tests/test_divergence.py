"""A number that stops being finite is said, and never becomes an accuracy."""

import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from trainer_cases import task
from typer.testing import CliRunner

from lrdist_keras import cli, config
from lrdist_keras.distribution import flat
from lrdist_keras.laboratory import arm_rates, comparison, drift, metrics
from lrdist_keras.laboratory.statistics import compare_arms
from lrdist_keras.laboratory.summaries import summarize
from lrdist_keras.models.encoder import load_encoder
from lrdist_keras.report import comparison_tables, figures, progress, tables
from lrdist_keras.settings import TrainingSettings
from lrdist_keras.training.run import accuracy_of
from lrdist_keras.training.strategies.averaging import best_alpha
from lrdist_keras.training.strategies.elastic import Ewc, L2Sp
from lrdist_keras.training.trainer import SequentialTrainer

# A strength that no configuration may have: the square of its gradient overflows.
OVERFLOWING = 1e30


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_no_metric(bad):
    logits, labels = np.zeros((4, 2), np.float32), np.array([0, 0, 1, 1])
    logits[1, 1] = bad  # the argmax of NaN is its place
    for metric in (
        accuracy_of, metrics.matthews, metrics.f1, metrics.calibration_error,
    ):  # fmt: skip
        assert np.isnan(metric(logits, labels))
    features = np.eye(4)
    features[0, 0] = bad
    assert np.isnan(drift.linear_cka(features, np.eye(4)))
    assert np.isnan(drift.probe_accuracy(features, labels, np.eye(4), labels))
    moved = drift.weight_drift([np.ones(2)], [np.array([1, bad])], ["a"], {"a": "a"})
    assert not np.isfinite(moved["a"])
    assert best_alpha(lambda alpha: bad if alpha > 0.25 else alpha) == 0.2


def test_a_matrix_that_diverged_has_no_metric_and_did_not_learn():
    matrix = np.array([[0.9, np.nan, np.nan], [np.nan] * 3, [np.nan] * 3])
    found = {name: getattr(metrics, name)(matrix) for name in metrics.METRICS}
    assert found.pop("a1") == 0.9 and np.isnan(list(found.values())).all()
    assert not metrics.learned(matrix, np.full(3, 0.5), np.full(3, 100))
    assert np.isnan(metrics.task_forgetting(matrix)).all()


@pytest.mark.parametrize("strategy", [Ewc, L2Sp])
def test_a_training_that_overflows_says_so(tiny_preset, strategy):
    settings = TrainingSettings(batch_size=8, max_length=32, curve_points=2)
    trainer = SequentialTrainer(load_encoder(str(tiny_preset)), settings)
    tasks = [task("a", 0), task("b", 1)]
    rates = flat(1e-2, trainer.scheme)
    told = {"strategy": strategy.model_fields["strategy"].default}
    broken = strategy.model_construct(strength=OVERFLOWING, **told)
    run = trainer.run(tasks, rates, broken, 0)
    assert run.diverged
    # Of EWC the first task is trained without a penalty, and stands.
    assert np.isfinite(run.accuracy[0, 0]) == (strategy is Ewc)
    assert np.isnan(run.accuracy[1]).all()
    # The trainer is whole: the next run is what it would have been.
    sane = trainer.run(tasks, rates, strategy(strength=0.1), 0)
    assert not sane.diverged and np.isfinite(sane.accuracy[1]).all()


@pytest.fixture
def diverged(tmp_path, toml):
    """A comparison of two seeds whose arm `ewc` diverges, run as `lrdist` does."""
    (tmp_path / "c.toml").write_text(toml)
    configuration = config.load(tmp_path / "c.toml", ["training.curve_points=2"])
    prepared = comparison.prepare(configuration, tmp_path / "out")
    broken = Ewc.model_construct(strategy="ewc", strength=OVERFLOWING)
    prepared = replace(prepared, strategies=prepared.strategies | {"ewc": broken})
    return prepared


def test_an_arm_that_diverges_is_said_and_left_out(diverged, tmp_path, capsys):
    records = progress.run_comparison(diverged, diverged.pending())
    diverged.save_results(records)
    assert capsys.readouterr().out.count("diverged") == 2
    for record in records:
        lost = record["arm"] == "ewc"
        assert record["diverged"] == lost
        assert (record["p_s"] is None) == lost and (record["reward"] is None) == lost
        assert not (lost and record["learned"])
    lines = (tmp_path / "out" / "runs.jsonl").read_text()
    assert "NaN" not in lines and "Infinity" not in lines
    summary = next(s for s in summarize(records) if s.arm == "ewc")
    assert summary.diverged == summary.seeds == 2 and summary.learned == 0
    assert np.isnan(summary.mean["p_s"]) and np.isfinite(summary.mean["a1"])

    statistics = compare_arms(records, "flat", {})
    assert statistics.diverged == {"ewc": 2}
    assert not {d.arm for d in statistics.paired if d.metric == "p_s"} & {"ewc"}
    console = Console(width=200, record=True)
    console.print(tables.results_table(summarize(records), "x"))
    shown = [
        *comparison_tables.measures_tables(records),
        *comparison_tables.statistics_tables(statistics),
    ]
    for table in shown:
        console.print(table)
    text = console.export_text()
    assert "ewc (2 of 2)" in text and "Runs that diverged (ewc: 2)" in text
    distributions = diverged.distributions
    figures.save_picture(tmp_path / "c.png", records, distributions)
    figures.save_drift_picture(tmp_path / "d.png", records)

    found = CliRunner().invoke(cli.app, ["show", str(tmp_path / "out")])
    assert found.exit_code == 0 and "ewc (2 of 2)" in " ".join(found.output.split())
    json.loads((tmp_path / "out" / "results.json").read_text(), parse_constant=int)


def test_one_seed_that_diverges_leaves_the_others_in(diverged):
    records = [
        r | ({"diverged": False} if r["seed"] else {})
        for r in diverged.run(*[lambda *_: None] * 3)
    ]
    whole = next(r for r in records if r["arm"] == "flat" and r["seed"])
    records = [
        r | {n: whole[n] for n in (*metrics.METRICS, "accuracy", "learned")}
        if r["arm"] == "ewc" and r["seed"]
        else r
        for r in records
    ]
    differences = compare_arms(records, "flat", {}).paired
    (p_s,) = [d for d in differences if d.arm == "ewc" and d.metric == "p_s"]
    assert p_s.pairs == 1 and p_s.not_learned == 1 and p_s.decision.mean == 0


def test_rates_in_a_file_have_the_limits_of_the_configuration():
    rates = flat(1e4)
    arm = config.ArmSettings(name="x", distribution="d.json")
    with pytest.raises(ValueError, match="Arm 'x'.*at most 1000. Received: 10000"):
        arm_rates.arm_distribution(arm, rates, rates.scheme)
