"""Formulas on the accuracy matrix of a sequence of tasks, and on logits and labels.

The matrix R holds at [i, j] the accuracy on task j after training on task i, NaN where
it was not evaluated (j > i). Shape [tasks, tasks]; T is the number of tasks, counted
from 1 in the formulas. Logits have shape [examples, classes], labels [examples].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lrdist_keras.errors import InputError
from lrdist_keras.training.run import accuracy_of


def a1(matrix: np.ndarray) -> float:
    """Returns the accuracy on the first task right after training on it."""
    return float(matrix[0, 0])


def p_s(matrix: np.ndarray) -> float:
    """Returns the accuracy on the last (shifted) task after training on it."""
    return float(matrix[-1, -1])


def p_o(matrix: np.ndarray) -> float:
    """Returns the mean final accuracy on the earlier (original) tasks; NaN for one."""
    return float(np.mean(matrix[-1, :-1])) if len(matrix) > 1 else float("nan")


def reward(matrix: np.ndarray) -> float:
    """Returns the sum of the final accuracies: p_s + p_o for two tasks."""
    return float(np.sum(matrix[-1]))


def forgetting(matrix: np.ndarray) -> float:
    """Returns the mean over earlier tasks of (best accuracy before the end - final).

    Equation 3 of arXiv 1801.10112; a1 - p_o for two tasks. NaN for one task.
    """
    return float(np.mean(task_forgetting(matrix))) if len(matrix) > 1 else float("nan")


def task_forgetting(matrix: np.ndarray) -> np.ndarray:
    """Returns the forgetting of each earlier task, shape [tasks - 1].

    f_j = max over i < T of R[i, j], minus R[T, j]: the terms of equation 3 of arXiv
    1801.10112, the maximum over what was evaluated.
    """
    return np.fmax.reduce(matrix[:-1, :-1], axis=0) - matrix[-1, :-1]


def average_accuracy(matrix: np.ndarray) -> float:
    """Returns the mean final accuracy: sum over j of R[T, j] / T.

    ACC of section 2 of arXiv 1706.08840 (GEM).
    """
    return float(np.mean(matrix[-1]))


def backward_transfer(matrix: np.ndarray) -> float:
    """Returns what later tasks did to the earlier ones; negative where they harmed.

    BWT of section 2 of arXiv 1706.08840 (GEM): the sum over j < T of R[T, j] - R[j, j],
    over T - 1. NaN for one task.
    """
    if len(matrix) < 2:
        return float("nan")
    return float(np.mean(matrix[-1, :-1] - np.diag(matrix)[:-1]))


def forward_transfer(matrix: np.ndarray, initial: np.ndarray) -> float:
    """Returns what the tasks before it did to a task that is yet to be trained.

    FWT of section 2 of arXiv 1706.08840 (GEM): the sum over j > 1 of R[j - 1, j] - b_j,
    over T - 1. A head that was never trained knows nothing, so it says something only
    where tasks share a head.

    Args:
        matrix: Accuracy matrix, shape [tasks, tasks], with the accuracy on the next
            task at [j - 1, j].
        initial: Accuracies b before anything was trained, shape [tasks].

    Returns:
        The mean, NaN for one task or where the next task was not evaluated.
    """
    if len(matrix) < 2:
        return float("nan")
    return float(np.mean(np.diag(matrix, 1) - initial[1:]))


def learning_accuracy(matrix: np.ndarray) -> float:
    """Returns the mean accuracy right after training: sum over j of R[j, j] / T.

    LA of arXiv 1810.11910 (MER): how well tasks are learned, whatever is kept of them.
    """
    return float(np.mean(np.diag(matrix)))


def intransigence(matrix: np.ndarray, joint: np.ndarray) -> float:
    """Returns what learning one after the other kept from being learned.

    I_j = a*_j - R[j, j] of section 4 of arXiv 1801.10112, the mean over tasks.

    Args:
        matrix: Accuracy matrix, shape [tasks, tasks].
        joint: Accuracies a* of a model trained on all tasks at once, shape [tasks].
    """
    return float(np.mean(joint - np.diag(matrix)))


def learned(
    matrix: np.ndarray, majority_rates: np.ndarray, examples: np.ndarray
) -> bool:
    """Whether every task was learned when it was trained, see `learned_tasks`."""
    return bool(np.all(learned_tasks(matrix, majority_rates, examples)))


def learned_tasks(
    matrix: np.ndarray, majority_rates: np.ndarray, examples: np.ndarray
) -> np.ndarray:
    """Returns for each task whether it was learned when it was trained, shape [tasks].

    Its accuracy must be more than two standard errors sqrt(m (1 - m) / n) above the
    majority rate m, with n the number of evaluated examples: who learned nothing can
    forget nothing.

    Args:
        matrix: Accuracy matrix, shape [tasks, tasks].
        majority_rates: Share of the most frequent class, shape [tasks].
        examples: Number of evaluated examples, shape [tasks].
    """
    error = np.sqrt(majority_rates * (1 - majority_rates) / examples)
    return np.diag(matrix) > majority_rates + 2 * error


def matthews(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns Matthews' correlation of predicted and true classes, in [-1, 1].

    The metric of CoLA in GLUE (arXiv 1804.07461). Of two classes it is
    (TP TN - FP FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN)), Pearson's
    correlation of the two class numbers; 0 where one of them does not vary, NaN where a
    logit is not finite.

    Raises:
        ValueError: If there are not two classes.
    """
    predicted = _positive(logits)
    if not np.isfinite(logits).all():
        return math.nan
    if len(np.unique(predicted)) < 2 or len(np.unique(labels)) < 2:
        return 0.0
    return float(np.corrcoef(predicted, labels)[0, 1])


