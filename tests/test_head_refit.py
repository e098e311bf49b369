"""Old heads refitted at the end: the regression, and all else as without it."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from strategy_cases import (
    SETTINGS,
    TASKS,
    Runs,
    equal,
    features_of,
    heads_of,
    of,
)
from trainer_cases import task

from lrdist_keras.models.encoder import load_encoder
from lrdist_keras.training.run import Purpose, accuracy_of, generator
from lrdist_keras.training.strategies.head_refit import logistic_head
from lrdist_keras.training.strategies.replay import memory
from lrdist_keras.training.trainer import SequentialTrainer

CLASSES = (3, 2, 5)
THREE = [task(f"task {c}", i, classes=c) for i, c in enumerate(CLASSES)]


@pytest.fixture(scope="module")
def runs(tiny_preset):
    return Runs(SequentialTrainer(load_encoder(str(tiny_preset)), SETTINGS))


def by_newton(features, labels, classes):
    """The same minimum by Newton's method, in float64."""
    x = np.asarray(features, np.float64)
    mean, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 0, scale, 1)
    x = np.concatenate([(x - mean) / scale, np.ones((len(x), 1))], axis=1)
    count, width = x.shape
    penalised = np.repeat(np.arange(width) < width - 1, classes)
    wanted, w = np.eye(classes)[labels], np.zeros(width * classes)
    for _ in range(50):
        p = softmax(x @ w.reshape(width, classes), axis=1)
        gradient = (x.T @ (p - wanted)).ravel() + penalised * w
        hessian = np.diag(penalised.astype(float))
        for i in range(count):
            curvature = np.diag(p[i]) - np.outer(p[i], p[i])
            hessian += np.kron(np.outer(x[i], x[i]), curvature)
        # Of lowest norm, since a number may be added to all of the bias.
        w = w - np.linalg.lstsq(hessian, gradient, rcond=1e-12)[0]
    assert np.abs(gradient).max() < 1e-9
    kernel = w.reshape(width, classes)[:-1] / scale[:, None]
    return kernel, w[-classes:] - mean @ kernel


def examples(seed, count=24, width=6, classes=3):
    rng = np.random.default_rng(seed)
    features = rng.normal(2.0, 3.0, (count, width)) * np.arange(1, width + 1)
    return features.astype(np.float32), np.arange(count) % classes


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_a_head_is_the_minimum_of_the_formula(classes):
    features, labels = examples(classes, classes=classes)
    kernel, bias = logistic_head(features, labels, classes)
    expected, expected_bias = by_newton(features, labels, classes)
    assert kernel.dtype == bias.dtype == np.float32
    np.testing.assert_allclose(kernel, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(bias, expected_bias, rtol=1e-4, atol=1e-5)


def test_of_three_classes_it_is_the_default_of_scikit_learn():
    features, labels = examples(0)
    kernel, bias = logistic_head(features, labels, 3)
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(max_iter=1000, tol=1e-6)
    model.fit(scaler.transform(features.astype(np.float64)), labels)
    expected = model.predict_proba(scaler.transform(features.astype(np.float64)))
    np.testing.assert_allclose(
        softmax(features @ kernel + bias, axis=1), expected, atol=1e-4
    )


def test_a_constant_feature_counts_for_nothing():
    features, labels = examples(1)
    features[:, 2] = 0.1
    kernel, bias = logistic_head(features, labels, 3)
    assert np.isfinite(kernel).all() and np.isfinite(bias).all()
    np.testing.assert_allclose(kernel[2], 0, atol=1e-7)
    without = np.delete(features, 2, axis=1)
    np.testing.assert_allclose(
        features @ kernel + bias,
        np.matmul(without, logistic_head(without, labels, 3)[0])
        + logistic_head(without, labels, 3)[1],
        atol=1e-4,
    )


def test_more_features_than_examples_have_one_minimum():
    """As with real encoders; an independent solution in the space of the examples."""
    features, labels = examples(2, count=10, width=40, classes=2)
    kernel, bias = logistic_head(features, labels, 2)
    expected, expected_bias = by_newton(features, labels, 2)
    np.testing.assert_allclose(kernel, expected, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(bias, expected_bias, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("tasks", [TASKS, THREE], ids=["two", "three"])
def test_all_but_the_old_heads_at_the_end_is_plain_bit_for_bit(runs, tasks):
    flat_run, plain = runs.run(tasks, of())
    run, weights = runs.run(tasks, of("head_refit", examples_per_class=4))
    last = len(tasks) - 1
    for one, two in zip(plain[:-1], weights[:-1], strict=True):
        assert equal(one, two)
    assert equal(runs.backbone(plain[-1]), runs.backbone(weights[-1]))
    before, after = (heads_of(w[-1], len(tasks)) for w in (plain, weights))
    assert equal(before[last], after[last])
    for j in range(last):
        assert not equal(before[j], after[j])
    for key, logits in flat_run.logits.items():
        refitted = key[0] == last and key[1] < last
        assert np.array_equal(run.logits[key], logits) != refitted
    curves = (flat_run.curves, run.curves)
    assert curves[0] == curves[1]


@pytest.mark.parametrize("tasks", [TASKS, THREE], ids=["two", "three"])
def test_the_last_row_is_of_heads_fitted_to_the_last_features(runs, tasks):
    """By hand, in float64: features of the memory after the last task, and Newton."""
    trainer = runs.trainer
    run, weights = runs.run(tasks, of("head_refit", examples_per_class=4))
    encoder, last = runs.backbone(weights[-1]), len(tasks) - 1
    for j in range(last):
        of_task = tasks[j]
        rng = generator(0, Purpose.MEMORY, j)
        kept = memory(of_task.train, of_task.classes, 4, rng, of_task.name)
        features = features_of(trainer, kept, encoder)
        kernel, bias = by_newton(features, kept.labels, of_task.classes)
        seen = features_of(trainer, of_task.validation, encoder)
        found = run.logits[last, j]
        np.testing.assert_allclose(found, seen @ kernel + bias, rtol=2e-3, atol=2e-3)
        labels = of_task.validation.labels
        assert run.accuracy[last, j] == accuracy_of(found, labels)


def test_the_seed_decides_the_heads(runs):
    strategy = of("head_refit", examples_per_class=3)
    found = [runs.run(TASKS, strategy, seed)[1][-1] for seed in (3, 3, 4)]
    assert equal(found[0], found[1])
    assert not equal(heads_of(found[0], 2)[0], heads_of(found[2], 2)[0])


def test_of_one_task_nothing_is_refitted(runs):
    (_, plain), (_, found) = (
        runs.run(TASKS[:1], s) for s in (of(), of("head_refit", examples_per_class=99))
    )
    assert equal(plain[0], found[0])


def test_a_run_that_diverged_stays_one(runs):
    trainer = runs.trainer
    rates = runs.rates.rescaled(1e3)
    run = trainer.run(TASKS, rates, of("head_refit", examples_per_class=2), 0)
    plain = trainer.run(TASKS, rates, of(), 0)
    assert run.diverged == plain.diverged
