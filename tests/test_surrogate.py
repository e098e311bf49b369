import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from lrdist_keras.search.surrogate import (
    Observations,
    Surrogate,
    expected_improvement,
    propose,
)

NONE = np.zeros((0, 3))
CENTER = np.array([0.3, 0.6, 0.5])


def bowl(points):
    return 1.5 - ((points - CENTER) ** 2).sum(axis=1)


def observations(count, noise=0.01, budgets=(1.0,), seed=0):
    rng = np.random.default_rng(seed)
    points, budget = rng.random((count, 3)), rng.choice(budgets, count)
    bias = 0.3 * (1 - budget)
    scores = bowl(points - 0.1 * (1 - budget)[:, None]) - bias
    return Observations(points, scores + rng.normal(0, noise, count), budget)


def matern(a, b, lengths):
    """Matern 5/2 with a length per dimension, as in Rasmussen and Williams (4.17)."""
    r = np.sqrt(5 * (((a[:, None] - b[None]) / lengths) ** 2).sum(axis=2))
    return (1 + r + r**2 / 3) * np.exp(-r)


def test_prediction_is_the_textbook_formula():
    seen = observations(20, noise=0.05)
    surrogate = Surrogate(seen, np.random.default_rng(0))
    kernel = surrogate._process.kernel_
    amplitude, lengths = kernel.k1.k1.constant_value, kernel.k1.k2.length_scale
    noise = kernel.k2.noise_level
    center, scale = seen.scores.mean(), seen.scores.std()
    points = np.random.default_rng(1).random((5, 3))
    inside = amplitude * matern(seen.points, seen.points, lengths)
    across = amplitude * matern(points, seen.points, lengths)
    inverse = np.linalg.inv(inside + (noise + 1e-8) * np.eye(20))
    mean = across @ inverse @ ((seen.scores - center) / scale)
    variance = amplitude - np.einsum("ij,jk,ik->i", across, inverse, across)
    found = surrogate.predict(points)
    np.testing.assert_allclose(found[0], mean * scale + center, rtol=1e-6)
    np.testing.assert_allclose(found[1], np.sqrt(variance) * scale, rtol=1e-4)


def test_failures_do_not_stretch_the_scale():
    seen = observations(20)
    failed = Observations(seen.points, seen.scores.copy(), seen.budgets)
    failed.scores[0] = -1e6
    points = np.random.default_rng(1).random((50, 3))
    mean, _ = Surrogate(failed, np.random.default_rng(0)).predict(points)
    assert np.corrcoef(mean, bowl(points))[0, 1] > 0.8
    assert np.abs(mean).max() < 10


def test_small_budgets_inform_about_the_full_one():
    both = observations(60, budgets=(1 / 9, 1 / 3, 1.0))
    points = np.random.default_rng(1).random((200, 3))
    mean, _ = Surrogate(both, np.random.default_rng(0)).predict(points)
    assert np.abs(mean - bowl(points)).mean() < 0.05
    alone = both.highest_budget(1)
    assert 0 < len(alone.scores) < 40
    alone_mean, _ = Surrogate(alone, np.random.default_rng(0)).predict(points)
    error = np.abs(mean - bowl(points)).mean()
    assert error < np.abs(alone_mean - bowl(points)).mean()


def test_budgets_are_aligned_by_what_was_seen_with_both():
    points = np.array([[0.1], [0.2], [0.3], [0.1], [0.2], [0.1], [0.2]])
    scores = np.array([1.0, 2.0, 3.0, 1.5, 2.7, 2.5, 3.9])
    budgets = np.array([1.0, 1.0, 1.0, 3.0, 3.0, 9.0, 9.0]) / 9
    found = Observations(points, scores, budgets).aligned().scores
    # From 1/3 to 1: 1.0 and 1.2; from 1/9 to 1/3: 0.5 and 0.7.
    expected = [1 + 1.7, 2 + 1.7, 3 + 1.7, 1.5 + 1.1, 2.7 + 1.1, 2.5, 3.9]
    np.testing.assert_allclose(found, expected)


