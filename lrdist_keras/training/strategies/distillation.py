"""Learning without forgetting: the old model's answers on the new task's inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from lrdist_keras.training.plan import Stage, Terms, TrainingSet
from lrdist_keras.training.strategies.base import Strategy, Strength

if TYPE_CHECKING:
    from lrdist_keras.training.course import Course


class Lwf(Strategy):
    """Distils the old heads' answers into the new model (arXiv 1606.09282).

    See `lrdist_keras.training.penalties.Distillation`.

    Args:
        strategy: Its name.
        strength: Lambda_o, 1 in the paper.
        temperature: Temperature of both softmaxes, 2 in the paper.
    """

    strategy: Literal["lwf"] = "lwf"
    strength: Strength = 1.0
    temperature: float = Field(default=2.0, gt=0, le=1e6)

    def stages(self, course: Course, task: int, memory: Any) -> list[Stage]:
        """Returns the training of a task with the answers of the model before it."""
        from lrdist_keras.training.penalties import Distillation

        if not task:
            return [course.plain(task)]
        data = course.subsets[task]
        teacher = tuple(course.logits(data, j) for j in range(task))
        numbers = np.float32(self.strength), np.float32(self.temperature)
        return [
            Stage(
                TrainingSet(data, teacher=teacher),
                tuple(range(task + 1)),
                course.rates[task],
                Terms(distillation=Distillation(*numbers)),
            )
        ]
