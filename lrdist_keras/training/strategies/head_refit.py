"""Old heads that are fitted anew at the end, on what the encoder has become."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from lrdist_keras.data.batches import Encoded
from lrdist_keras.training.strategies.base import Strategy
from lrdist_keras.training.strategies.replay import memories

if TYPE_CHECKING:
    from lrdist_keras.training.course import Course


class HeadRefit(Strategy):
    """Trains plainly; after the last task it refits the old heads on a memory.

    Forgetting that is undone by this was a head that no longer fits; what remains is
    lost from the features, or cannot be learned from so few examples. Each head but the
    last becomes the `logistic_head` of its task's memory, on the features that the
    encoder gives after the last task, without dropout; the weights that it had count
    for nothing. The memory holds the same examples as that of `replay`. Steps and
    curves are those of `plain`, and `compat` does not reach the fit.

    Args:
        strategy: Its name.
        examples_per_class: What is kept of each class of a task.
    """

    trains_plainly: ClassVar[bool] = True
    moves_after_training: ClassVar[bool] = True
    strategy: Literal["head_refit"] = "head_refit"
    examples_per_class: int = Field(default=10, ge=1)

    @property
    def needs_earlier_examples(self) -> bool:
        """Whether training examples of a task are needed after it is trained."""
        return True

    def check(self, course: Course) -> None:
        """Refuses a memory that is larger than a class.

        Raises:
            ValueError: If a class of a task has too few examples.
        """
        memories(course, self.examples_per_class)

    def begin(self, course: Course) -> list[Encoded]:
        """Returns what is kept of each task but the last."""
        return memories(course, self.examples_per_class)

    def after_task(
        self, course: Course, task: int, memory: list[Encoded]
    ) -> list[Encoded]:
        """Refits the heads of the earlier tasks, once the last one is trained."""
        from lrdist_keras.training.course import copied

        if task + 1 < len(course.tasks):
            return memory
        for j, kept in enumerate(memory):
            features = course.features(kept, j)
            if np.isfinite(features).all():  # or the run has diverged
                head = logistic_head(features, kept.labels, course.tasks[j].classes)
                course.heads[j] = copied(head)
        return memory


def logistic_head(
    features: np.ndarray, labels: np.ndarray, classes: int
) -> list[np.ndarray]:
    """Returns the head of a multinomial logistic regression with an L2 penalty.

    Features are standardised: minus their mean, over their standard deviation, both of
    these examples; one that is constant is only centred. On them kernel W and bias b
    minimise

        sum over examples of -log softmax(x W + b)[label] + 1/2 ||W||^2,

    which is scikit-learn's `LogisticRegression` at its default C = 1 for three classes
    or more. The bias is not penalised. The minimum is the only one, up to a number
    that is added to all of b; it is found by L-BFGS from 0, in float64, so that nothing
    is random. The head is that of the features as they are.

    Args:
        features: Shape [examples, width], finite.
        labels: Their class numbers, shape [examples]; each class occurs.
        classes: Number of classes.

    Returns:
        Kernel, float32, shape [width, classes], and bias, float32, shape [classes].
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    x = features.astype(np.float64)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale[np.ptp(x, axis=0) == 0] = 1.0
    x, wanted = (x - mean) / scale, np.eye(classes)[labels]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        kernel, bias = flat[:-classes].reshape(-1, classes), flat[-classes:]
        log_p = log_softmax(x @ kernel + bias, axis=1)
        residual = np.exp(log_p) - wanted
        gradient = [x.T @ residual + kernel, residual.sum(axis=0)[None]]
        value = np.sum(kernel**2) / 2 - np.sum(wanted * log_p)
        return float(value), np.concatenate(gradient).ravel()

    start = np.zeros((x.shape[1] + 1) * classes)
    options = {"maxiter": 10_000, "maxfun": 20_000, "ftol": 1e-15, "gtol": 1e-9}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x
    kernel = found[:-classes].reshape(-1, classes) / scale[:, None]
    bias = found[-classes:] - mean @ kernel
    return [kernel.astype(np.float32), bias.astype(np.float32)]
