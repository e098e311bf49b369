import math

import numpy as np
import pytest

from lrdist_keras.laboratory import metrics
from lrdist_keras.training.run import accuracy_of

NAN = float("nan")
TWO = np.array([[0.9, NAN], [0.7, 0.8]])
THREE = np.array([[0.9, NAN, NAN], [0.95, 0.8, NAN], [0.6, 0.75, 0.7]])


def test_two_tasks():
    assert metrics.a1(TWO) == 0.9
    assert metrics.p_s(TWO) == 0.8
    assert metrics.p_o(TWO) == 0.7
    assert metrics.reward(TWO) == pytest.approx(0.8 + 0.7)
    assert metrics.forgetting(TWO) == pytest.approx(0.9 - 0.7)


def test_more_tasks():
    assert metrics.p_o(THREE) == pytest.approx((0.6 + 0.75) / 2)
    assert metrics.reward(THREE) == pytest.approx(3 * (0.6 + 0.75 + 0.7) / 3)
    # The first task was best after the second, with 0.95.
    assert metrics.forgetting(THREE) == pytest.approx(((0.95 - 0.6) + (0.8 - 0.75)) / 2)


def test_a_task_that_gained_has_negative_forgetting():
    gained = np.array([[0.7, NAN], [0.8, 0.9]])
    assert metrics.forgetting(gained) == pytest.approx(-0.1)


def test_one_task_has_nothing_to_forget():
    one = np.array([[0.9]])
    assert (metrics.a1(one), metrics.p_s(one)) == (0.9, 0.9)
    assert math.isnan(metrics.p_o(one)) and math.isnan(metrics.forgetting(one))


@pytest.mark.parametrize("second, learned", [(0.599, False), (0.601, True)])
def test_learned_is_two_standard_errors_above_the_majority(second, learned):
    # sqrt(0.5 * 0.5 / 100) = 0.05
    matrix = np.array([[0.9, NAN], [0.9, second]])
    rates, examples = np.array([0.5, 0.5]), np.array([100, 100])
    assert metrics.learned(matrix, rates, examples) is learned


def test_the_first_task_must_be_learned_too():
    matrix = np.array([[0.51, NAN], [0.51, 0.9]])
    rates, examples = np.array([0.5, 0.5]), np.array([100, 100])
    assert not metrics.learned(matrix, rates, examples)
    assert metrics.learned_tasks(matrix, rates, examples).tolist() == [False, True]


# After each of three tasks, with the accuracy on the tasks to come.
FULL = np.array([[0.9, 0.5, 0.3], [0.95, 0.8, 0.45], [0.6, 0.75, 0.7]])
BEFORE = np.array([0.4, 0.35, 0.4])


def test_transfer_by_hand():
    assert metrics.average_accuracy(FULL) == pytest.approx((0.6 + 0.75 + 0.7) / 3)
    backward = ((0.6 - 0.9) + (0.75 - 0.8)) / 2
    assert metrics.backward_transfer(FULL) == pytest.approx(backward)
    forward = ((0.5 - 0.35) + (0.45 - 0.4)) / 2
    assert metrics.forward_transfer(FULL, BEFORE) == pytest.approx(forward)
    assert metrics.learning_accuracy(FULL) == pytest.approx((0.9 + 0.8 + 0.7) / 3)
    assert metrics.task_forgetting(FULL) == pytest.approx([0.95 - 0.6, 0.8 - 0.75])
    joint = np.array([0.9, 0.85, 0.75])
    assert metrics.intransigence(FULL, joint) == pytest.approx((0.05 + 0.05) / 3)


def test_what_needs_no_accuracy_before_training_ignores_it():
    lower = np.where(np.tril(np.ones((3, 3))) > 0, FULL, NAN)
    for name in ("average_accuracy", "backward_transfer", "learning_accuracy"):
        formula = getattr(metrics, name)
        assert formula(lower) == formula(FULL)
    assert math.isnan(metrics.forward_transfer(lower, BEFORE))


def test_one_task_has_no_transfer():
    one = np.array([[0.9]])
    assert metrics.average_accuracy(one) == metrics.learning_accuracy(one) == 0.9
    assert math.isnan(metrics.backward_transfer(one))
    assert math.isnan(metrics.forward_transfer(one, np.array([0.5])))


def renate(matrix, initial):
    """The definitions of Renate, whose sums run over tasks counted from 0."""
    last = len(matrix) - 1
    average = sum(matrix[last][j] for j in range(last + 1)) / (last + 1)
    forgetting = backward = forward = 0.0
    for j in range(last):
        forgetting += max(matrix[i][j] for i in range(last)) - matrix[last][j]
        backward += matrix[last][j] - matrix[j][j]
        forward += matrix[j][j + 1] - initial[j + 1]
    return average, forgetting / last, backward / last, forward / last


