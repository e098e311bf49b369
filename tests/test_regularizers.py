import jax
import jax.numpy as jnp
import numpy as np

from lrdist_keras.regularizers import QuadraticPenalty, squared_gradients


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
