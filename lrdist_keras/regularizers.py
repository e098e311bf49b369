"""Penalties that keep weights near those of an earlier task: EWC."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

Weights = list[Any]


class QuadraticPenalty(NamedTuple):
    """The penalty strength / 2 * sum importance * (weights - anchor)^2.

    Args:
        importance: One array per weight, at least 0; for EWC the diagonal Fisher.
        anchor: The weights that are drawn to, in the shapes of `importance`.
        strength: The factor lambda, a scalar.
    """

    importance: Weights
    anchor: Weights
    strength: Any

    def __call__(self, weights: Sequence[Any]) -> Any:
        """Returns the penalty, a scalar; equation 3 of arXiv 1612.00796."""
        terms = [
            jnp.sum(f * jnp.square(w - a))
            for f, w, a in zip(self.importance, weights, self.anchor, strict=True)
        ]
        return 0.5 * self.strength * sum(terms)

    def plus(self, other: Self) -> QuadraticPenalty:
        """Returns the sum of both penalties, up to a constant, as one of the same kind.

        F1 (w - a1)^2 + F2 (w - a2)^2 = (F1 + F2) (w - a)^2 + constant, where a is the
        mean of a1 and a2 weighted by F1 and F2. The strengths must be equal.
        """
        importance = [
            f1 + f2 for f1, f2 in zip(self.importance, other.importance, strict=True)
        ]
        anchor = [
            jnp.where(f > 0, a1 + (f2 / jnp.where(f > 0, f, 1)) * (a2 - a1), a2)
            for f, f2, a1, a2 in zip(
                importance, other.importance, self.anchor, other.anchor, strict=True
            )
        ]
        return QuadraticPenalty(importance, anchor, other.strength)


def squared_gradients(
    log_likelihood: Callable[[Weights, Any], Any],
    weights: Weights,
    examples: Any,
    weight: Any,
) -> Weights:
    """Returns the sum over examples of the squared gradient of the log-likelihood.

    Divided by the number of examples it is the empirical diagonal Fisher, with the
    labels of the data, not drawn from the model (arXiv 1612.00796, section 2).

    Args:
        log_likelihood: From weights and one example to the log-likelihood of its label.
        weights: Arrays that the gradient is taken for.
        examples: Pytree of arrays with a leading axis of examples.
        weight: Factor of each example, shape [examples]; 0 for padding.
    """
    gradients = jax.vmap(jax.grad(log_likelihood), in_axes=(None, 0))(weights, examples)
    return [jnp.tensordot(weight, jnp.square(g), axes=1) for g in gradients]
