"""The loop over the tasks: train one, evaluate all so far."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lrdist_keras.data.batches import Encoded
from lrdist_keras.data.sampling import majority_rate
from lrdist_keras.distribution import Distribution
from lrdist_keras.errors import InputError
from lrdist_keras.groups import Scheme, partition, path_groups
from lrdist_keras.models.encoder import Encoder
from lrdist_keras.models.platforms import settled
from lrdist_keras.printable import printable
from lrdist_keras.settings import Fault, TrainingSettings, check_faults
from lrdist_keras.training.compiler import Compiler
from lrdist_keras.training.course import Course
from lrdist_keras.training.evaluation import Evaluator
from lrdist_keras.training.measured_rates import RateFinder, check_planned
from lrdist_keras.training.penalties import Weights
from lrdist_keras.training.plan import Stage, Visit
from lrdist_keras.training.run import (
    GivenModel,
    Observer,
    Rates,
    Run,
    TaskData,
    accuracy_of,
)
from lrdist_keras.training.stage import Journal, StageTrainer, steps_of
from lrdist_keras.training.step import Step
from lrdist_keras.training.strategies.base import Strategy
from lrdist_keras.training.strategies.plain import Plain

_NOBODY = Observer()
_PLAIN = Plain()


class SequentialTrainer:
    """Trains sequences of tasks on one encoder, with programs that serve all runs.

    Args:
        encoder: The pretrained encoder.
        settings: How each task is trained; what they leave open is decided for this
            platform.
        scheme: How the layers of the encoder are divided, such as `Scheme(12, 4)` or
            `Scheme(12, layer_groups=(1, 2, 9))`; in 8 groups if None.
        compat: Faults of the authors' code to reproduce, see
            `lrdist_keras.config.Configuration`; those of training count here.
        compiler: That of another trainer of this process. Both together hold as many
            programs as one would.

    Raises:
        ValueError: If the scheme is of another number of layers than the encoder has,
            or a fault is not one of the optimizer.
    """

    def __init__(
        self,
        encoder: Encoder,
        settings: TrainingSettings,
        scheme: Scheme | None = None,
        compat: Collection[Fault] = (),
        compiler: Compiler | None = None,
    ) -> None:
        check_faults(compat, settings)
        self.encoder = encoder
        self.settings = settings = settled(settings)
        self.compat = compat
        paths = [v.path for v in encoder.model.trainable_variables]
        paths += ["head/kernel", "head/bias"]
        self.scheme, self.groups = _groups_of(paths, scheme)
        self.compiler = compiler or Compiler()
        self.step = Step(encoder, settings, self.groups, compat)
        self.evaluator = Evaluator(self.step, self.compiler)
        self.stages = StageTrainer(self.evaluator, compat)
        self._adapted: dict[tuple, SequentialTrainer] = {}

    def group_table(self, classes: Sequence[int]) -> list[tuple[str, int, int]]:
        """Returns (group, variables, parameters), with a head for each task."""
        sizes = [
            (v.path, int(np.prod(v.shape)))
            for v in self.encoder.model.trainable_variables
        ]
        for count in classes:
            sizes += [("head/kernel", self.encoder.width * count), ("head/bias", count)]
        indices = partition([path for path, _ in sizes], self.groups)
        return [
            (
                name,
                indices.count(group),
                sum(s for (_, s), i in zip(sizes, indices, strict=True) if i == group),
            )
            for group, name in enumerate(self.groups)
        ]

    def steps(
        self,
        tasks: Sequence[TaskData],
        budget: float = 1.0,
        strategy: Strategy = _PLAIN,
    ) -> int:
        """Returns the number of training steps of a sequence.

        Args:
            tasks: Its tasks.
            budget: See `run`.
            strategy: What it is trained with.
        """
        return sum(
            steps_of(self.settings, examples, tasks[visit.task].epochs, share)
            for visit in _plan(strategy, tasks)
            for share in [1.0 if tasks[visit.task].is_begun else budget]
            for examples in visit.examples
        )

    def run(
        self,
        tasks: Sequence[TaskData],
        rates: Rates | Sequence[Rates],
        strategy: Strategy,
        seed: int,
        budget: float = 1.0,
        observer: Observer = _NOBODY,
    ) -> Run:
        """Trains the tasks one after the other and evaluates all so far after each.

        Some strategies know no sequence: every row of their accuracy matrix holds what
        the one training of a task gave, so that by definition nothing is forgotten.

        Args:
            tasks: At least one.
            rates: Learning rates of the trainer's scheme, of all tasks or of each. Of
                a task after the first it may be a `FisherRates`, from which they are
                found when its turn comes, see `measured_rates.RateFinder`.
            strategy: What is done against forgetting.
            seed: What everything random follows from: subsets, heads, order, dropout,
                memories, adapters.
            budget: Share of its steps, in (0, 1], that every task is trained for, with
                the schedule fitted to that.
            observer: Who is told how it goes.

        Raises:
            ValueError: If a distribution is of another scheme, if the model or the
                data do not allow the strategy, or if rates cannot be found.
        """
        trainer, course = self._begun(tasks, rates, strategy, seed, budget)
        course.shared = observer.shared
        course.restart(trainer.encoder.weights)
        try:
            return trainer._follow(course, strategy, observer)
        except BaseException:
            # Or the process would not end before all of it is compiled.
            self.compiler.cancel()
            raise

    def check(
        self,
        tasks: Sequence[TaskData],
        rates: Rates | Sequence[Rates],
        strategy: Strategy,
        seed: int,
    ) -> None:
        """Raises what `run` would raise for the same arguments; trains nothing."""
        self._begun(tasks, rates, strategy, seed, 1.0)

    def _begun(
        self,
        tasks: Sequence[TaskData],
        rates: Rates | Sequence[Rates],
        strategy: Strategy,
        seed: int,
        budget: float,
    ) -> tuple[SequentialTrainer, Course]:
        """Returns what trains a run, and the run before its begin, checked."""
        _check_begin(tasks, strategy)
        trainer = self._of(strategy, tasks)
        trainer._check_frozen(strategy.frozen)
        course = trainer._course(tasks, rates, seed, budget)
        course.frozen = strategy.frozen
        check_planned(course, strategy.trains_a_sequence)
        strategy.check(course)
        return trainer, course

    def _check_frozen(self, names: Collection[str]) -> None:
        known = [name for name in self.groups if name != "head"]
        if wrong := [name for name in names if name not in known]:
            raise InputError(
                f"`frozen` may hold groups of the encoder: {', '.join(known)}. "
                f"Received: {', '.join(map(printable, wrong))}"
            )

    def _course(
        self,
        tasks: Sequence[TaskData],
        rates: Rates | Sequence[Rates],
        seed: int,
        budget: float,
    ) -> Course:
        of_each = [rates] * len(tasks) if isinstance(rates, Rates) else rates
        if len(of_each) != len(tasks):
            raise InputError(
                f"`rates` must be one distribution, or one for each of {len(tasks)} "
                f"tasks. Received: {len(of_each)}"
            )
        for given in of_each:
            if isinstance(given, Distribution) and given.scheme != self.scheme:
                raise InputError(
                    f"The distribution is of the scheme {given.scheme}, the model of "
                    f"{self.scheme}; resample it first."
                )
        carries = "carry_moments" in self.compat
        return Course(tasks, of_each, seed, budget, self.evaluator, carries)

    def evaluate(
        self, data: Encoded, weights: Sequence[Any], head: Sequence[Any]
    ) -> np.ndarray:
        """Returns the logits of a head on all examples, float32, [examples, classes].

        Args:
            data: The examples.
            weights: In the order of `encoder.weights`.
            head: Kernel and bias.
        """
        return self.evaluator.evaluate(data, weights, head)[0]

    def fisher(
        self, data: Encoded, weights: Sequence[Any], head: Sequence[Any]
    ) -> Weights:
        """Returns the diagonal Fisher of the weights, see `Evaluator.fisher`."""
        return self.evaluator.fisher(data, weights, head)

    def _of(self, strategy: Strategy, tasks: Sequence[TaskData]) -> SequentialTrainer:
        """Returns the trainer of the encoder that a strategy trains."""
        if not strategy.adapts_the_encoder:
            return self
        given = tasks[0].given
        key = strategy, None if given is None else given.digest
        if key not in self._adapted:
            # Adapters of a given model change that model, not the pretrained one.
            encoder = self.encoder
            if given is not None:
                encoder = replace(encoder, weights=given.weights)
            self._adapted[key] = SequentialTrainer(
                strategy.encoder(encoder),
                self.settings,
                self.scheme,
                self.compat,
                self.compiler,
            )
        return self._adapted[key]

    def _follow(self, course: Course, strategy: Strategy, observer: Observer) -> Run:
        """The loop over the tasks."""
        tasks, count, compiler = course.tasks, len(course.tasks), self.compiler
        journal = Journal(observer, np.full((count, count), np.nan))
        waited, compilations = compiler.seconds, compiler.compilations
        finder = RateFinder(self.stages, course)
        memory = strategy.begin(course)
        for visit in _plan(strategy, tasks):
            i = visit.task
            if visit.anew:
                course.restart(self.encoder.weights)
            finder.before(i, journal.diverged)
            earlier = list(range(i)) if strategy.trains_a_sequence else []
            if (given := tasks[i].given) is not None:
                self._take_given(course, given, strategy)
            for stage, is_last in self._stages(course, i, strategy, memory):
                journal.ends = is_last and not strategy.moves_after_training
                journal.curves[tasks[i].name] = self.stages.train(
                    course, i, stage, earlier, journal
                )
            memory = strategy.after_task(course, i, memory)
            finder.after(i)
            whole = list(self.encoder.whole(course.weights))
            observer.after_task(i, whole, course.heads)
            self._evaluate_all(course, i, strategy.trains_a_sequence, journal)
        for row in map(int, np.flatnonzero(np.isnan(np.diag(journal.accuracy)))):
            # Trained together with the last one.
            journal.accuracy[row, : row + 1] = journal.accuracy[-1, : row + 1]
            for j in range(row + 1):
                journal.logits[row, j] = journal.logits[count - 1, j]
        later = [t.name for t in tasks[1:]] if strategy.trains_a_sequence else []
        return Run(
            accuracy=journal.accuracy,
            majority_rates=np.array(
                [majority_rate(t.validation.labels) for t in tasks]
            ),
            examples=np.array([len(t.validation) for t in tasks]),
            curves={name: journal.curves[name] for name in later},
            logits=journal.logits,
            features=journal.features,
            rates=tuple(course.rates[i] for i in range(count)),
            diverged=journal.diverged,
            seconds=time.perf_counter() - journal.start,
            training_seconds=journal.training,
            compile_seconds=compiler.seconds - waited,
            examples_per_second=journal.trained / max(journal.training, 1e-9),
            compilations=compiler.compilations - compilations,
        )

    def _take_given(
        self, course: Course, given: GivenModel, strategy: Strategy
    ) -> None:
        """Goes on from a given model, which adapters have in their encoder already."""
        weights = course.weights if strategy.adapts_the_encoder else given.weights
        course.take_given(replace(given, weights=list(weights)))

    def _stages(
        self, course: Course, i: int, strategy: Strategy, memory: Any
    ) -> Iterator[tuple[Stage, bool]]:
        """Yields the trainings of a task, and whether each is the last one."""
        task = course.tasks[i]
        if task.given is not None:
            return
        shared = task.shared_rates is not None
        stages = [course.plain(i)] if shared else strategy.stages(course, i, memory)
        for k, stage in enumerate(stages, start=1):
            yield stage, k == len(stages)

    def _evaluate_all(
        self, course: Course, i: int, again: bool, journal: Journal
    ) -> None:
        """Fills row i of the matrix; what is known stays unless it is done `again`."""
        last = len(course.tasks) - 1
        for j, task in enumerate(course.tasks[: i + 1]):
            if again or (j, j) not in journal.logits:
                journal.logits[i, j], seen = course.validation(j)
            else:
                journal.logits[i, j] = journal.logits[j, j]
                seen = journal.features[j, j]
            if i in (j, last):
                journal.features[i, j] = seen
            found = accuracy_of(journal.logits[i, j], task.validation.labels)
            journal.diverged = journal.diverged or math.isnan(found)
            journal.accuracy[i, j] = math.nan if journal.diverged else found


def _plan(strategy: Strategy, tasks: Sequence[TaskData]) -> list[Visit]:
    """Returns a strategy's plan, in which a task that is begun has no own trainings."""
    plan = strategy.plan(tasks)
    return [
        replace(visit, examples=(() if task.given is not None else (task.size,)))
        if (task := tasks[visit.task]).is_begun and len(plan) > 1
        else visit
        for visit in plan
    ]


