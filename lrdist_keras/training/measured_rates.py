"""Learning rates that are found in a run, when the turn of their task comes."""

from __future__ import annotations

import numpy as np

from lrdist_keras.distribution import Distribution, flat
from lrdist_keras.errors import InputError
from lrdist_keras.fisher import FisherRates, fisher_rates
from lrdist_keras.groups import partition
from lrdist_keras.printable import printable
from lrdist_keras.training.course import Course
from lrdist_keras.training.penalties import Weights
from lrdist_keras.training.plan import Stage, TrainingSet
from lrdist_keras.training.run import Observer
from lrdist_keras.training.stage import Journal, StageTrainer


class RateFinder:
    """Finds the rates of the tasks of one run that were given as `FisherRates`.

    The Fisher is the mean of those of all earlier tasks, each on its training examples
    once the task is done, where its accuracy is first taken too. The gradient is that
    of the mean of -log p(label) over the training examples of the run, by a head that
    was trained alone before: the gradient of a head that was just drawn tells of the
    draw. This probe trains as long as its task, at the rate of the head, and is there
    to measure only: the training of the task begins from the head that was drawn and
    from the same state of the encoder, so that the run is the one that would follow if
    the rates found had been given. In a run that diverged before, nothing can be
    measured, and the groups of the encoder all get `rescale`.

    Args:
        stages: Trains the probes.
        course: The run.
    """

    def __init__(self, stages: StageTrainer, course: Course) -> None:
        self.stages = stages
        self.course = course
        step = course.evaluator.step
        names = list(step.groups)
        paths = [v.path for v in step.encoder.model.trainable_variables]
        self._groups = [names[i] for i in partition(paths, step.groups, True)]
        self._fishers: Weights = []  # their sum
        self._tasks = 0  # that it is of

    def before(self, task: int, diverged: bool) -> None:
        """Finds the rates of a task that is to be trained now, if it was given none.

        Args:
            task: Its number.
            diverged: Whether the run has.

        Raises:
            ValueError: If a gradient or a Fisher is not finite, or all are 0.
        """
        rule = self.course.planned[task]
        if isinstance(rule, FisherRates):
            rates = self._unmeasured(rule) if diverged else self._found(task, rule)
            self.course.rates[task] = rates

    def after(self, task: int) -> None:
        """Takes the Fisher of a task that is done, if a later one needs it."""
        later = self.course.planned[task + 1 :]
        if not any(isinstance(rates, FisherRates) for rates in later):
            return
        new = [np.asarray(f) for f in self.course.fisher(task)]
        if self._tasks:
            new = [a + b for a, b in zip(self._fishers, new, strict=True)]
        self._fishers, self._tasks = new, self._tasks + 1

    def _found(self, task: int, rule: FisherRates) -> Distribution:
        return fisher_rates(
            self._gradient(task, rule.head_rate),
            [f / self._tasks for f in self._fishers],
            self._groups,
            self.course.rates[0].scheme,
            rescale=rule.rescale,
            head_rate=rule.head_rate,
            tau=rule.tau,
            inverse=rule.inverse,
        )

    def _gradient(self, task: int, head_rate: float) -> Weights:
        """Returns the gradient of a task, by a head that was trained alone."""
        aside = self.course.aside()
        examples = TrainingSet(aside.subsets[task])
        rates = flat(head_rate, aside.rates[0].scheme)
        probe = Stage(examples, (task,), rates, probe=True)
        unread = Journal(Observer(), np.empty((0, 0)))
        self.stages.train(aside, task, probe, [], unread)
        return aside.gradient(task)

    def _unmeasured(self, rule: FisherRates) -> Distribution:
        scheme = self.course.rates[0].scheme
        encoder = [rule.rescale] * (len(scheme.names) - 1)
        provenance = {"rule": rule.name, "unmeasured": "the run had diverged"}
        return Distribution.in_order(scheme, [*encoder, rule.head_rate], provenance)


def check_planned(course: Course, trains_a_sequence: bool) -> None:
    """Refuses rates that follow from earlier tasks where there is none.

    Args:
        course: A run, before it.
        trains_a_sequence: Whether its strategy trains one task after the other.

    Raises:
        ValueError: If the first task, or one that is trained on its own, has them.
    """
    first = course.tasks[0]
    found = [i for i, r in enumerate(course.planned) if isinstance(r, FisherRates)]
    if found and (found[0] == 0 or not trains_a_sequence):
        raise InputError(
            "Learning rates from a Fisher follow from the tasks before: a first task "
            "is required, with rates of its own, and a strategy that trains one task "
            "after the other. Received: such rates for task "
            f"{found[0] + 1} of {len(course.tasks)}"
            f"{'' if trains_a_sequence else ', and a strategy that trains no sequence'}"
        )
    if found and not len(first.train):
        raise InputError(
            "Learning rates from a Fisher need the training examples of "
            f"'{printable(first.name)}'; give the task `train`, or other rates."
        )