def test_highest_budget_with_enough():
    seen = Observations(np.zeros((6, 1)), np.arange(6.0), np.array([1, 1, 1, 3, 3, 9]))
    assert seen.highest_budget(1).scores.tolist() == [5]
    assert seen.highest_budget(2).scores.tolist() == [3, 4]
    assert seen.highest_budget(3).scores.tolist() == [0, 1, 2]
    assert seen.highest_budget(4).scores.tolist() == []


@pytest.mark.parametrize(("mean", "deviation"), [(0.2, 0.5), (-1.0, 0.3), (2.0, 0.1)])
def test_expected_improvement_is_the_integral(mean, deviation):
    def improvement(value):
        return (value - 0.4) * norm.pdf(value, mean, deviation)

    expected, _ = quad(improvement, 0.4, mean + 12 * deviation)
    found = expected_improvement(np.array([mean]), np.array([deviation]), 0.4)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_proposals_find_the_top():
    seen = observations(8)
    for step in range(25):
        point = propose(seen, NONE, np.random.default_rng(step))
        assert np.all((point >= 0) & (point <= 1))
        seen = seen.with_scores(point[None], bowl(point[None]))
    assert seen.scores.max() > 1.5 - 0.01


def test_proposals_follow_from_the_generator():
    seen = observations(15)
    a, b, c = (propose(seen, NONE, np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_what_is_being_evaluated_is_avoided():
    seen = observations(15, noise=0.0)
    first = propose(seen, NONE, np.random.default_rng(1))
    second = propose(seen, first[None], np.random.default_rng(1))
    assert np.abs(first - second).max() > 0.02


def kinds(points, categories=(0, 4)):
    """Observations in a number and a choice of four without an order."""
    best = np.floor(points[:, 1] * 4) == 2
    scores = 1.0 * best - (points[:, 0] - 0.3) ** 2
    return Observations(points, scores, np.ones(len(points)), np.array(categories))


def test_of_values_without_an_order_none_lies_between_two_others():
    """What is known of the first and the third says the same of second and fourth."""
    points = np.array([[0.5, 0.125], [0.5, 0.125], [0.5, 0.625], [0.5, 0.625]])
    seen = Observations(
        points, np.array([0.0, 0.1, 1.0, 0.9]), np.ones(4), np.array([0, 4])
    )
    others = np.array([[0.5, 0.375], [0.5, 0.875], [0.5, 0.126]])
    mean, deviation = Surrogate(seen, np.random.default_rng(0)).predict(others)
    assert mean[0] == pytest.approx(mean[1], abs=1e-6)
    assert mean[2] < 0.3  # the place within its share does not matter
    ordered = Observations(seen.points, seen.scores, seen.budgets)
    mean, _ = Surrogate(ordered, np.random.default_rng(0)).predict(others)
    assert mean[0] < mean[1] - 0.2


def test_proposals_find_the_right_of_several_values():
    rng = np.random.default_rng(0)
    found = []
    for seed in range(3):
        # None of the right kind has been seen.
        points = np.column_stack([rng.random(6), rng.choice([0.125, 0.375, 0.875], 6)])
        for step in range(14):
            new = propose(
                kinds(points), np.zeros((0, 2)), np.random.default_rng([seed, step])
            )
            points = np.concatenate([points, new[None]])
        right = np.floor(points[:, 1] * 4) == 2
        found.append(right[-5:].sum())
    assert min(found) >= 3


def test_only_what_can_be_evaluated_is_proposed():
    seen, asked = observations(10), []

    def usable(points):
        asked.append(points)
        return np.round(points[:5] * 4) / 4

    point = propose(seen, NONE, np.random.default_rng(0), usable)
    assert asked[0].shape == (24, 3)
    assert any(np.array_equal(point, p) for p in usable(asked[0]))
    nothing = propose(seen, NONE, np.random.default_rng(0), lambda points: points[:0])
    assert nothing is None
