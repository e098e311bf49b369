"""Linear probes: heads that are trained on an encoder that stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from lrdist_keras.distribution import flat
from lrdist_keras.settings import Rate
from lrdist_keras.training.plan import Stage, Visit
from lrdist_keras.training.strategies.base import Strategy

if TYPE_CHECKING:
    from lrdist_keras.training.course import Course
    from lrdist_keras.training.run import TaskData


def _probe(course: Course, task: int, rate: float) -> Stage:
    """Returns the training of a task's head alone, at this learning rate."""
    plain = course.plain(task)
    return replace(plain, rates=flat(rate, plain.rates.scheme), probe=True)


class Frozen(Strategy):
    """A linear probe: the encoder is never trained."""

    strategy: Literal["frozen"] = "frozen"

    def stages(self, course: Course, task: int, memory: Any) -> list[Stage]:
        """Returns the training of the head, at the head's learning rate."""
        return [_probe(course, task, course.rates[task].rates["head"])]


class SeqStar(Strategy):
    """Trains the first task plainly and freezes the encoder for all later ones.

    Of SEQ* (arXiv 2312.07887) these are the rules for tasks that have heads of their
    own and are told apart: the encoder is frozen once it has warmed up, here by the
    whole training of the first task, and old heads stay as they are. Its cosine
    classifiers and its classes held ready are for tasks that share one head.
    """

    strategy: Literal["seq_star"] = "seq_star"

    def stages(self, course: Course, task: int, memory: Any) -> list[Stage]:
        """Returns the plain training, or later the head's at its learning rate."""
        if not task:
            return [course.plain(task)]
        return [_probe(course, task, course.rates[task].rates["head"])]


class LpFt(Strategy):
    """A probe, then fine-tuning from its head (arXiv 2202.10054).

    Args:
        strategy: Its name.
        probe_rate: Learning rate of the probe.
    """

    strategy: Literal["lp_ft"] = "lp_ft"
    probe_rate: Rate = 1e-3

    def plan(self, tasks: Sequence[TaskData]) -> list[Visit]:
        """Returns two trainings of each task, of as many steps."""
        return [Visit(i, (task.size, task.size)) for i, task in enumerate(tasks)]

    def stages(self, course: Course, task: int, memory: Any) -> list[Stage]:
        """Returns the training of the head, then that of all weights."""
        return [_probe(course, task, self.probe_rate), course.plain(task)]