def _check_begin(tasks: Sequence[TaskData], strategy: Strategy) -> None:
    """Refuses a strategy that cannot go on from how the first task is begun.

    Raises:
        InputError: If it needs examples that are not there, or has an encoder of its
            own.
    """
    first = tasks[0]
    if any(task.is_begun for task in tasks[1:]) or (first.is_begun and len(tasks) < 2):
        raise InputError(
            "Only the first of several tasks may be given as a trained model, or have "
            f"its training shared. Received: {[task.name for task in tasks]}"
        )
    if first.shared_rates is not None and strategy.adapts_the_encoder:
        raise InputError(
            f"The strategy {strategy.name} trains adapters from the first task on, so "
            "it cannot share that of the others; leave out [first], or this arm."
        )
    if not len(first.train) and strategy.needs_earlier_examples:
        raise InputError(
            f"The strategy {strategy.name} needs the training examples of "
            f"'{printable(first.name)}'; give the task `train`, or choose another "
            "strategy."
        )


def _groups_of(
    paths: Sequence[str], scheme: Scheme | None
) -> tuple[Scheme, dict[str, tuple[str, ...]]]:
    """Returns the scheme of an encoder and the patterns of its groups.

    Raises:
        ValueError: If the encoder has another number of layers than the scheme.
    """
    if scheme is None:
        return path_groups(paths)
    division = scheme.encoder_groups, scheme.rounding, scheme.layer_groups
    found, groups = path_groups(paths, *division)
    if found != scheme:
        raise InputError(
            "`scheme` must divide as many transformer layers as the encoder has, "
            f"{found.layers}. Received: {scheme}"
        )
    return scheme, groups
