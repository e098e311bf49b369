"""Averages of the weights with those before a task: WiSE-FT and SFA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from lrdist_keras.data.batches import take
from lrdist_keras.data.sampling import stratified
from lrdist_keras.errors import InputError
from lrdist_keras.settings import Share
from lrdist_keras.training.plan import Stage
from lrdist_keras.training.run import Purpose, accuracy_of
from lrdist_keras.training.strategies.base import Strategy

if TYPE_CHECKING:
    from lrdist_keras.training.course import Course

_ALPHAS = np.linspace(0, 1, 11)
_EXAMPLES = 200  # of each task, to choose an average by


class WiseFt(Strategy):
    """Averages with the model before, once a task is trained (arXiv 2109.01903).

    Args:
        strategy: Its name.
        alpha: Share of the new weights, 0.5 where nothing is known; or `training`, what
            is best on training examples of the tasks so far.
    """

    trains_plainly: ClassVar[bool] = True
    moves_after_training: ClassVar[bool] = True
    strategy: Literal["wise_ft"] = "wise_ft"
    alpha: Share | Literal["training"] = 0.5

    @property
    def needs_earlier_examples(self) -> bool:
        """Whether `alpha` is chosen on training examples of the tasks so far."""
        return self.alpha == "training"

    def after_task(self, course: Course, task: int, memory: Any) -> list[Any]:
        """Averages with the remembered weights; returns the new ones."""
        if task:
            course.weights = self._averaged(course, task, memory)
        return course.copied_weights()

    def _averaged(self, course: Course, task: int, before: Sequence[Any]) -> list[Any]:
        after = course.weights
        if self.alpha != "training":
            return average(before, after, self.alpha)
        samples = []
        for j in range(task + 1):
            train = course.subsets[j]
            count = min(_EXAMPLES, len(train))
            rng = course.rng(Purpose.ALPHA, j)
            samples.append(take(train, stratified(train.labels, count, rng)))

        def score(alpha: float) -> float:
            course.weights = average(before, after, alpha)
            return sum(
                accuracy_of(course.logits(sample, j), sample.labels)
                for j, sample in enumerate(samples)
            )

        return average(before, after, best_alpha(score))


class Sfa(Strategy):
    """Averages with the model before while a task is trained (arXiv 2501.05559).

    Args:
        strategy: Its name.
        alpha: Share of the new weights in an average.
        period: Share of a task's steps from one average to the next.
    """

    strategy: Literal["sfa"] = "sfa"
    alpha: Share = 0.5
    period: float = Field(default=0.25, gt=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _alpha_is_a_number(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("alpha") == "training":
            raise InputError("alpha = 'training' goes with the strategy wise_ft")
        return given

    def stages(self, course: Course, task: int, memory: Any) -> list[Stage]:
        """Returns the training of a task that stops to average."""
        plain = course.plain(task)
        if not task:
            return [plain]
        before = course.copied_weights()
        return [
            replace(
                plain,
                stops=partial(averaging_steps, period=self.period),
                at_stop=partial(average, before, alpha=self.alpha),
            )
        ]


def average(previous: Sequence[Any], new: Sequence[Any], alpha: Any) -> list[Any]:
    """Returns (1 - alpha) * previous + alpha * new.

    Equation 1 of arXiv 2109.01903 (WiSE-FT), once a task is trained; and with alpha =
    1 - beta the step of SFA (arXiv 2501.05559), every p T of T steps and at the end,
    after which training goes on from the average.
    """
    return [(1 - alpha) * p + alpha * n for p, n in zip(previous, new, strict=True)]


def best_alpha(score: Callable[[float], float]) -> float:
    """Returns which of 0, 0.1, …, 1 scores best, of equals the smallest.

    What is not finite, the score of a model that diverged, is the worst.
    """
    scores = np.array([score(float(alpha)) for alpha in _ALPHAS])
    return float(_ALPHAS[np.argmax(np.where(np.isfinite(scores), scores, -np.inf))])


def averaging_steps(total: int, period: float) -> set[int]:
    """Returns after which of `total` steps SFA averages: every period, and the end."""
    count = int(1 / period + 1e-9)
    return {round(total * period * k) for k in range(1, count + 1)} - {0} | {total}
