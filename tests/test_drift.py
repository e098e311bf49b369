import math

import numpy as np
import pytest

from lrdist_keras.laboratory import drift


def features(seed, examples=60, width=7):
    return np.random.default_rng(seed).normal(size=(examples, width))


def kernel_alignment(x, y):
    """Equations 3 and 4 of arXiv 1905.00414 with linear kernels of examples."""
    n = len(x)
    centring = np.eye(n) - np.ones((n, n)) / n
    a, b = x @ x.T, y @ y.T

    def hsic(a, b):
        return np.trace(a @ centring @ b @ centring) / (n - 1) ** 2

    return hsic(a, b) / math.sqrt(hsic(a, a) * hsic(b, b))


def test_cka_equals_its_form_with_kernels():
    x = features(0) + 3
    y = np.concatenate([x[:, :3] ** 2, features(1, width=2) - 5], axis=1)
    assert drift.linear_cka(x, y) == pytest.approx(kernel_alignment(x, y))
    assert drift.linear_cka(y, x) == pytest.approx(drift.linear_cka(x, y))
    assert 0 < drift.linear_cka(x, y) < 1


def test_cka_is_one_up_to_rotation_shift_and_scale_alone():
    x = features(0)
    rotation, _ = np.linalg.qr(features(1, 7, 7))
    assert drift.linear_cka(x, 0.01 * x @ rotation + 4) == pytest.approx(1)
    stretched = x * np.array([100, 1, 1, 1, 1, 1, 1])
    assert drift.linear_cka(x, stretched) < 0.9


def test_cka_of_float32_is_computed_in_float64():
    x, y = features(0, 4000, 5), features(1, 4000, 5)
    single = drift.linear_cka((x + 100).astype(np.float32), y.astype(np.float32))
    assert single == pytest.approx(drift.linear_cka(x + 100, y), rel=1e-2)


def test_cka_of_features_that_do_not_vary_and_of_other_examples():
    constant = np.full((60, 3), 0.1, np.float32)
    assert math.isnan(drift.linear_cka(constant, features(0)))
    with pytest.raises(ValueError, match="same examples.*60 and 59"):
        drift.linear_cka(features(0), features(0)[1:])


def test_weight_drift_by_hand():
    before = [np.array([3.0, 4.0]), np.array([[2.0]]), np.array([1.0])]
    after = [np.array([3.0, 4.5]), np.array([[2.0]]), np.array([-1.0])]
    paths = ["embedding/e", "transformer_layer_0/k", "transformer_layer_1/k"]
    groups = {
        "embeddings": "embedding",
        "encoder_1": ["transformer_layer_0", "transformer_layer_1"],
        "head": "/head/kernel",
    }
    found = drift.weight_drift(before, after, paths, groups)
    assert found == pytest.approx(
        {"embeddings": 0.5 / 5, "encoder_1": math.sqrt(4 / (4 + 1))}
    )
    assert list(found) == ["embeddings", "encoder_1"]
    with pytest.raises(ValueError, match="'x' is in no group"):
        drift.weight_drift(before[:1], after[:1], ["x"], groups)


def blobs(seed, per_class=150, classes=2, apart=1.0, width=6):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    centres = apart * np.eye(classes, width)
    return rng.normal(size=(len(labels), width)) + centres[labels], labels


def test_probe_nears_the_best_possible_head():
    # Bayes' rule for two unit Gaussians d apart is right with probability Phi(d / 2).
    train, test = blobs(0, 2000, apart=2.0), blobs(1, 2000, apart=2.0)
    best = 0.5 * (1 + math.erf(math.sqrt(2) * 2.0 / 2 / math.sqrt(2)))
    assert drift.probe_accuracy(*train, *test) == pytest.approx(best, abs=0.015)


def logistic_regression(x, labels, strength):
    """Minimises sum log(1 + exp(-y f)) + |w|^2 / (2 C) by Newton's method, float64."""
    x = np.column_stack([x, np.ones(len(x))])
    penalty = np.diag([1 / strength] * (x.shape[1] - 1) + [0])
    w = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ w))
        hessian = x.T @ (x * (p * (1 - p))[:, None]) + penalty
        w -= np.linalg.solve(hessian, x.T @ (p - labels) + penalty @ w)
    return w


def test_probe_equals_newtons_method_at_one_of_the_strengths():
    train, labels = blobs(2, 40, apart=1.0, width=30)
    test, test_labels = blobs(3, 200, apart=1.0, width=30)
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    accuracies = {}
    for strength in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        w = logistic_regression((train - mean) / deviation, labels, strength)
        score = (test - mean) / deviation @ w[:-1] + w[-1]
        accuracies[strength] = np.mean((score > 0) == test_labels)
    assert len(set(accuracies.values())) > 1
    found = drift.probe_accuracy(train, labels, test, test_labels)
    assert min(abs(found - a) for a in accuracies.values()) < 1e-9


def test_probe_does_not_depend_on_the_scale_of_features():
    (train, labels), (test, test_labels) = blobs(4), blobs(5)
    scale = 10.0 ** np.arange(-3, 3)
    a = drift.probe_accuracy(train, labels, test, test_labels)
    b = drift.probe_accuracy(train * scale + 7, labels, test * scale + 7, test_labels)
    assert a == b


def test_probe_of_noise_finds_nothing_and_of_rotated_features_all():
    train, labels = features(0, 200, 20), np.arange(200) % 2
    test, test_labels = features(1, 2000, 20), np.arange(2000) % 2
    assert drift.probe_accuracy(train, labels, test, test_labels) < 0.55
    # Features that a head of their own solves, wherever they were turned.
    (x, y), (z, t) = blobs(6, apart=12.0), blobs(7, apart=12.0)
    rotation, _ = np.linalg.qr(features(2, 6, 6))
    assert drift.probe_accuracy(x @ rotation, y, z @ rotation, t) == 1.0


def test_probe_takes_rare_classes_but_needs_two_of_two():
    x, labels = blobs(8, 10, classes=2, apart=12.0)
    x, labels = np.concatenate([x, x[:1] + 50]), np.append(labels, 2)
    assert drift.probe_accuracy(x, labels, x, labels) >= 20 / 21
    with pytest.raises(ValueError, match=r"at least two training.*\[5, 1\]"):
        drift.probe_accuracy(x[:6], np.array([0] * 5 + [1]), x, labels)
