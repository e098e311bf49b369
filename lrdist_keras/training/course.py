"""A run on its way: what it was given, and the model as it is now."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

from lrdist_keras.data.batches import Encoded
from lrdist_keras.distribution import Distribution
from lrdist_keras.models.encoder import new_head
from lrdist_keras.training.carried_moments import CarriedMoments
from lrdist_keras.training.evaluation import Evaluator
from lrdist_keras.training.penalties import Weights
from lrdist_keras.training.plan import Stage, TrainingSet
from lrdist_keras.training.run import (
    GivenModel,
    Purpose,
    Rates,
    TaskData,
    generator,
    training_subset,
)
from lrdist_keras.training.shared_results import SharedResults
from lrdist_keras.training.token_rows import room_of


@dataclass(frozen=True)
class _Evaluation:
    """An evaluation of a task's validation examples, and what it was of.

    Nothing changes the lists of weights and heads: later ones are other lists.
    """

    weights: Weights
    head: Weights
    logits: np.ndarray
    features: np.ndarray


@dataclass
class Course:
    """What strategies see of a run, and move.

    Args:
        tasks: Its tasks.
        planned: Learning rates of each task, or what they follow from.
        seed: What everything random follows from.
        budget: Share of its steps that every task is trained for.
        evaluator: The evaluator of the encoder that is trained.
        carries_moments: Whether Adam's moments go on from task to task.
        frozen: Names of groups that are not trained.
        shared: Where results lie that other runs need too, None where none does.
        rates: Learning rates by number of the task, of those that are known by now.
        subsets: Training examples of each task.
        weights: The encoder's weights as they are now; none before `restart`.
        heads: Kernel and bias of each task, as they are now.
        model_state: The encoder's other variables, as they are now.
        moments: What is kept of Adam between trainings, or None.
        rows: Number of embedding rows kept, enough for each subset; None keeps all.
    """

    tasks: Sequence[TaskData]
    planned: Sequence[Rates]
    seed: int
    budget: float
    evaluator: Evaluator
    carries_moments: bool
    frozen: tuple[str, ...] = ()
    shared: SharedResults | None = None
    rates: dict[int, Distribution] = field(init=False)
    subsets: list[Encoded] = field(init=False)
    weights: Weights = field(init=False)
    heads: list[Weights] = field(init=False)
    model_state: list[Any] = field(init=False)
    moments: CarriedMoments | None = field(init=False)
    rows: int | None = field(init=False)
    _seen: dict[int, _Evaluation] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        tasks, seed, encoder = self.tasks, self.seed, self.evaluator.step.encoder
        planned = list(self.planned)
        if (shared := tasks[0].shared_rates) is not None:
            planned[0] = shared
        self.planned = planned
        self.rates = {
            i: rates
            for i, rates in enumerate(planned)
            if isinstance(rates, Distribution)
        }
        self.subsets = [training_subset(t, seed, i) for i, t in enumerate(tasks)]
        self.heads = [
            copied(new_head(task.classes, encoder.width, self.rng(Purpose.HEAD, i)))
            for i, task in enumerate(tasks)
        ]
        self.model_state = copied(initial_state(encoder, seed))
        self.rows = room_of(encoder, self.subsets)

    def rng(self, purpose: Purpose, task: int = 0) -> np.random.Generator:
        """Returns the source of a random draw for the task of this number."""
        return generator(self.seed, purpose, task)

    def restart(self, weights: Sequence[Any]) -> None:
        """Goes back to these weights, copied, and forgets moments."""
        self.weights = copied(weights)
        self.moments = CarriedMoments() if self.carries_moments else None

    def take_given(self, given: GivenModel) -> None:
        """Goes on from a model that has learned the first task."""
        self.weights, self.heads[0] = copied(given.weights), copied(given.head)

    def budget_of(self, task: int) -> float:
        """Returns the share of its steps that a task is trained for."""
        whole = task == 0 and self.tasks[0].shared_rates is not None
        return 1.0 if whole else self.budget

    def frozen_in(self, task: int) -> tuple[str, ...]:
        """Returns the groups that are not trained in the training of a task."""
        shared = task == 0 and self.tasks[0].shared_rates is not None
        return () if shared else self.frozen

    @property
    def own_rates(self) -> Sequence[Rates]:
        """What is said of the rates of the tasks that the run's strategy trains."""
        return self.planned[1:] if self.tasks[0].is_begun else self.planned

    def copied_weights(self) -> Weights:
        """Returns copies of the weights, which later steps leave alone."""
        return copied(self.weights)

    def logits(self, data: Encoded, task: int) -> np.ndarray:
        """Returns the logits of a task's head on all examples, as the model is now."""
        return self.evaluator.evaluate(data, self.weights, self.heads[task])[0]

    def validation(self, task: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns logits and features of a task's validation examples, as of now.

        What was asked for before, of the same weights and head, is not computed again.
        """
        if (known := self.known_validation(task)) is None:
            data, head = self.tasks[task].validation, self.heads[task]
            known = self.evaluator.evaluate(data, self.weights, head)
            self.note_validation(task, *known)
        return known

    def known_validation(self, task: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns what `validation` would, if it is known; else None."""
        seen = self._seen.get(task)
        if seen is None or seen.weights is not self.weights:
            return None
        return (seen.logits, seen.features) if seen.head is self.heads[task] else None

    def note_validation(
        self, task: int, logits: np.ndarray, features: np.ndarray
    ) -> None:
        """Keeps an evaluation of the weights and the head as they are now."""
        now = self.weights, self.heads[task]
        self._seen[task] = _Evaluation(*now, logits, features)

    def features(self, data: Encoded, task: int) -> np.ndarray:
        """Returns what a task's head sees of all examples, as the model is now."""
        return self.evaluator.evaluate(data, self.weights, self.heads[task])[1]

    def fisher(self, task: int) -> Weights:
        """Returns the Fisher of the weights now, on the training examples of a task."""
        data, head = self.subsets[task], self.heads[task]

        def make() -> dict[str, np.ndarray]:
            found = self.evaluator.fisher(data, self.weights, head)
            return {f"fisher_{k}": np.asarray(f) for k, f in enumerate(found)}

        if self.shared is None or not self.shared.fishers:
            return self.evaluator.fisher(data, self.weights, head)
        arrays = map(np.asarray, [*self.weights, *head])
        depends_on: tuple[str | np.ndarray, ...] = (
            *self.evaluator.identity,
            data.digest,
            np.asarray(data.labels),
            *arrays,
        )
        found = self.shared.get("fisher", depends_on, make)
        return copied([found[f"fisher_{k}"] for k in range(len(self.weights))])

    def gradient(self, task: int) -> Weights:
        """Returns the gradient of a task's mean loss, on its training examples."""
        data = self.subsets[task]
        return self.evaluator.gradient(data, self.weights, self.heads[task])

    def aside(self) -> Course:
        """Returns a course from here that leaves this one as it is.

        Where moments go on from task to task, it begins without them.
        """
        other = copy.copy(self)
        other.rates = dict(self.rates)
        other.weights = self.copied_weights()
        other.heads = [copied(head) for head in self.heads]
        other.model_state = copied(self.model_state)
        other.moments, other._seen = None, {}
        return other

    def plain(self, task: int) -> Stage:
        """Returns the training of a task on its examples alone, without more."""
        examples = TrainingSet(self.subsets[task])
        return Stage(examples, (task,), self.rates[task])


def initial_state(encoder: Any, seed: int) -> list[np.ndarray]:
    """Returns the encoder's other variables before a run, seeds of dropout drawn."""
    rng = generator(seed, Purpose.STATE, 0)
    variables = encoder.model.non_trainable_variables
    return [
        rng.integers(0, 2**32, value.shape, dtype=np.uint32)
        if "seed_generator" in variable.path
        else value
        for variable, value in zip(variables, encoder.state, strict=True)
    ]


def copied(values: Sequence[Any]) -> list[Any]:
    """Returns copies, since programs take over the memory of what they are given."""
    return [jnp.array(value, copy=True) for value in values]
