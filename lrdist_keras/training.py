"""The compiled sequential loop: one task after the other, on one set of programs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from lrdist_keras.config import ArmSettings, TrainingSettings
from lrdist_keras.distribution import Distribution
from lrdist_keras.encoding import (
    Encoded,
    evaluation_batches,
    take,
    training_steps,
)
from lrdist_keras.groups import Scheme, partition, path_groups
from lrdist_keras.models import Encoder, new_head
from lrdist_keras.optimizer import LayerwiseOptimizer
from lrdist_keras.regularizers import QuadraticPenalty, squared_gradients
from lrdist_keras.tasks import majority_rate, stratified

_FISHER_CHUNK = 4  # per-example gradients are as large as the model, each

# What a random draw is for; with the seed and the task it makes the generator.
_SUBSET, _HEAD, _ORDER, _STATE, _CURVE = range(5)


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
    """

    name: str
    train: Encoded
    validation: Encoded
    classes: int
    train_examples: int | None
    epochs: int


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
            trained, shape [tasks, tasks].
        majority_rates: Share of the most frequent validation class, shape [tasks].
        examples: Number of validation examples, shape [tasks].
        curves: Per later task, what its training did to the earlier ones.
        logits: Logits of every evaluation at (after task, on task), each float32 of
            shape [examples, classes], in the order of the validation examples.
        seconds: Wall-clock time of the run.
        training_seconds: Time in training steps, compilation apart.
        compile_seconds: Time in compilation.
        examples_per_second: Training examples over `training_seconds`.
        compilations: Programs compiled in this run.
    """

    accuracy: np.ndarray
    majority_rates: np.ndarray
    examples: np.ndarray
    curves: dict[str, Curve]
    logits: dict[tuple[int, int], np.ndarray]
    seconds: float
    training_seconds: float
    compile_seconds: float
    examples_per_second: float
    compilations: int


@dataclass
class _Clock:
    """Where the time of a run goes."""

    start: float = field(default_factory=time.perf_counter)
    training: float = 0.0
    compiling: float = 0.0
    trained: int = 0
    compilations: int = 0


class SequentialTrainer:
    """Trains sequences of tasks on one encoder, with programs compiled once each.

    There is one program per (kind of strategy, number of classes, bucket): learning
    rates, the position in the schedule, multipliers, penalties and weights are its
    arguments.

    Args:
        encoder: The pretrained encoder.
        settings: How each task is trained.
        encoder_groups: Number of encoder groups, see `lrdist_keras.groups.Scheme`.
        rounding: `"floor"` or `"ceil"`, see `lrdist_keras.groups.Scheme`.
    """

    def __init__(
        self,
        encoder: Encoder,
        settings: TrainingSettings,
        encoder_groups: int = 8,
        rounding: Any = "floor",
    ) -> None:
        self.encoder = encoder
        self.settings = settings
        paths = [v.path for v in encoder.model.trainable_variables]
        self.scheme: Scheme
        self.scheme, self.groups = path_groups(
            [*paths, "head/kernel", "head/bias"], encoder_groups, rounding
        )
        self._optimizers: dict[int, LayerwiseOptimizer] = {}
        self._programs: dict[tuple, Any] = {}
        self._clock = _Clock()

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

    def steps(self, tasks: Sequence[TaskData], budget: float = 1.0) -> int:
        """Returns the number of training steps of a sequence."""
        batch = self.settings.batch_size
        sizes = [task.train_examples or len(task.train) for task in tasks]
        return sum(
            _budgeted(task.epochs * -(-size // batch), budget)
            for task, size in zip(tasks, sizes, strict=True)
        )

    def run(
        self,
        tasks: Sequence[TaskData],
        distribution: Distribution,
        arm: ArmSettings,
        seed: int,
        on_steps: Callable[[int], None] = lambda steps: None,
        budget: float = 1.0,
    ) -> Run:
        """Trains the tasks one after the other and evaluates all so far after each.

        Args:
            tasks: At least one.
            distribution: Learning rates of the trainer's scheme.
            arm: Its strategy and strength.
            seed: What everything random follows from: subsets, heads, order, dropout.
            on_steps: Called with the number of training steps just done.
            budget: Share of its steps, in (0, 1], that every task is trained for, with
                the schedule fitted to that.

        Raises:
            ValueError: If the distribution is of another scheme.
        """
        if distribution.scheme != self.scheme:
            raise ValueError(
                f"The distribution is of the scheme {distribution.scheme}, the model "
                f"of {self.scheme}; resample it first."
            )
        self._clock = clock = _Clock()
        count = len(tasks)
        accuracy = np.full((count, count), np.nan)
        logits: dict[tuple[int, int], np.ndarray] = {}
        curves: dict[str, Curve] = {}
        heads = [
            _copy(new_head(task.classes, self.encoder.width, _rng(seed, _HEAD, i)))
            for i, task in enumerate(tasks)
        ]
        samples = [self._curve_sample(task) for task in tasks]
        weights = _copy(self.encoder.weights)
        state = _copy(self._initial_state(seed))
        penalty: QuadraticPenalty | None = None
        for i, task in enumerate(tasks):
            train = task.train
            if task.train_examples is not None:
                chosen = stratified(
                    train.labels, task.train_examples, _rng(seed, _SUBSET, i)
                )
                train = take(train, chosen)
            earlier = tasks[:i]
            curve = Curve([], {t.name: [] for t in earlier})

            def sample(
                step: int, current: list, curve: Curve = curve, i: int = i
            ) -> None:
                curve.steps.append(step)
                for j in range(i):
                    found = self._evaluate(samples[j], [*current, *heads[j]], tasks[j])
                    curve.accuracy[tasks[j].name].append(
                        _accuracy(found, samples[j].labels)
                    )

            values, state = self._train(
                train,
                task,
                [*weights, *heads[i]],
                state,
                distribution,
                penalty,
                _rng(seed, _ORDER, i),
                sample if earlier else None,
                on_steps,
                budget,
            )
            weights, heads[i] = values[:-2], values[-2:]
            for j, other in enumerate(tasks[: i + 1]):
                logits[i, j] = self._evaluate(
                    other.validation, [*weights, *heads[j]], other
                )
                accuracy[i, j] = _accuracy(logits[i, j], other.validation.labels)
            if earlier:
                curves[task.name] = curve
            if arm.strategy == "ewc" and i + 1 < count:
                fisher = self._fisher(train, [*weights, *heads[i]], task)
                new = QuadraticPenalty(
                    fisher, _copy(weights), np.float32(arm.strength or 0.0)
                )
                penalty = new if penalty is None else penalty.plus(new)
        return Run(
            accuracy=accuracy,
            majority_rates=np.array(
                [majority_rate(t.validation.labels) for t in tasks]
            ),
            examples=np.array([len(t.validation) for t in tasks]),
            curves=curves,
            logits=logits,
            seconds=time.perf_counter() - clock.start,
            training_seconds=clock.training,
            compile_seconds=clock.compiling,
            examples_per_second=clock.trained / max(clock.training, 1e-9),
            compilations=clock.compilations,
        )

    def _train(
        self,
        train: Encoded,
        task: TaskData,
        values: list,
        state: list,
        distribution: Distribution,
        penalty: QuadraticPenalty | None,
        rng: np.random.Generator,
        sample: Callable[[int, list], None] | None,
        on_steps: Callable[[int], None],
        budget: float = 1.0,
    ) -> tuple[list, list]:
        """Trains one task; returns the new weights (head last) and state."""
        settings = self.settings
        optimizer_state = self._optimizer_state(task.classes, distribution)
        epochs = (
            training_steps(
                train,
                settings.max_length,
                settings.batch_size,
                settings.steps_per_call,
                rng,
            )
            for _ in range(task.epochs)
        )
        total = _budgeted(task.epochs * -(-len(train) // settings.batch_size), budget)
        points = settings.curve_points if sample else 0
        # The steps to stop at; the number of steps does not depend on the seed.
        stops = {round(total * k / points) for k in range(points + 1)} if points else {}
        kind = "plain" if penalty is None else "quadratic"
        done = 0
        for call in (call for calls in epochs for call in calls):
            rows = call.indices
            while len(rows) and done < total:
                if sample and done in stops:
                    sample(done, values[:-2])
                ends = [s - done for s in stops if s > done]
                steps = min([len(rows), total - done, *ends])
                missing = settings.steps_per_call - steps
                filled = np.pad(
                    rows[:steps], ((0, missing), (0, 0)), constant_values=-1
                )
                arguments = (
                    values,
                    state,
                    optimizer_state,
                    train.arrays(filled, call.length),
                    np.int32(steps),
                    np.float32(done),
                    np.float32(total),
                    np.float32(distribution.reference_rate),
                    penalty,
                )
                program = self._program(kind, task.classes, call.length, arguments)
                start = time.perf_counter()
                values, state, optimizer_state, loss = program(*arguments)
                jax.block_until_ready(loss)
                self._clock.training += time.perf_counter() - start
                self._clock.trained += int((rows[:steps] >= 0).sum())
                done += steps
                rows = rows[steps:]
                on_steps(steps)
        if sample and done in stops:
            sample(done, values[:-2])
        return values, state

    def _evaluate(self, data: Encoded, values: list, task: TaskData) -> np.ndarray:
        """Returns the logits of all examples, float32, shape [examples, classes]."""
        settings = self.settings
        state = self.encoder.state
        logits = np.zeros((len(data), task.classes), np.float32)
        for batch in evaluation_batches(
            data, settings.max_length, settings.evaluation_batch_size
        ):
            arguments = (values, state, data.arrays(batch.indices, batch.length))
            program = self._program("evaluate", task.classes, batch.length, arguments)
            real = batch.indices >= 0
            logits[batch.indices[real]] = np.asarray(program(*arguments))[real]
        return logits

    def _fisher(self, data: Encoded, values: list, task: TaskData) -> list:
        """Returns the diagonal Fisher of the encoder's weights over these examples."""
        total = [jnp.zeros_like(w) for w in values[:-2]]
        for batch in evaluation_batches(data, self.settings.max_length, _FISHER_CHUNK):
            inputs = data.arrays(batch.indices, batch.length)
            arguments = (total, values, inputs, np.float32(1 / len(data)))
            program = self._program("fisher", task.classes, batch.length, arguments)
            total = program(*arguments)
        return total

    def _program(
        self, kind: str, classes: int, length: int, arguments: tuple
    ) -> Callable[..., Any]:
        """Returns the compiled program, compiling it where this is its first use."""
        rows = self.settings.batch_size
        if kind == "evaluate":
            rows = arguments[2]["labels"].shape[0]
        key = (kind, classes, length, rows)
        if key not in self._programs:
            start = time.perf_counter()
            if kind == "evaluate":
                function = jax.jit(self._evaluation_call)
            elif kind == "fisher":
                function = jax.jit(self._fisher_call, donate_argnums=0)
            else:
                optimizer = self._optimizer(classes)
                function = jax.jit(
                    self._training_call(optimizer), donate_argnums=(0, 1, 2)
                )
            self._programs[key] = function.lower(*arguments).compile()
            self._clock.compiling += time.perf_counter() - start
            self._clock.compilations += 1
        return self._programs[key]

    def _logits(
        self, values: list, state: list, inputs: dict, training: bool
    ) -> tuple[Any, list]:
        features, state = self.encoder.features(values[:-2], state, inputs, training)
        kernel, bias = values[-2:]
        return features @ kernel + bias, state

    def _evaluation_call(self, values: list, state: list, inputs: dict) -> Any:
        return self._logits(values, state, inputs, training=False)[0]

    def _fisher_call(self, total: list, values: list, inputs: dict, scale: Any) -> list:
        head = values[-2:]

        def log_likelihood(weights: list, example: dict) -> Any:
            one = jax.tree.map(lambda x: x[None], example)
            logits, _ = self._logits(
                [*weights, *head], self.encoder.state, one, training=False
            )
            return jax.nn.log_softmax(logits)[0, example["labels"]]

        squares = squared_gradients(
            log_likelihood, values[:-2], inputs, inputs["weights"]
        )
        return [t + scale * s for t, s in zip(total, squares, strict=True)]

    def _training_call(self, optimizer: LayerwiseOptimizer) -> Callable[..., Any]:
        rate = next(
            i
            for i, v in enumerate(optimizer.variables)
            if v is optimizer.inner_optimizer._learning_rate
        )
        warmup, kind = self.settings.warmup, self.settings.schedule

        def loss(
            values: list, state: list, batch: dict, penalty: QuadraticPenalty | None
        ) -> tuple[Any, list]:
            logits, state = self._logits(values, state, batch, training=True)
            nll = -jnp.take_along_axis(
                jax.nn.log_softmax(logits), batch["labels"][:, None], axis=1
            )[:, 0]
            total = jnp.sum(nll * batch["weights"]) / jnp.sum(batch["weights"])
            if penalty is not None:
                total += penalty(values[:-2])
            return total, state

        def call(
            values: list,
            state: list,
            optimizer_state: list,
            batches: dict,
            steps: Any,
            done: Any,
            total: Any,
            peak: Any,
            penalty: QuadraticPenalty | None,
        ) -> tuple[list, list, list, Any]:
            def step(i: Any, carry: tuple) -> tuple:
                values, state, optimizer_state, _ = carry
                batch = jax.tree.map(lambda x: x[i], batches)
                (value, state), gradients = jax.value_and_grad(loss, has_aux=True)(
                    values, state, batch, penalty
                )
                optimizer_state = list(optimizer_state)
                optimizer_state[rate] = peak * schedule(done + i, total, warmup, kind)
                values, optimizer_state = optimizer.stateless_apply(
                    optimizer_state, gradients, values
                )
                return list(values), list(state), list(optimizer_state), value

            # A loop of a length known only when it runs: the last call of a bucket is
            # shorter, and must not be another program.
            start = (values, state, optimizer_state, jnp.float32(0))
            return jax.lax.fori_loop(0, steps, step, start)

        return call

    def _optimizer(self, classes: int) -> LayerwiseOptimizer:
        if classes not in self._optimizers:
            settings = self.settings
            inner = (
                keras.optimizers.AdamW(1.0, weight_decay=settings.weight_decay)
                if settings.optimizer == "adamw"
                else keras.optimizers.Adam(1.0)
            )
            head = keras.layers.Dense(classes, name="head")
            head.build((None, self.encoder.width))
            optimizer = LayerwiseOptimizer(inner, self.groups)
            optimizer.build(
                self.encoder.model.trainable_variables + head.trainable_variables
            )
            self._optimizers[classes] = optimizer
        return self._optimizers[classes]

    def _optimizer_state(self, classes: int, distribution: Distribution) -> list:
        """Fresh moments, and the multipliers of the distribution."""
        optimizer = self._optimizer(classes)
        optimizer.multipliers = distribution.multipliers
        return _copy([v.value for v in optimizer.variables])

    def _initial_state(self, seed: int) -> list[np.ndarray]:
        rng = _rng(seed, _STATE, 0)
        variables = self.encoder.model.non_trainable_variables
        return [
            rng.integers(0, 2**32, value.shape, dtype=np.uint32)
            if "seed_generator" in variable.path
            else value
            for variable, value in zip(variables, self.encoder.state, strict=True)
        ]

    def _curve_sample(self, task: TaskData) -> Encoded:
        data = task.validation
        count = min(self.settings.curve_examples, len(data))
        return take(data, stratified(data.labels, count, _rng(0, _CURVE, 0)))


