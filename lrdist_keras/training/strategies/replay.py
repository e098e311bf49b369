"""Experience replay: a few examples of each earlier task are trained again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from lrdist_keras.data.batches import Encoded, take
from lrdist_keras.data.sampling import class_sizes, stratified
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
        examples_per_class: What is kept of each class of a task; None with `share`.
        share: Instead: share of each task's training examples that is kept, in (0, 1],
            rounded to a whole number of them, with the proportions of the classes. A
            class that would get none gets one example more.
    """

    strategy: Literal["replay"] = "replay"
    examples_per_class: int | None = Field(default=10, ge=1)
    share: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _one_size_of_the_memory(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("share") is None:
            return given
        if given.get("examples_per_class") is not None:
            raise InputError(
                "`share` stands in place of `examples_per_class`; leave one of them "
                f"out. Received: share = {given['share']!r}, examples_per_class = "
                f"{given['examples_per_class']!r}"
            )
        return {**given, "examples_per_class": None}

    @model_validator(mode="after")
    def _some_size_of_the_memory(self) -> Replay:
        if self.examples_per_class is None and self.share is None:
            raise InputError("replay needs `examples_per_class` or `share`")
        return self

    @property
    def needs_earlier_examples(self) -> bool:
        """Whether training examples of a task are needed after it is trained."""
        return True

    def plan(self, tasks: Sequence[TaskData]) -> list[Visit]:
        """Returns a training of each task, with what is kept of those before."""
        kept = [self._kept(task) for task in tasks]
        return [Visit(i, (t.size + sum(kept[:i]),)) for i, t in enumerate(tasks)]

    def _kept(self, task: TaskData) -> int:
        """Returns how many examples of a task are kept, the same for all seeds."""
        if self.examples_per_class is not None:
            return self.examples_per_class * task.classes
        labels = task.train.labels
        if task.train_examples is not None:
            sizes = class_sizes(labels, task.train_examples)
            labels = np.repeat(np.arange(len(sizes)), sizes)
        return int(class_sizes(labels, self._size(labels), least=1).sum())

    def _size(self, labels: np.ndarray) -> int:
        """Returns the share of so many training examples, as a whole number."""
        assert self.share is not None  # a value has one of the two
        return round(self.share * len(labels))

    def check(self, course: Course) -> None:
        """Refuses a memory that is larger than a class, or empty.

        Raises:
            ValueError: If a class of a task has too few examples, or the share of a
                task's is none.
        """
        self.begin(course)

    def begin(self, course: Course) -> list[Encoded]:
        """Returns what is kept of each task but the last."""
        earlier = enumerate(course.tasks[:-1])
        return [self._memory(course, i, task) for i, task in earlier]

    def _memory(self, course: Course, i: int, task: TaskData) -> Encoded:
        """Draws what is kept of the task of number i."""
        train, rng = course.subsets[i], course.rng(Purpose.MEMORY, i)
        if (of_each := self.examples_per_class) is not None:
            return memory(train, task.classes, of_each, rng, task.name)
        if (size := self._size(train.labels)) == 0:
            raise InputError(
                f"`share` must be at least one of the {len(train)} training examples "
                f"of '{task.name}'. Received: {self.share}, which rounds to none"
            )
        return take(train, stratified(train.labels, size, rng, least=1))

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
