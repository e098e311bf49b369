"""What a loss has beside the labels: penalties, RecAdam's pull, distillation, DER++."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

Weights = list[Any]


class QuadraticPenalty(NamedTuple):
    """The penalty strength / 2 * sum importance * (weights - anchor)^2.

    Args:
        importance: One array per weight, at least 0; for EWC the diagonal Fisher. A
            scalar counts for all entries of its weight.
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

    def followed_by(self, other: Self, decay: float) -> QuadraticPenalty:
        """Returns the penalty of online EWC after one more task.

        Its importance is decay * F_old + F_new, its anchor the newest weights alone:
        section 3.2 of arXiv 1805.06370.
        """
        importance = [
            decay * f1 + f2
            for f1, f2 in zip(self.importance, other.importance, strict=True)
        ]
        return QuadraticPenalty(importance, other.anchor, other.strength)


def l2_sp(
    pretrained: Sequence[Any], head_size: int, strength: float, head_strength: float
) -> QuadraticPenalty:
    """Returns L2-SP: alpha / 2 |w - w0|^2 on the backbone, beta / 2 |w|^2 on the head.

    Equation 3 of arXiv 1802.01483, with "starting point" the pretrained weights w0.

    Args:
        pretrained: Weights of the backbone.
        head_size: Number of weights (kernel, bias) of the head, which follow them.
        strength: Alpha.
        head_strength: Beta.
    """
    scalar = jnp.float32
    importance = [scalar(strength)] * len(pretrained) + [
        scalar(head_strength)
    ] * head_size
    anchor = [*map(jnp.asarray, pretrained), *[scalar(0)] * head_size]
    return QuadraticPenalty(importance, anchor, scalar(1))


class AnnealedPull(NamedTuple):
    """RecAdam: training that fades in while a pull to the anchor fades out.

    With s the share of the steps done, lambda(s) = 1 / (1 + exp(-k (s - s0))), u the
    step of the inner optimizer at the rate eta and gamma the strength, a step is

        w <- w + lambda u - (1 - lambda) eta gamma (w - anchor),

    the last lines of algorithm 1 of arXiv 2004.12651, where k and s0 count steps; as
    shares they fit any budget. Like decoupled weight decay, the pull is no part of the
    gradient: Adam would divide it away. Momentum of SGD keeps each gradient at the
    lambda eta of its own step, as it does under a schedule.

    Args:
        anchor: The weights that are drawn to.
        strength: Gamma, 5000 in the paper; eta * gamma above 1 overshoots the anchor.
        midpoint: The share s0 at which pull and training weigh the same.
        steepness: The factor k.
    """

    anchor: Weights
    strength: Any
    midpoint: Any
    steepness: Any

    def weight(self, share: Any) -> Any:
        """Returns lambda, the weight of the training, in [0, 1]."""
        return jax.nn.sigmoid(self.steepness * (share - self.midpoint))

    def __call__(
        self,
        stepped: Sequence[Any],
        weights: Sequence[Any],
        rates: Sequence[Any],
        share: Any,
    ) -> Weights:
        """Returns the weights after the pull.

        Args:
            stepped: Weights after the inner optimizer's step at the rate lambda eta.
            weights: Weights before it.
            rates: The rate eta of each weight.
            share: Share of the steps done, in [0, 1].
        """
        factor = (1 - self.weight(share)) * self.strength
        return [
            s - factor * rate * (w - a)
            for s, w, rate, a in zip(stepped, weights, rates, self.anchor, strict=True)
        ]


class Distillation(NamedTuple):
    """Learning without forgetting: the old model's answers on the new inputs.

    Args:
        strength: The factor lambda_o of arXiv 1606.09282, 1 in the paper.
        temperature: Temperature of both softmaxes, 2 in the paper.
    """

    strength: Any
    temperature: Any

    def __call__(
        self, logits: Sequence[Any], teacher: Sequence[Any], weights: Any
    ) -> Any:
        """Returns strength * sum over old heads of the mean of -sum_c p_c log q_c.

        With p the softmax of the old model's logits over the temperature and q that of
        the current ones: equations 2 to 4 of arXiv 1606.09282, without a factor T^2.
        The paper's warm-up, in which the new head is trained alone first, is left out.

        Args:
            logits: Per old head its current logits, shape [examples, classes].
            teacher: The logits that the old model gave, in the same shapes.
            weights: Factor of each example, shape [examples]; 0 for padding.
        """
        each = [
            -jnp.sum(
                jax.nn.softmax(old / self.temperature)
                * jax.nn.log_softmax(new / self.temperature),
                axis=-1,
            )
            for new, old in zip(logits, teacher, strict=True)
        ]
        return self.strength * sum(
            jnp.sum(x * weights) / jnp.sum(weights) for x in each
        )


class DarkExperience(NamedTuple):
    """Dark experience replay (DER++): a memory's labels, and the logits that it had.

    With h the logits now and z those right after the example's task was trained,

        alpha * mean ||h(x) - z||^2 + beta * mean -log p(y | x)

    over the memory's examples in a batch: the last two terms of equation 6 of arXiv
    2004.07211. Its algorithm draws other examples for the second term than for the
    first, which has the same expectation. The square is summed over the classes, as the
    paper writes it; the authors' code takes the mean over them.

    Args:
        alpha: Factor of the logits' term.
        beta: Factor of the labels' term.
    """

    alpha: Any
    beta: Any

    def __call__(self, logits: Sequence[Any], nll: Any, memory: dict[str, Any]) -> Any:
        """Returns both terms, a scalar.

        Args:
            logits: Per old head its logits now, shape [examples, classes].
            nll: -log p(label) of each example by its own head, shape [examples].
            memory: The batch: `head`, the old head of each example, shape [examples];
                `teacher`, the logits z in the shapes of `logits`, which count in the
                rows of their head; `weights`, shape [examples], 0 for padding.
        """
        squares = jnp.zeros_like(nll)
        for j, (new, old) in enumerate(zip(logits, memory["teacher"], strict=True)):
            distance = jnp.sum(jnp.square(new - old), axis=-1)
            squares += jnp.where(memory["head"] == j, distance, 0)
        each = self.alpha * squares + self.beta * nll
        return jnp.sum(each * memory["weights"]) / jnp.sum(memory["weights"])


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