def schedule(step: Any, total: Any, warmup: float, kind: str) -> Any:
    """Returns the factor of the learning rate at a step, in [0, 1].

    With w = warmup * total: (step + 1) / w while step < w, then 1 for `constant` or
    (1 + cos(pi (step - w) / (total - w))) / 2 for `cosine` (arXiv 1608.03983,
    equation 5, without restarts).

    Args:
        step: Steps done, from 0.
        total: Steps in all.
        warmup: Share of the steps in which the rate rises.
        kind: `"cosine"` or `"constant"`.
    """
    rise = warmup * total
    fall = (step - rise) / jnp.maximum(total - rise, 1)
    after = 0.5 * (1 + jnp.cos(jnp.pi * fall)) if kind == "cosine" else 1.0
    return jnp.where(
        step < rise, jnp.minimum((step + 1) / jnp.maximum(rise, 1), 1), after
    )


def _rng(seed: int, purpose: int, task: int) -> np.random.Generator:
    return np.random.default_rng([seed, purpose, task])


def _budgeted(steps: int, budget: float) -> int:
    return max(1, round(budget * steps))


def _copy(values: Sequence[Any]) -> list:
    # A copy, since the programs take over the memory of what they are given.
    return [jnp.array(value, copy=True) for value in values]


def _accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(np.argmax(logits, axis=1) == labels))
