"""A run on its way: what it was given, and the model as it is now."""

from __future__ import annotations

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
from lrdist_keras.training.run import Purpose, TaskData, generator, training_subset
from lrdist_keras.training.token_rows import room_of


@dataclass
class Course:
    """What strategies see of a run, and move.

    Args:
        tasks: Its tasks.
        rates: Learning rates of each task.
        seed: What everything random follows from.
        budget: Share of its steps that every task is trained for.
        evaluator: The evaluator of the encoder that is trained.
        carries_moments: Whether Adam's moments go on from task to task.
        subsets: Training examples of each task.
        weights: The encoder's weights as they are now; none before `restart`.
        heads: Kernel and bias of each task, as they are now.
        model_state: The encoder's other variables, as they are now.
        moments: What is kept of Adam between trainings, or None.
        rows: Number of embedding rows kept, enough for each subset; None keeps all.
    """

    tasks: Sequence[TaskData]
    rates: Sequence[Distribution]
    seed: int
    budget: float
    evaluator: Evaluator
    carries_moments: bool
    subsets: list[Encoded] = field(init=False)
    weights: Weights = field(init=False)
    heads: list[Weights] = field(init=False)
    model_state: list[Any] = field(init=False)
    moments: CarriedMoments | None = field(init=False)
    rows: int | None = field(init=False)

    def __post_init__(self) -> None:
        tasks, seed, encoder = self.tasks, self.seed, self.evaluator.step.encoder
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

    def copied_weights(self) -> Weights:
        """Returns copies of the weights, which later steps leave alone."""
        return copied(self.weights)

    def logits(self, data: Encoded, task: int) -> np.ndarray:
        """Returns the logits of a task's head on all examples, as the model is now."""
        return self.evaluator.evaluate(data, self.weights, self.heads[task])[0]

    def features(self, data: Encoded, task: int) -> np.ndarray:
        """Returns what a task's head sees of all examples, as the model is now."""
        return self.evaluator.evaluate(data, self.weights, self.heads[task])[1]

    def fisher(self, task: int) -> Weights:
        """Returns the Fisher of the weights now, on the training examples of a task."""
        data = self.subsets[task]
        return self.evaluator.fisher(data, self.weights, self.heads[task])

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
