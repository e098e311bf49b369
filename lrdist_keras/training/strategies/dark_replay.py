"""Dark experience replay: a memory is held at its labels and at its old logits."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from lrdist_keras.data.batches import Encoded
from lrdist_keras.training.plan import Memory, Stage, Terms, TrainingSet, mixed
from lrdist_keras.training.run import Purpose
from lrdist_keras.training.strategies.base import Strategy, Strength
from lrdist_keras.training.strategies.replay import memories

if TYPE_CHECKING:
    from lrdist_keras.training.course import Course


@dataclass(frozen=True)
class _Kept:
    """What is kept of the tasks.

    Args:
        examples: Of each task but the last its examples.
        logits: Of each task that has been trained the logits that its head gave right
            after it, float32, shape [examples, classes].
    """

    examples: Sequence[Encoded]
    logits: tuple[np.ndarray, ...] = ()


class DarkReplay(Strategy):
    """Holds a memory of earlier tasks at its labels and its logits (arXiv 2004.07211).

    DER++: each batch of a later task comes with as many examples of the memory, and the
    loss gets the two terms of `lrdist_keras.training.penalties.DarkExperience`. A
    training has the batches and steps of the plain one; a step costs about twice as
    much. Through an epoch every example of the memory is drawn as often as any other,
    or once more.

    The paper fills its memory from a stream, with the logits of that moment. Here tasks
    have ends: the memory is as large as that of `replay`, of the same examples, and its
    logits are those of the model right after the example's task, without dropout. Only
    the head of an example's own task counts.

    Args:
        strategy: Its name.
        examples_per_class: What is kept of each class of a task.
        alpha: Factor of the logits' term.
        beta: Factor of the labels' term.
    """

    strategy: Literal["der++"] = "der++"
    examples_per_class: int = Field(default=10, ge=1)
    alpha: Strength = 0.1
    beta: Strength = 0.5

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

    def begin(self, course: Course) -> _Kept:
        """Returns the examples that are kept, which have no logits yet."""
        return _Kept(memories(course, self.examples_per_class))

    def stages(self, course: Course, task: int, memory: _Kept) -> list[Stage]:
        """Returns the training of a task with the memory beside its examples."""
        from lrdist_keras.training.penalties import DarkExperience

        if not task:
            return [course.plain(task)]
        new, old = course.subsets[task], mixed(memory.examples[:task])
        old = replace(old, teacher=tuple(_placed(memory.logits)))
        bounds = course.evaluator.bounds
        length = bounds[bisect_left(bounds, old.encoded.lengths.max())]
        drawn = draws(len(old), len(new), course.rng(Purpose.REPLAY, task))
        numbers = np.float32(self.alpha), np.float32(self.beta)
        return [
            Stage(
                TrainingSet(new, memory=Memory(old, drawn, length)),
                tuple(range(task + 1)),
                course.rates[task],
                Terms(dark_experience=DarkExperience(*numbers)),
            )
        ]

    def after_task(self, course: Course, task: int, memory: _Kept) -> _Kept:
        """Adds the logits of a task that has just been trained."""
        if task + 1 == len(course.tasks):
            return memory
        logits = course.logits(memory.examples[task], task)
        return replace(memory, logits=(*memory.logits, logits))


def draws(kept: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws numbers below `kept`, each as often as any other, or once more.

    Args:
        kept: At least 1.
        count: How many to draw.
        rng: What the draw follows.

    Returns:
        int64, shape [count]; every `kept` of them are all numbers in random order.
    """
    passes = -(-count // kept)
    return np.concatenate([rng.permutation(kept) for _ in range(passes)])[:count]


def _placed(logits: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns each task's logits in its rows among all examples, 0 in the others."""
    ends = np.cumsum([len(of_task) for of_task in logits])
    placed = [np.zeros((ends[-1], x.shape[1]), np.float32) for x in logits]
    for rows, of_task, end in zip(placed, logits, ends, strict=True):
        rows[end - len(of_task) : end] = of_task
    return placed