def f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns 2 TP / (2 TP + FP + FN) of class 1; 0 where that is 0 / 0.

    NaN where a logit is not finite.

    The metric of MRPC and QQP in GLUE (arXiv 1804.07461), beside the accuracy.

    Raises:
        ValueError: If there are not two classes.
    """
    predicted = _positive(logits)
    if not np.isfinite(logits).all():
        return math.nan
    hits = np.sum(predicted & (labels == 1))
    found = np.sum(predicted) + np.sum(labels == 1)
    return float(2 * hits / found) if found else 0.0


def task_metrics(
    source: str, logits: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """Returns the metrics that a task is reported by.

    CoLA: `matthews`; MRPC and QQP: `f1` and `accuracy` (GLUE, arXiv 1804.07461, table
    1); every other task: `accuracy`.

    Args:
        source: Where the task comes from, such as `glue/cola`.
        logits: Logits of the evaluation, shape [examples, classes].
        labels: True class numbers, shape [examples].
    """
    if source == "glue/cola":
        return {"matthews": matthews(logits, labels)}
    found = {"accuracy": accuracy_of(logits, labels)}
    if source in ("glue/mrpc", "glue/qqp"):
        found = {"f1": f1(logits, labels), **found}
    return found


def calibration_error(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Returns the expected calibration error, in [0, 1]; NaN of logits not finite.

    Equation 3 of arXiv 1706.04599: with the confidence (largest probability) of each
    example in bins ((m - 1) / M, m / M], the sum over bins of
    |B| / n |accuracy(B) - mean confidence(B)|.

    Args:
        logits: Logits, shape [examples, classes].
        labels: True class numbers, shape [examples].
        bins: Number M of bins of equal width.
    """
    if not np.isfinite(logits).all():
        return math.nan
    shifted = logits.astype(np.float64) - np.max(logits, axis=1, keepdims=True)
    probabilities = np.exp(shifted) / np.sum(np.exp(shifted), axis=1, keepdims=True)
    confidence = np.max(probabilities, axis=1)
    right = np.argmax(logits, axis=1) == labels
    home = np.searchsorted(np.linspace(0, 1, bins + 1), confidence) - 1
    # |B| / n times the difference of two means is the difference of two sums over n.
    gaps = np.bincount(home, right - confidence, minlength=bins)
    return float(np.sum(np.abs(gaps)) / len(labels))


def _positive(logits: np.ndarray) -> np.ndarray:
    """Whether class 1 of two is predicted, shape [examples]."""
    if logits.shape[1] != 2:
        raise InputError(
            "Matthews' correlation and F1 are defined as in GLUE for two classes; use "
            f"the accuracy. Received: {logits.shape[1]} classes"
        )
    return np.argmax(logits, axis=1) == 1


METRICS = ("a1", "p_s", "p_o", "reward", "forgetting")


def validation_error(record: Mapping[str, Any], metric: str) -> float:
    """Returns the standard error of a metric from the finite validation sets.

    An accuracy p on n examples has the binomial standard error sqrt(p (1 - p) / n). In
    sums the examples count as independent; those of `forgetting` are the same ones
    before and after, so that its error is at most about this large.
    """
    accuracy = np.array(record["accuracy"], dtype=float)
    variance = accuracy * (1 - accuracy) / np.array(record["examples"])
    earlier = max(len(accuracy) - 1, 1)
    if metric == "a1":
        return math.sqrt(variance[0, 0])
    if metric == "p_s":
        return math.sqrt(variance[-1, -1])
    if metric == "reward":
        return math.sqrt(np.sum(variance[-1]))
    final = np.sum(variance[-1, :-1])
    if metric == "p_o":
        return math.sqrt(final) / earlier
    known = np.where(np.isnan(accuracy), -np.inf, accuracy)
    best = np.argmax(known[:-1, :-1], axis=0)
    before = np.sum(variance[best, np.arange(earlier)])
    return math.sqrt(final + before) / earlier
