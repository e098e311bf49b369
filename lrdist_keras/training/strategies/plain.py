"""Fine-tuning without more: in sequence, all tasks at once, or each on its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lrdist_keras.errors import InputError
from lrdist_keras.training.plan import Stage, Visit, mixed
from lrdist_keras.training.strategies.base import Strategy

if TYPE_CHECKING:
    from lrdist_keras.training.course import Course
    from lrdist_keras.training.run import TaskData


class Plain(Strategy):
    """One task after the other, and nothing against forgetting."""

    strategy: Literal["plain"] = "plain"
    is_plain: ClassVar[bool] = True
    trains_plainly: ClassVar[bool] = True


class Joint(Strategy):
    """All tasks at once: what could be had if nothing came in sequence."""

    strategy: Literal["joint"] = "joint"
    trains_a_sequence: ClassVar[bool] = False

    @property
    def needs_earlier_examples(self) -> bool:
        """Whether training examples of a task are needed after it is trained."""
        return True

    def plan(self, tasks: Sequence[TaskData]) -> list[Visit]:
        """Returns one training, of all examples, when the last task has its turn."""
        return [Visit(len(tasks) - 1, (sum(task.size for task in tasks),))]

    def check(self, course: Course) -> None:
        """Refuses tasks that are not trained for as many epochs.

        Raises:
            ValueError: If their `epochs` differ.
        """
        if len({task.epochs for task in course.tasks}) > 1:
            raise InputError(
                "The strategy joint mixes the examples of all tasks, so all need the "
                f"same `epochs`. Received: {[task.epochs for task in course.tasks]}"
            )

    def stages(self, course: Course, task: int, memory: Any) -> list[Stage]:
        """Returns the training on the examples of all tasks, with all heads."""
        active = tuple(range(task + 1))
        return [Stage(mixed(course.subsets), active, course.rates[task])]


class Single(Strategy):
    """Each task on its own, from the pretrained weights."""

    strategy: Literal["single"] = "single"
    trains_a_sequence: ClassVar[bool] = False

    def plan(self, tasks: Sequence[TaskData]) -> list[Visit]:
        """Returns a training of each task that begins anew."""
        return [Visit(i, (task.size,), anew=True) for i, task in enumerate(tasks)]
