import math

import numpy as np
import pytest

from lrdist_keras import metrics

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
    assert not metrics.learned(matrix, np.array([0.5, 0.5]), np.array([100, 100]))