def avalanche(matrix, initial):
    """Avalanche keeps the first, the last and the value before training by task."""
    first, final, zero_shot = {}, {}, {}
    for after, row in enumerate(matrix):
        for task, value in enumerate(row):
            if task == after:
                first[task] = value
            elif task < after:
                final[task] = value
            elif task == after + 1:
                zero_shot[task] = value
    backward = [final[task] - first[task] for task in final]
    forward = [zero_shot[task] - initial[task] for task in zero_shot]
    return sum(backward) / len(backward), sum(forward) / len(forward)


@pytest.mark.parametrize("seed", range(20))
def test_equal_to_the_definitions_of_other_packages(seed):
    rng = np.random.default_rng(seed)
    count = rng.integers(2, 8)
    matrix, initial = rng.uniform(size=(count, count)), rng.uniform(size=count)
    backward, forward = (
        metrics.backward_transfer(matrix),
        metrics.forward_transfer(matrix, initial),
    )
    found = metrics.average_accuracy(matrix), metrics.forgetting(matrix)
    expected = renate(matrix.tolist(), initial.tolist())
    assert (*found, backward, forward) == pytest.approx(expected, abs=1e-14)
    expected = avalanche(matrix.tolist(), initial.tolist())
    assert (backward, forward) == pytest.approx(expected, abs=1e-14)


def logits_and_labels(seed, classes=2, count=300):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes)) + 1.5 * np.eye(classes)[labels]
    return logits.astype(np.float32), labels


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_scikit_learn(seed):
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    logits, labels = logits_and_labels(seed)
    predicted = logits.argmax(axis=1)
    assert accuracy_of(logits, labels) == accuracy_score(labels, predicted)
    assert metrics.f1(logits, labels) == pytest.approx(f1_score(labels, predicted))
    expected = matthews_corrcoef(labels, predicted)
    assert metrics.matthews(logits, labels) == pytest.approx(expected)


def test_two_classes_by_hand():
    # 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
    predicted, labels = np.repeat([1, 1, 0, 0], [3, 1, 2, 4]), [1] * 3 + [0] + [1] * 2
    labels = np.array([*labels, *[0] * 4])
    logits = np.eye(2)[predicted]
    assert metrics.f1(logits, labels) == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    expected = (3 * 4 - 1 * 2) / math.sqrt((3 + 1) * (3 + 2) * (4 + 1) * (4 + 2))
    assert metrics.matthews(logits, labels) == pytest.approx(expected)


def test_one_class_predicted_has_no_correlation_and_nothing_found_no_f1():
    logits, labels = np.eye(2)[[0, 0, 0]], np.array([0, 1, 0])
    assert metrics.matthews(logits, labels) == metrics.f1(logits, labels) == 0
    assert metrics.f1(logits, np.zeros(3, int)) == 0


def test_each_task_is_reported_by_its_own_metric():
    logits, labels = logits_and_labels(0)
    names = {
        source: list(metrics.task_metrics(source, logits, labels))
        for source in ("glue/cola", "glue/mrpc", "glue/qqp", "glue/rte", "files")
    }
    assert names == {
        "glue/cola": ["matthews"],
        "glue/mrpc": ["f1", "accuracy"],
        "glue/qqp": ["f1", "accuracy"],
        "glue/rte": ["accuracy"],
        "files": ["accuracy"],
    }
    found = metrics.task_metrics("glue/mrpc", logits, labels)
    assert found["f1"] == metrics.f1(logits, labels)
    assert found["accuracy"] == accuracy_of(logits, labels)


@pytest.mark.parametrize("metric", [metrics.f1, metrics.matthews])
def test_metrics_of_two_classes_refuse_three(metric):
    with pytest.raises(ValueError, match="two classes.*accuracy.*Received: 3"):
        metric(*logits_and_labels(0, classes=3))


def expected_calibration_error(logits, labels, bins):
    """Equation 3 of arXiv 1706.04599, bin by bin."""
    probabilities = [np.exp(z) / np.exp(z).sum() for z in logits.astype(np.float64)]
    confidence = np.array([p.max() for p in probabilities])
    right = np.array([p.argmax() for p in probabilities]) == labels
    error = 0.0
    for m in range(1, bins + 1):
        inside = (confidence > (m - 1) / bins) & (confidence <= m / bins)
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            error += inside.sum() / len(labels) * gap
    return error


@pytest.mark.parametrize("classes, bins", [(2, 15), (3, 15), (5, 10), (2, 1)])
def test_calibration_error_is_its_formula(classes, bins):
    logits, labels = logits_and_labels(classes, classes)
    found = metrics.calibration_error(logits, labels, bins)
    assert found == pytest.approx(expected_calibration_error(logits, labels, bins))
    assert metrics.calibration_error(logits + 1000, labels, bins) == pytest.approx(
        found, abs=1e-3
    )


def test_certain_and_wrong_is_worst_and_certain_and_right_best():
    logits = np.array([[100.0, 0.0]] * 4)
    assert metrics.calibration_error(logits, np.ones(4, int)) == pytest.approx(1)
    assert metrics.calibration_error(logits, np.zeros(4, int)) == pytest.approx(0)
