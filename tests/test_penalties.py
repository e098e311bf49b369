import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax, softmax

from lrdist_keras.training.penalties import (
    AnnealedPull,
    DarkExperience,
    Distillation,
    QuadraticPenalty,
    l2_sp,
    squared_gradients,
)


def arrays(seed):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(3, 2)), rng.normal(size=4)]


def test_penalty_is_the_formula():
    weights, anchor = arrays(0), arrays(1)
    importance = [np.abs(x) for x in arrays(2)]
    found = QuadraticPenalty(importance, anchor, 7.0)(weights)
    expected = (
        7.0
        / 2
        * sum(
            (f * (w - a) ** 2).sum()
            for f, w, a in zip(importance, weights, anchor, strict=True)
        )
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_sum_of_two_penalties_has_their_gradient():
    def penalty(seed):
        importance = [np.abs(x) for x in arrays(seed)]
        importance[1][:2] = 0  # where neither says anything
        return QuadraticPenalty(importance, arrays(seed + 10), 3.0)

    one, two = penalty(0), penalty(1)
    weights = [jnp.asarray(x) for x in arrays(5)]
    found = jax.grad(one.plus(two))(weights)
    expected = jax.grad(lambda w: one(w) + two(w))(weights)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_squared_gradients_of_a_logistic_regression():
    """d/dw log p(y | x) = (y - sigmoid(w x)) x, by hand in float64."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(5, 3)), rng.normal(size=3)
    y = np.array([0, 1, 1, 0, 1.0])
    weight = np.array([1, 1, 0, 1, 1.0])

    def log_likelihood(weights, example):
        z = example["x"] @ weights[0]
        return example["y"] * z - jnp.logaddexp(z, 0)

    (found,) = squared_gradients(
        log_likelihood, [jnp.asarray(w)], {"x": x, "y": y}, jnp.asarray(weight)
    )
    residual = y - 1 / (1 + np.exp(-x @ w))
    expected = (weight[:, None] * (residual[:, None] * x) ** 2).sum(0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def quadratic(seed):
    """A positive definite matrix and an optimum, for 1/2 (w - b)' H (w - b)."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(4, 4))
    return root @ root.T + np.eye(4), rng.normal(size=4)


def test_with_sgd_a_quadratic_ends_at_the_optimum_of_loss_and_penalty():
    """H (w - b) + lambda F (w - a) = 0."""
    h, b = quadratic(0)
    f, a = np.array([0.1, 3.0, 0.0, 1.0]), np.arange(4.0)
    penalty = QuadraticPenalty([f], [a], 2.0)

    def loss(w):
        return 0.5 * (w - b) @ h @ (w - b) + penalty([w])

    step = jax.jit(lambda w: w - 0.05 * jax.grad(loss)(w))
    w = jnp.zeros(4)
    for _ in range(1000):
        w = step(w)
    expected = np.linalg.solve(h + 2 * np.diag(f), h @ b + 2 * f * a)
    np.testing.assert_allclose(w, expected, atol=1e-5)


def test_l2_sp_is_the_formula():
    backbone, start = arrays(0), arrays(1)
    head = [np.ones((4, 2)), np.array([1.0, -2.0])]
    found = l2_sp(start, 2, 0.3, 0.07)([*backbone, *head])
    expected = 0.15 * sum(
        ((w - a) ** 2).sum() for w, a in zip(backbone, start, strict=True)
    )
    expected += 0.035 * sum((w**2).sum() for w in head)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_online_ewc_decays_the_importance_and_takes_the_new_anchor():
    """F <- gamma F + F_new; after three tasks gamma^2 F1 + gamma F2 + F3."""
    penalties = [
        QuadraticPenalty([np.abs(x) for x in arrays(i)], arrays(i + 10), 3.0)
        for i in range(3)
    ]
    one, two, three = penalties
    found = one.followed_by(two, 0.5).followed_by(three, 0.5)
    for f, f1, f2, f3 in zip(
        found.importance, *[p.importance for p in penalties], strict=True
    ):
        np.testing.assert_allclose(f, 0.25 * f1 + 0.5 * f2 + f3)
    assert found.anchor is three.anchor
    only = one.followed_by(two, 0.0)
    for a, b in zip(only.importance, two.importance, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_annealed_pull_is_the_formula():
    pull = AnnealedPull([np.array([1.0, 2.0])], 40.0, 0.25, 8.0)
    weight = 1 / (1 + np.exp(-8 * (0.5 - 0.25)))
    np.testing.assert_allclose(pull.weight(0.5), weight, rtol=1e-6)
    before, stepped = np.array([3.0, -1.0]), np.array([3.1, -1.3])
    (found,) = pull([stepped], [before], [1e-2], 0.5)
    expected = stepped - (1 - weight) * 1e-2 * 40 * (before - np.array([1.0, 2.0]))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_with_sgd_the_annealed_pull_ends_between_optimum_and_anchor():
    """Lambda H (w - b) + (1 - lambda) gamma (w - a) = 0, at a share that stands."""
    h, b = quadratic(1)
    a = np.arange(4.0)
    pull = AnnealedPull([a], 5.0, 0.0, 2.0)
    weight, rate = 1 / (1 + np.exp(-2 * 0.5)), 0.02

    @jax.jit
    def step(w):
        stepped = w - pull.weight(0.5) * rate * h @ (w - b)
        return pull([stepped], [w], [rate], 0.5)[0]

    w = jnp.zeros(4)
    for _ in range(2000):
        w = step(w)
    left = weight * h + (1 - weight) * 5 * np.eye(4)
    expected = np.linalg.solve(left, weight * h @ b + (1 - weight) * 5 * a)
    np.testing.assert_allclose(w, expected, atol=1e-5)


def test_distillation_is_the_cross_entropy_of_softened_answers():
    rng = np.random.default_rng(1)
    new = [rng.normal(size=(3, 2)), rng.normal(size=(3, 4))]
    old = [rng.normal(size=(3, 2)), rng.normal(size=(3, 4))]
    weights = np.array([1, 0, 1.0])
    found = Distillation(3.0, 2.0)(new, old, weights)
    # The paper's form: p^(1/T) / sum p^(1/T) of the probabilities (its equation 4).
    expected = 0.0
    for z, y in zip(new, old, strict=True):
        p, q = softmax(y, axis=1) ** 0.5, softmax(z, axis=1) ** 0.5
        p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
        expected += -(p * np.log(q)).sum(1)[weights > 0].mean()
    np.testing.assert_allclose(found, 3 * expected, rtol=1e-6)


def test_distillation_is_least_where_the_old_answers_are():
    old = [np.array([[1.0, -2.0, 0.5]])]
    gradient = jax.grad(lambda z: Distillation(1.0, 2.0)([z], old, np.ones(1)))
    np.testing.assert_allclose(gradient(jnp.array(old[0])), 0, atol=1e-7)
    assert np.abs(gradient(jnp.zeros((1, 3)))).max() > 0.05


def test_dark_experience_is_the_formula():
    """Means over the memory, of each example by its own head, in float64."""
    rng = np.random.default_rng(3)
    now = [rng.normal(size=(6, classes)) for classes in (3, 2)]
    then = [rng.normal(size=(6, classes)) for classes in (3, 2)]
    head, labels = np.array([0, 1, 0, 1, 1, 0]), np.array([2, 0, 1, 1, 0, 0])
    weights = np.array([1, 1, 1, 1, 0, 1.0])
    own = [now[h][i] for i, h in enumerate(head)]
    nll = np.array([-log_softmax(z)[y] for z, y in zip(own, labels, strict=True)])
    memory = {"head": head, "teacher": then, "weights": weights}
    found = DarkExperience(0.3, 0.8)(now, jnp.asarray(nll), memory)
    rows = np.flatnonzero(weights)
    squares = [((now[head[i]][i] - then[head[i]][i]) ** 2).sum() for i in rows]
    expected = 0.3 * np.mean(squares) + 0.8 * nll[rows].mean()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    nothing = DarkExperience(0.0, 0.0)(now, jnp.asarray(nll), memory)
    assert nothing == 0


def test_dark_experience_is_no_number_only_where_a_logit_is_none():
    """The logits of other heads have no part in an example, whatever they are."""
    now = [jnp.ones((2, 3)), jnp.ones((2, 2))]
    memory = {"head": np.array([0, 1]), "weights": np.ones(2)}
    memory["teacher"] = [np.zeros((2, 3)), np.zeros((2, 2))]

    def squares(logits):
        return DarkExperience(1.0, 0.0)(logits, jnp.zeros(2), memory)

    np.testing.assert_allclose(squares(now), (3 + 2) / 2)
    first, second = jax.grad(squares)(now)
    np.testing.assert_array_equal(first, [[1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(second, [[0, 0], [1, 1]])
