"""Formulas on the accuracy matrix of a sequence of tasks.

The matrix holds at [i, j] the accuracy on task j after training on task i, NaN where it
was not evaluated (j > i). Shape [tasks, tasks].
"""

from __future__ import annotations

import numpy as np


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
    if len(matrix) < 2:
        return float("nan")
    best = np.nanmax(matrix[:-1, :-1], axis=0)
    return float(np.mean(best - matrix[-1, :-1]))


def learned(
    matrix: np.ndarray, majority_rates: np.ndarray, examples: np.ndarray
) -> bool:
    """Whether every task was learned when it was trained.

    Its accuracy must be more than two standard errors sqrt(m (1 - m) / n) above the
    majority rate m, with n the number of evaluated examples: who learned nothing can
    forget nothing.

    Args:
        matrix: Accuracy matrix, shape [tasks, tasks].
        majority_rates: Share of the most frequent class, shape [tasks].
        examples: Number of evaluated examples, shape [tasks].
    """
    error = np.sqrt(majority_rates * (1 - majority_rates) / examples)
    return bool(np.all(np.diag(matrix) > majority_rates + 2 * error))
