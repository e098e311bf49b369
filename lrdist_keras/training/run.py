"""What goes into a run and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np

from lrdist_keras._storage import digest
from lrdist_keras.data.batches import Encoded, take
from lrdist_keras.data.sampling import stratified
from lrdist_keras.distribution import Distribution
from lrdist_keras.fisher import FisherRates
from lrdist_keras.training.shared_results import SharedResults

# What is said of a task's learning rates: they, or what they will follow from.
Rates = Distribution | FisherRates


class Purpose(IntEnum):
    """What a random draw is for; with seed and task it makes the generator."""

    SUBSET = 0
    HEAD = 1
    ORDER = 2
    STATE = 3
    CURVE = 4
    MEMORY = 5
    ALPHA = 6
    ADAPTERS = 7
    REPLAY = 8


def generator(seed: int, purpose: Purpose, task: int) -> np.random.Generator:
    """Returns the source of a random draw for the task of this number."""
    return np.random.default_rng([seed, purpose, task])


@dataclass(frozen=True)
class GivenModel:
    """A model that has learned a task already.

    Args:
        source: Where it is from.
        weights: In the order of `Encoder.weights`.
        head: Kernel, shape [width, classes], and bias, shape [classes].
    """

    source: str
    weights: list[np.ndarray]
    head: list[np.ndarray]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its numbers."""
        return digest(*self.weights, *self.head)


@dataclass(frozen=True)
class TaskData:
    """A task, encoded, with what its training needs.

    Args:
        name: Its name.
        train: Training examples.
        validation: Validation examples.
        classes: Number of classes.
        train_examples: Size of the stratified subset that a run trains on, drawn by the
            run's seed; None for all.
        epochs: Passes over that subset.
        given: For the first task: a model that has learned it, which is loaded in place
            of a training.
        shared_rates: For the first task: learning rates of a plain training of full
            length that begins every run, whatever the strategy.
    """

    name: str
    train: Encoded
    validation: Encoded
    classes: int
    train_examples: int | None
    epochs: int
    given: GivenModel | None = None
    shared_rates: Distribution | None = None

    @property
    def is_begun(self) -> bool:
        """Whether no strategy trains it: it is given, or its training is shared."""
        return self.given is not None or self.shared_rates is not None

    @property
    def size(self) -> int:
        """Number of training examples of a run."""
        return self.train_examples or len(self.train)


def training_subset(task: TaskData, seed: int, i: int) -> Encoded:
    """Returns the examples that a run of this seed trains on, as its task number i."""
    if task.train_examples is None:
        return task.train
    labels = task.train.labels
    rng = generator(seed, Purpose.SUBSET, i)
    return take(task.train, stratified(labels, task.train_examples, rng))


def _nothing(*_: Any) -> None:
    pass


@dataclass(frozen=True)
class Observer:
    """Who is told how a run goes.

    Args:
        on_steps: Called with the number of training steps just done.
        after_task: Called after each training with the number of its task, the weights
            in the order of `Encoder.weights`, and kernel and bias of each task's head.
            Later steps take over the memory of these arrays: copy what is to be kept.
        shared: Where results lie that other runs need too, None where none does.
    """

    on_steps: Callable[[int], None] = _nothing
    after_task: Callable[[int, list, list], None] = _nothing
    shared: SharedResults | None = None


@dataclass(frozen=True)
class Curve:
    """Accuracies on earlier tasks while a later one trains.

    Args:
        steps: Steps of the later task after which they were evaluated.
        accuracy: Accuracies by name of the earlier task, one per entry of `steps`, on
            a subset of its validation examples that is the same for all runs.
    """

    steps: list[int]
    accuracy: dict[str, list[float]]


@dataclass(frozen=True)
class Run:
    """What one sequential run gave.

    Args:
        accuracy: Accuracy at [after task, on task], NaN where a task was not yet
            trained and from where the run diverged, shape [tasks, tasks].
        majority_rates: Share of the most frequent validation class, shape [tasks].
        examples: Number of validation examples, shape [tasks].
        curves: Per later task, what its training did to the earlier ones.
        logits: Logits of every evaluation at (after task, on task), each float32 of
            shape [examples, classes], in the order of the validation examples.
        features: What the heads saw there, float32, shape [examples, width], of each
            task after its own training and after the last one.
        rates: Learning rates of each task, as they were given or found.
        diverged: Whether a number stopped being finite in training: a weight, one of
            the optimizer's moments, or a logit.
        seconds: Wall-clock time of the run.
        training_seconds: Time in training steps; in a first run programs are compiled
            beside them.
        compile_seconds: Time in which it traced programs and waited for their
            compilation, which goes on in the background.
        examples_per_second: Training examples over `training_seconds`.
        compilations: Programs compiled in this run, or taken from JAX's cache.
    """

    accuracy: np.ndarray
    majority_rates: np.ndarray
    examples: np.ndarray
    curves: dict[str, Curve]
    logits: dict[tuple[int, int], np.ndarray]
    features: dict[tuple[int, int], np.ndarray]
    rates: tuple[Distribution, ...]
    diverged: bool
    seconds: float
    training_seconds: float
    compile_seconds: float
    examples_per_second: float
    compilations: int


def accuracy_of(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of examples whose largest logit is that of the label.

    NaN where a logit is not finite: the largest of such numbers says nothing.
    """
    if not np.isfinite(logits).all():
        return float("nan")
    return float(np.mean(np.argmax(logits, axis=1) == labels))


def all_finite(arrays: Any) -> bool:
    """Returns whether every number in a tree of arrays is finite."""
    import jax

    return all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(arrays))
