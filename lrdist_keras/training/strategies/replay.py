"""Experience replay: a few examples of each earlier task are trained again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from lrdist_keras.data.batches import Encoded, take
from lrdist_keras.errors import InputError
from lrdist_keras.training.plan import Stage, Visit, mixed
from lrdist_keras.training.run import Purpose
from lrdist_keras.training.strategies.base import Strategy

if TYPE_CHECKING:
    from lrdist_keras.training.course import Course
    from lrdist_keras.training.run import TaskData


class Replay(Strategy):
    """Mixes a memory of the earlier tasks into each task (arXiv 1902.10486).

    Args:
        strategy: Its name.
        examples_per_class: What is kept of each class of a task.
    """

    strategy: Literal["replay"] = "replay"
    examples_per_class: int = Field(default=10, ge=1)

    @property
    def needs_earlier_examples(self) -> bool:
        """Whether training examples of a task are needed after it is trained."""
        return True

    def plan(self, tasks: Sequence[TaskData]) -> list[Visit]:
        """Returns a training of each task, with what is kept of those before."""
        kept = [self.examples_per_class * task.classes for task in tasks]
        return [Visit(i, (t.size + sum(kept[:i]),)) for i, t in enumerate(tasks)]

    def check(self, course: Course) -> None:
        """Refuses a memory that is larger than a class.

        Raises:
            ValueError: If a class of a task has too few examples.
        """
        memories(course, self.examples_per_class)

    def begin(self, course: Course) -> list[Encoded]:
        """Returns what is kept of each task but the last."""
        return memories(course, self.examples_per_class)

    def stages(self, course: Course, task: int, memory: list[Encoded]) -> list[Stage]:
        """Returns the training of a task and the memory, with all heads so far."""
        if not task:
            return [course.plain(task)]
        examples = mixed([*memory[:task], course.subsets[task]])
        return [Stage(examples, tuple(range(task + 1)), course.rates[task])]


def memories(course: Course, per_class: int) -> list[Encoded]:
    """Draws what is kept of each task but the last: of one run always the same.

    Args:
        course: The run.
        per_class: Examples of each class.

    Raises:
        ValueError: If a class has fewer examples.
    """
    return [
        memory(
            course.subsets[i],
            task.classes,
            per_class,
            course.rng(Purpose.MEMORY, i),
            task.name,
        )
        for i, task in enumerate(course.tasks[:-1])
    ]


def memory(
    train: Encoded, classes: int, per_class: int, rng: np.random.Generator, name: str
) -> Encoded:
    """Draws the examples of a task that are replayed later, in their old order.

    Args:
        train: Training examples of the task.
        classes: Number of classes.
        per_class: Examples of each class.
        rng: What the draw follows.
        name: The task, for the error.

    Raises:
        ValueError: If a class has fewer examples.
    """
    counts = np.bincount(train.labels, minlength=classes)
    if (least := counts.min()) < per_class:
        raise InputError(
            f"`examples_per_class` must be at most the {least} training examples of "
            f"the smallest class of '{name}'. Received: {per_class}"
        )
    chosen = [
        rng.choice(np.flatnonzero(train.labels == label), per_class, replace=False)
        for label in range(classes)
    ]
    return take(train, np.sort(np.concatenate(chosen)))
