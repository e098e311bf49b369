"""One training of a task: batches in turn, with stops to average and to evaluate."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from lrdist_keras.data.batches import Encoded, take
from lrdist_keras.data.sampling import stratified
from lrdist_keras.models.platforms import calls_ahead
from lrdist_keras.settings import Fault, TrainingSettings
from lrdist_keras.training.compiler import Compiler
from lrdist_keras.training.course import Course
from lrdist_keras.training.evaluation import Evaluator
from lrdist_keras.training.frozen_groups import FrozenGroups
from lrdist_keras.training.plan import Part, Plan, Stage, Terms, TrainingSet
from lrdist_keras.training.run import (
    Curve,
    Observer,
    Purpose,
    accuracy_of,
    all_finite,
    generator,
)
from lrdist_keras.training.shared_trainings import (
    arrays_of,
    put,
    what_it_depends_on,
)
from lrdist_keras.training.step import Clock, TrainState
from lrdist_keras.training.token_rows import ALL_ROWS, UsedRows, held_rows


@dataclass
class Journal:
    """What is noted while a run goes on.

    Args:
        observer: Who is told.
        accuracy: The accuracy matrix, as far as it is known.
        ends: Whether the model is evaluated as the training that runs leaves it.
    """

    observer: Observer
    accuracy: np.ndarray
    ends: bool = True
    curves: dict[str, Curve] = field(default_factory=dict)
    logits: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    features: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    start: float = field(default_factory=time.perf_counter)
    training: float = 0.0
    trained: int = 0
    diverged: bool = False


@dataclass(frozen=True)
class _Training:
    """A stage that is being trained.

    Args:
        stage: It.
        examples: Its examples, as batches hold them.
        held: The rows of the token embeddings that it holds.
        table: All of them, before it.
        frozen: The groups that are not trained.
        sees_features: Whether it trains heads alone, on features that do not change.
        total: Its steps.
        curve: What is noted of earlier tasks.
        samples: Which validation examples to evaluate, by number of the earlier task.
        points: Steps after which they are.
    """

    stage: Stage
    examples: TrainingSet
    held: UsedRows
    table: Any
    frozen: tuple[str, ...]
    sees_features: bool
    total: int
    curve: Curve
    samples: dict[int, np.ndarray]
    points: set[int]


class _Calls:
    """The calls of one training that the device was given.

    Args:
        compiler: Makes the programs.
        journal: What times and examples are added to.
    """

    def __init__(self, compiler: Compiler, journal: Journal) -> None:
        self.compiler = compiler
        self.journal = journal
        self._under_way: deque[Any] = deque()
        self._counted = 0.0  # the moment up to which time has been

    def begin(self, function: Any, given: tuple, part: Part, ahead: int) -> TrainState:
        """Begins one, and waits until no more than so many are under way.

        Returns:
            The state after it.
        """
        # With a call under way the device has been at work all the time.
        start = self._counted if self._under_way else time.perf_counter()
        waited = self.compiler.seconds
        state, loss = self.compiler.call(function, *given)
        self._under_way.append(loss)
        while len(self._under_way) > ahead:
            jax.block_until_ready(self._under_way.popleft())
        waited = self.compiler.seconds - waited
        self._counted = time.perf_counter()
        self.journal.training += self._counted - start - waited
        self.journal.trained += part.examples
        return state


class StageTrainer:
    """Does the trainings of runs, on one encoder.

    Args:
        evaluator: The encoder's evaluator, with its functions and their compiler.
        compat: Faults of the authors' code to reproduce.
    """

    def __init__(self, evaluator: Evaluator, compat: Collection[Fault]) -> None:
        self.evaluator = evaluator
        self.step = evaluator.step
        self.settings = evaluator.step.settings
        self.compiler = evaluator.compiler
        self.compat = compat

    def train(
        self,
        course: Course,
        i: int,
        stage: Stage,
        earlier: list[int],
        journal: Journal,
    ) -> Curve:
        """Does one training; returns accuracies on the earlier tasks meanwhile.

        One that other runs need too is taken from where one of them left it.
        """
        shared = course.shared
        plain = stage.is_plain_of(i) and course.moments is None
        if shared is None or i >= shared.trainings or not plain:
            return self._train(course, i, stage, earlier, journal)
        names = [course.tasks[j].name for j in earlier]
        made: list[Curve] = []

        def make() -> Mapping[str, np.ndarray]:
            made.append(self._train(course, i, stage, earlier, journal))
            if journal.ends:
                course.validation(i)
            return arrays_of(course, i, made[0], names, journal.diverged)

        depends_on = what_it_depends_on(course, i, stage, earlier)
        found = shared.get("training", depends_on, make)
        if made:
            return made[0]
        examples, epochs = len(stage.examples), course.tasks[i].epochs
        journal.observer.on_steps(
            steps_of(self.settings, examples, epochs, course.budget_of(i))
        )
        journal.diverged = journal.diverged or bool(found["diverged"])
        return put(course, i, found, names)

    def _train(
        self,
        course: Course,
        i: int,
        stage: Stage,
        earlier: list[int],
        journal: Journal,
    ) -> Curve:
        shuffles = "no_shuffling" not in self.compat
        rng = course.rng(Purpose.ORDER, i) if shuffles else None
        training = self._begin(course, i, stage, earlier)
        plan = Plan(training.examples, self.settings, course.tasks[i].epochs, rng)
        state, terms = self._first_state(course, training)
        heads_alone = stage.probe or training.sees_features
        function = self.step.probe_steps if heads_alone else self.step.train_steps
        peak, total = np.float32(stage.rates.reference_rate), np.float32(training.total)
        clock = Clock(np.int32(0), np.float32(0), total, peak)
        for batches in plan.shapes(training.total):
            self.compiler.prefetch(function, state, batches, clock, terms)
        self._prefetch_evaluations(course, i, training)
        done, averages = 0, stage.stops(training.total)
        state = self._stop(course, training, state, done, journal)
        stops = training.points | averages | {training.total}
        calls = _Calls(self.compiler, journal)
        for part in plan.parts(training.total, stops):
            now = clock._replace(steps=np.int32(part.steps), done=np.float32(done))
            given = (state, part.batches, now, terms)
            done += part.steps
            ahead = 0 if done in stops else calls_ahead()
            state = calls.begin(function, given, part, ahead)
            journal.observer.on_steps(part.steps)
            state = self._stop(course, training, state, done, journal)
        if done not in training.points:
            self._take(course, training, state)
        # A moment that overflowed stays infinite, and its weight would never move.
        trained = (state.weights, state.heads, state.optimizer)
        journal.diverged = journal.diverged or not all_finite(trained)
        if course.moments is not None:
            course.moments.keep(state.optimizer, stage.active, done, stage.probe)
        return training.curve

    def _begin(
        self, course: Course, i: int, stage: Stage, earlier: list[int]
    ) -> _Training:
        """Returns what a training goes by."""
        settings, tasks = self.settings, course.tasks
        budget = course.budget_of(i)
        total = steps_of(self.settings, len(stage.examples), tasks[i].epochs, budget)
        points = settings.curve_points if earlier else 0
        frozen = () if stage.probe else course.frozen_in(i)
        sees_features = self._sees_features(course, stage, frozen)
        rows = None if self._moves_all(stage.terms) else course.rows
        held = ALL_ROWS
        if sees_features:
            data, head = stage.examples.encoded, course.heads[stage.active[-1]]
            _, features = self.evaluator.evaluate(data, course.weights, head)
            examples = replace(stage.examples, features=features)
        else:
            held = held_rows(self.step.encoder, stage.examples.shown, rows)
            examples = stage.examples.narrowed(held)
        return _Training(
            stage=stage,
            examples=examples,
            held=held,
            table=course.weights[held.position],
            frozen=frozen,
            sees_features=sees_features,
            total=total,
            curve=Curve([], {tasks[j].name: [] for j in earlier}),
            samples={j: self._sample(tasks[j].validation) for j in earlier if points},
            # The number of steps does not depend on the seed.
            points={round(total * k / points) for k in range(points + 1)}
            if points
            else set(),
        )

    def _sees_features(
        self, course: Course, stage: Stage, frozen: tuple[str, ...]
    ) -> bool:
        """Returns whether heads alone are trained, on features that do not change."""
        encoder, step = self.step.encoder, self.step
        groups = {list(step.groups)[i] for i in step.group_of}
        variables = encoder.model.non_trainable_variables
        drops = any("seed_generator" in variable.path for variable in variables)
        plain = stage.terms._replace(distillation=None) == Terms()
        return (
            (stage.probe or groups <= set(frozen))
            and not drops
            and plain
            and stage.examples.memory is None
            and stage.at_stop is None
            and course.moments is None
        )

    def _first_state(
        self, course: Course, training: _Training
    ) -> tuple[TrainState, Terms]:
        """Returns the state before the first step, and the terms of all."""
        stage, frozen = training.stage, training.frozen
        terms = stage.terms
        if frozen and not training.sees_features:
            terms = terms._replace(frozen=FrozenGroups(frozen))
        heads = [course.heads[j] for j in stage.active]
        weights = training.held.take(course.weights)
        if training.sees_features:
            weights = []
        multipliers = stage.rates.multipliers | dict.fromkeys(frozen, 0.0)
        state = self.step.begin(weights, heads, course.model_state, multipliers)
        if (moments := course.moments) is None:
            return state, terms
        steps = moments.head_steps(stage.active)
        carried = moments.put(state.optimizer, stage.active)
        return replace(state, optimizer=carried), terms._replace(head_steps=steps)

    def _prefetch_evaluations(
        self, course: Course, i: int, training: _Training
    ) -> None:
        sets = [(task.validation, j) for j, task in enumerate(course.tasks[: i + 1])]
        sets += [
            (take(course.tasks[j].validation, rows), j)
            for j, rows in training.samples.items()
        ]
        for data, j in sets:
            self.evaluator.prefetch(data, course.weights, course.heads[j])

    def _stop(
        self,
        course: Course,
        training: _Training,
        state: TrainState,
        done: int,
        journal: Journal,
    ) -> TrainState:
        """Averages and evaluates, where that is due after so many steps."""
        stage = training.stage
        if stage.at_stop is not None and done in stage.stops(training.total):
            whole = training.held.put(training.table, state.weights)
            weights = training.held.take(stage.at_stop(whole))
            state = replace(state, weights=weights)
        if done in training.points:
            if done:
                self._take(course, training, state)
            # At its end all examples are evaluated next, unless the weights move first.
            ends = journal.ends and done == training.total
            training.curve.steps.append(done)
            for j, rows in training.samples.items():
                logits = self._logits_of(course, j, rows, ends)
                labels = course.tasks[j].validation.labels[rows]
                found = accuracy_of(logits, labels)
                training.curve.accuracy[course.tasks[j].name].append(found)
        return state

    def _logits_of(
        self, course: Course, j: int, rows: np.ndarray, of_all: bool
    ) -> np.ndarray:
        """Returns the logits of some validation examples of a task, as of now.

        Args:
            course: The run.
            j: Number of the task.
            rows: The examples.
            of_all: Whether those of all examples will be asked for anyway.
        """
        known = course.validation(j) if of_all else course.known_validation(j)
        if known is not None:
            return known[0][rows]
        return course.logits(take(course.tasks[j].validation, rows), j)

    def _take(self, course: Course, training: _Training, state: TrainState) -> None:
        """Puts the weights, heads and state of a training into their place."""
        if not training.sees_features:
            course.weights = training.held.put(training.table, state.weights)
        course.model_state = state.model_state
        for j, head in zip(training.stage.active, state.heads, strict=True):
            course.heads[j] = head

    def _moves_all(self, terms: Terms) -> bool:
        """Returns whether a training moves embeddings of tokens that do not occur."""
        return (
            self.settings.optimizer == "adamw"
            or "carry_moments" in self.compat
            or terms.penalty is not None
            or terms.pull is not None
        )

    def _sample(self, data: Encoded) -> np.ndarray:
        """Returns the numbers of the examples that curves are taken on."""
        count = min(self.settings.curve_examples, len(data))
        rng = generator(0, Purpose.CURVE, 0)
        return stratified(data.labels, count, rng)


def steps_of(
    settings: TrainingSettings, examples: int, epochs: int, budget: float
) -> int:
    """Returns the steps of one training on so many examples.

    Args:
        settings: Size of batches.
        examples: Number of them.
        epochs: Passes over them.
        budget: Share of the steps that are done, in (0, 1].
    """
    steps = epochs * -(-examples // settings.batch_size)
    return min(steps, max(1, round(budget * steps)))
