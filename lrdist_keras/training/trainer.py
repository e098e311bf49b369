"""The compiled sequential loop: one task after the other, on one set of programs."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrdist_keras.config import ArmSettings, Fault, TrainingSettings
from lrdist_keras.data.batches import (
    Encoded,
    Steps,
    evaluation_batches,
    evaluation_steps,
    filled,
    take,
    training_steps,
)
from lrdist_keras.data.sampling import majority_rate, stratified
from lrdist_keras.distribution import Distribution, flat
from lrdist_keras.groups import Scheme, partition, path_groups
from lrdist_keras.models.encoder import Encoder, new_head
from lrdist_keras.training.moments import CarriedMoments
from lrdist_keras.training.penalties import (
    AnnealedPull,
    QuadraticPenalty,
    Weights,
    l2_sp,
)
from lrdist_keras.training.programs import Programs, split
from lrdist_keras.training.strategies import (
    Distillation,
    Terms,
    TrainingSet,
    average,
    averaging_steps,
    best_alpha,
    memory,
    merged,
    mixed,
    new_adapters,
    with_lora,
)
from lrdist_keras.training.token_rows import (
    ALL_ROWS,
    UsedRows,
    room,
    used_rows,
    used_tokens,
)

_FISHER_CHUNK = 4  # per-example gradients are as large as the model, each
_ALPHA_EXAMPLES = 200  # of each task, to choose an average by

# What a random draw is for; with the seed and the task it makes the generator.
_SUBSET, _HEAD, _ORDER, _STATE, _CURVE, _MEMORY, _ALPHA, _ADAPTERS = range(8)

AfterTask = Callable[[int, list, list], None]


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
        features: What the heads saw there, float32, shape [examples, width], of each
            task after its own training and after the last one.
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
    seconds: float
    training_seconds: float
    compile_seconds: float
    examples_per_second: float
    compilations: int


@dataclass(frozen=True)
class _Stage:
    """One training of a task: what its steps depend on.

    Args:
        kind: Of the step, see `lrdist_keras.training.programs.Programs.training`.
        train: Its examples.
        active: The tasks whose heads are trained, in the order of `TrainingSet.head`.
        rates: Learning rates.
        terms: What it obeys beside the labels.
        averages: Whether the weights are averaged with those at its beginning.
    """

    kind: str
    train: TrainingSet
    active: tuple[int, ...]
    rates: Distribution
    terms: Terms = Terms()
    averages: bool = False


@dataclass
class _Course:
    """A run on its way: what it was given, and the model as it is now."""

    tasks: Sequence[TaskData]
    distribution: Distribution
    arm: ArmSettings
    seed: int
    budget: float
    on_steps: Callable[[int], None]
    pretrained: Weights
    subsets: list[Encoded]
    memories: list[Encoded]
    samples: list[Encoded]
    weights: Weights
    heads: list[Weights]
    state: list
    rows: int | None
    penalty: QuadraticPenalty | None
    moments: CarriedMoments | None


@dataclass
class _Clock:
    """Where the time of a run goes."""

    start: float = field(default_factory=time.perf_counter)
    training: float = 0.0
    trained: int = 0


class SequentialTrainer:
    """Trains sequences of tasks on one encoder, with programs that serve all runs.

    Args:
        encoder: The pretrained encoder.
        settings: How each task is trained.
        encoder_groups: Number of encoder groups, see `lrdist_keras.groups.Scheme`.
        rounding: `"floor"` or `"ceil"`, see `lrdist_keras.groups.Scheme`.
        compat: Faults of the authors' code to reproduce, see
            `lrdist_keras.config.Configuration`; those of training count here.
        beside: Another trainer of this process. Both together hold as many programs as
            one would.
    """

    def __init__(
        self,
        encoder: Encoder,
        settings: TrainingSettings,
        encoder_groups: int = 8,
        rounding: Any = "floor",
        compat: Collection[Fault] = (),
        beside: SequentialTrainer | None = None,
    ) -> None:
        self.encoder = encoder
        self.settings = settings
        self.compat = compat
        paths = [v.path for v in encoder.model.trainable_variables]
        self.scheme: Scheme
        self.scheme, self.groups = path_groups(
            [*paths, "head/kernel", "head/bias"], encoder_groups, rounding
        )
        self.programs: Programs = Programs(
            encoder, settings, self.groups, compat, beside.programs if beside else None
        )
        self._with_lora: dict[int, SequentialTrainer] = {}
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

    def steps(
        self,
        tasks: Sequence[TaskData],
        budget: float = 1.0,
        arm: ArmSettings | None = None,
    ) -> int:
        """Returns the number of training steps of a sequence.

        Args:
            tasks: Its tasks.
            budget: See `run`.
            arm: Its strategy; plain if not given.
        """
        sizes = [task.train_examples or len(task.train) for task in tasks]
        strategy = arm.strategy if arm is not None else "plain"
        if strategy == "joint":
            return self._steps(sum(sizes), tasks[-1].epochs, budget)
        if arm is not None and arm.examples_per_class is not None:
            kept = [arm.examples_per_class * task.classes for task in tasks]
            sizes = [size + sum(kept[:i]) for i, size in enumerate(sizes)]
        once = sum(
            self._steps(size, task.epochs, budget)
            for task, size in zip(tasks, sizes, strict=True)
        )
        return 2 * once if strategy == "lp_ft" else once

    def run(
        self,
        tasks: Sequence[TaskData],
        distribution: Distribution,
        arm: ArmSettings,
        seed: int,
        on_steps: Callable[[int], None] = lambda steps: None,
        budget: float = 1.0,
        after_task: AfterTask = lambda i, weights, heads: None,
        pretraining_fisher: Weights | None = None,
    ) -> Run:
        """Trains the tasks one after the other and evaluates all so far after each.

        Two strategies know no sequence: `joint` trains once, on all tasks, and `single`
        trains each task alone, from the pretrained weights. Every row of their accuracy
        matrix holds what this gave, so that by definition nothing is forgotten.

        Args:
            tasks: At least one.
            distribution: Learning rates of the trainer's scheme.
            arm: Its strategy, with its settings.
            seed: What everything random follows from: subsets, heads, order, dropout,
                memories, adapters.
            on_steps: Called with the number of training steps just done.
            budget: Share of its steps, in (0, 1], that every task is trained for, with
                the schedule fitted to that.
            after_task: Called after each training with the index of its task, the
                weights in the order of `encoder.weights`, and kernel and bias of each
                task's head. Later steps take over the memory of these arrays: copy what
                is to be kept.
            pretraining_fisher: For `ewc_pretraining`: the Fisher of the pretrained
                weights, see `lrdist_keras.training.mlm_fisher`.

        Raises:
            ValueError: If the distribution is of another scheme, or if the model or the
                data do not allow the strategy.
        """
        if distribution.scheme != self.scheme:
            raise ValueError(
                f"The distribution is of the scheme {distribution.scheme}, the model "
                f"of {self.scheme}; resample it first."
            )
        given = (tasks, distribution, arm, seed, on_steps, budget)
        if arm.strategy != "lora":
            weights = self.encoder.weights
            return self._run(
                self._course(*given, weights, pretraining_fisher), after_task
            )
        rank = arm.rank or 1
        if rank not in self._with_lora:
            self._with_lora[rank] = SequentialTrainer(
                with_lora(self.encoder, rank),
                self.settings,
                self.scheme.encoder_groups,
                self.scheme.rounding,
                self.compat,
                beside=self,
            )
        inner = self._with_lora[rank]

        def after_merging(i: int, adapters: list, heads: list) -> None:
            after_task(i, merged(self.encoder, inner.encoder, adapters), heads)

        adapters = new_adapters(inner.encoder, _rng(seed, _ADAPTERS, 0))
        return inner._run(inner._course(*given, adapters), after_merging)

    def _course(
        self,
        tasks: Sequence[TaskData],
        distribution: Distribution,
        arm: ArmSettings,
        seed: int,
        on_steps: Callable[[int], None],
        budget: float,
        pretrained: Weights,
        pretraining_fisher: Weights | None = None,
    ) -> _Course:
        """Checks and draws all that a run begins with."""
        subsets = [training_subset(task, seed, i) for i, task in enumerate(tasks)]
        memories = []
        if arm.strategy == "replay":
            memories = [
                memory(
                    subsets[i],
                    task.classes,
                    arm.examples_per_class or 0,
                    _rng(seed, _MEMORY, i),
                    task.name,
                )
                for i, task in enumerate(tasks[:-1])
            ]
        if arm.strategy == "joint" and len({task.epochs for task in tasks}) > 1:
            raise ValueError(
                "The strategy joint mixes the examples of all tasks, so all need the "
                f"same `epochs`. Received: {[task.epochs for task in tasks]}"
            )
        if arm.strategy == "recadam":
            factor = distribution.reference_rate * (arm.strength or 0.0)
            if factor > 1:
                raise ValueError(
                    f"Arm '{arm.name}': largest learning rate x `strength` must be at "
                    "most 1, or the pull of recadam overshoots its anchor; lower one "
                    f"of them. Received: {factor:g}"
                )
        penalty = None
        if arm.strategy == "ewc_pretraining":
            if pretraining_fisher is None:
                raise ValueError(
                    "The strategy ewc_pretraining needs `pretraining_fisher`, see "
                    "lrdist_keras.training.mlm_fisher. Received: None"
                )
            penalty = QuadraticPenalty(
                _copy(pretraining_fisher), _copy(pretrained), np.float32(arm.strength)
            )
        elif arm.strategy == "l2_sp":
            penalty = l2_sp(
                pretrained, 2, arm.strength or 0.0, arm.head_strength or 0.0
            )
        return _Course(
            tasks=tasks,
            distribution=distribution,
            arm=arm,
            seed=seed,
            budget=budget,
            on_steps=on_steps,
            pretrained=pretrained,
            subsets=subsets,
            memories=memories,
            samples=[self._curve_sample(task) for task in tasks],
            weights=_copy(pretrained),
            heads=[
                _copy(new_head(task.classes, self.encoder.width, _rng(seed, _HEAD, i)))
                for i, task in enumerate(tasks)
            ],
            state=_copy(self._initial_state(seed)),
            rows=self._room(subsets),
            penalty=penalty,
            moments=self._new_moments(),
        )

    def _new_moments(self) -> CarriedMoments | None:
        return CarriedMoments() if "carry_moments" in self.compat else None

    def _run(self, course: _Course, after_task: AfterTask) -> Run:
        """The loop over the tasks."""
        try:
            return self._follow(course, after_task)
        except BaseException:
            # Or the process would not end before all of it is compiled.
            self.programs.cancel()
            raise

    def _follow(self, course: _Course, after_task: AfterTask) -> Run:
        self._clock = clock = _Clock()
        compiling, compilations = self.programs.seconds, self.programs.compilations
        tasks, strategy = course.tasks, course.arm.strategy
        count = len(tasks)
        accuracy = np.full((count, count), np.nan)
        logits: dict[tuple[int, int], np.ndarray] = {}
        features: dict[tuple[int, int], np.ndarray] = {}
        curves: dict[str, Curve] = {}
        for i, task in enumerate(tasks):
            if strategy == "joint" and i + 1 < count:
                continue
            if strategy == "single":
                course.weights = _copy(course.pretrained)
                course.moments = self._new_moments()
            before = _copy(course.weights) if strategy == "wise_ft" else []
            for stage in self._stages(course, i):
                curve = self._train(course, i, stage)
            if strategy == "wise_ft" and i:
                course.weights = self._averaged(course, i, before)
            after_task(i, course.weights, course.heads)
            for j, other in enumerate(tasks[: i + 1]):
                if strategy == "single" and j < i:
                    logits[i, j], seen = logits[j, j], features[j, j]
                else:
                    logits[i, j], seen = self._evaluate(
                        other.validation, course.weights, course.heads[j]
                    )
                if i in (j, count - 1):
                    features[i, j] = seen
                accuracy[i, j] = _accuracy(logits[i, j], other.validation.labels)
            if i and strategy not in ("joint", "single"):
                curves[task.name] = curve
            if strategy in ("ewc", "ewc_online") and i + 1 < count:
                course.penalty = self._consolidated(course, i)
        if strategy == "joint":
            for i in range(count - 1):
                accuracy[i, : i + 1] = accuracy[-1, : i + 1]
                logits |= {(i, j): logits[count - 1, j] for j in range(i + 1)}
        return Run(
            accuracy=accuracy,
            majority_rates=np.array(
                [majority_rate(t.validation.labels) for t in tasks]
            ),
            examples=np.array([len(t.validation) for t in tasks]),
            curves=curves,
            logits=logits,
            features=features,
            seconds=time.perf_counter() - clock.start,
            training_seconds=clock.training,
            compile_seconds=self.programs.seconds - compiling,
            examples_per_second=clock.trained / max(clock.training, 1e-9),
            compilations=self.programs.compilations - compilations,
        )

    def _stages(self, course: _Course, i: int) -> list[_Stage]:
        """Returns the trainings of task i, one after the other, by the strategy."""
        arm, rates, number = course.arm, course.distribution, np.float32
        plain = _Stage("plain", TrainingSet(course.subsets[i]), (i,), rates)
        so_far = tuple(range(i + 1))
        match arm.strategy:
            case "frozen":
                head = flat(rates.rates["head"], self.scheme)
                return [replace(plain, kind="probe", rates=head)]
            case "lp_ft":
                head = flat(arm.probe_rate or 0.0, self.scheme)
                return [replace(plain, kind="probe", rates=head), plain]
            case "l2_sp":
                return [replace(plain, kind="l2_sp", terms=Terms(course.penalty))]
            case "recadam":
                pull = AnnealedPull(
                    _copy(course.weights),
                    number(arm.strength),
                    number(arm.midpoint),
                    number(arm.steepness),
                )
                return [replace(plain, kind="recadam", terms=Terms(pull=pull))]
            case "replay" if i:
                parts = [*course.memories[:i], course.subsets[i]]
                return [_Stage("mixed", mixed(parts), so_far, rates)]
            case "joint":
                return [_Stage("mixed", mixed(course.subsets), so_far, rates)]
            case "lwf" if i:
                data = course.subsets[i]
                teacher = tuple(self._logits(data, course, j) for j in range(i))
                train = TrainingSet(data, teacher=teacher)
                distillation = Distillation(
                    number(arm.strength), number(arm.temperature)
                )
                terms = Terms(distillation=distillation)
                return [_Stage("lwf", train, so_far, rates, terms)]
            case "sfa" if i:
                return [replace(plain, averages=True)]
        if course.penalty is not None:
            return [replace(plain, kind="ewc", terms=Terms(course.penalty))]
        return [plain]

    def _room(self, parts: Sequence[Encoded]) -> int | None:
        """Returns the rows of the token embeddings that each of the parts needs."""
        if (where := self.encoder.token_embedding) is None:
            return None
        tokens = np.unique(np.concatenate([used_tokens(part) for part in parts]))
        return room(len(tokens), len(self.encoder.weights[where]))

    def _used_rows(self, data: Encoded, rows: int | None) -> UsedRows:
        """Returns the rows that examples use, filled up to `rows`; None is for all."""
        where = self.encoder.token_embedding
        if where is None or rows is None:
            return ALL_ROWS
        return used_rows(data, where, rows, len(self.encoder.weights[where]))

    def _moves_all(self, terms: Terms) -> bool:
        """Returns whether a training moves embeddings of tokens that do not occur."""
        return (
            self.settings.optimizer != "adam"
            or "carry_moments" in self.compat
            or terms.penalty is not None
            or terms.pull is not None
        )

    def _train(self, course: _Course, i: int, stage: _Stage) -> Curve:
        """Does one training, and puts the new weights, heads and state in their place.

        Returns:
            Accuracies on the earlier tasks meanwhile.
        """
        settings, train, task = self.settings, stage.train, course.tasks[i]
        count = len(course.weights)
        classes = tuple(course.tasks[j].classes for j in stage.active)
        total = self._steps(len(train), task.epochs, course.budget)
        earlier = [] if course.arm.strategy in ("joint", "single") else range(i)
        curve = Curve([], {course.tasks[j].name: [] for j in earlier})
        points = settings.curve_points if earlier else 0
        # The steps to stop at; the number of steps does not depend on the seed.
        samples = (
            {round(total * k / points) for k in range(points + 1)} if points else set()
        )
        averages = (
            averaging_steps(total, course.arm.period or 1.0)
            if stage.averages
            else set()
        )
        before = _copy(course.weights) if stage.averages else []
        rows = None if self._moves_all(stage.terms) else course.rows
        used = self._used_rows(train.encoded, rows)
        train = replace(train, encoded=used.narrowed(train.encoded))
        table = course.weights[used.position]
        weights = used.take(course.weights)

        def stop(done: int) -> None:
            nonlocal weights
            if done in averages:
                whole = used.put(table, weights)
                weights = used.take(average(before, whole, course.arm.alpha))
            if done in samples:
                course.weights = used.put(table, weights)
                curve.steps.append(done)
                for j in earlier:
                    sample = course.samples[j]
                    found = _accuracy(self._logits(sample, course, j), sample.labels)
                    curve.accuracy[course.tasks[j].name].append(found)

        optimizer_state = self.programs.optimizer_state(
            classes, rows, stage.rates.multipliers
        )
        terms = stage.terms
        if (moments := course.moments) is not None:
            places = self.programs.places(classes, rows)
            optimizer_state = moments.put(optimizer_state, places, stage.active)
            terms = terms._replace(head_steps=moments.head_steps(stage.active))
        shuffles = "no_shuffling" not in self.compat
        rng = _rng(course.seed, _ORDER, i) if shuffles else None
        epochs = (
            training_steps(
                train.encoded,
                settings.max_length,
                settings.batch_size,
                settings.steps_per_call,
                rng,
            )
            for _ in range(task.epochs)
        )

        def arguments(indices: np.ndarray, length: int) -> tuple:
            return (
                [*weights, *(w for j in stage.active for w in course.heads[j])],
                course.state,
                optimizer_state,
                train.arrays(filled(indices, settings.steps_per_call), length),
                np.int32(len(indices)),
                np.float32(done),
                np.float32(total),
                np.float32(stage.rates.reference_rate),
                terms,
            )

        done = 0
        first = next(epochs, [])
        nothing = np.zeros((0, settings.batch_size), int)
        # The batches of the other epochs are of the same lengths.
        for length in _lengths(first, total):
            given = arguments(nothing, length)
            self.programs.begin(stage.kind, classes, rows, given)
        for j in range(i + 1):
            self._begin_evaluation(course.tasks[j].validation, course, j)
        for j in earlier if samples else ():
            self._begin_evaluation(course.samples[j], course, j)
        for call in itertools.chain(first, itertools.chain.from_iterable(epochs)):
            batches = call.indices
            while len(batches) and done < total:
                stop(done)
                ends = [s - done for s in samples | averages if s > done]
                steps = min([len(batches), total - done, *ends])
                given = arguments(batches[:steps], call.length)
                program = self.programs.training(stage.kind, classes, rows, given)
                start = time.perf_counter()
                values, course.state, optimizer_state, loss = program(*given)
                jax.block_until_ready(loss)
                self._clock.training += time.perf_counter() - start
                self._clock.trained += int((batches[:steps] >= 0).sum())
                weights, heads = split(values, count)
                for j, head in zip(stage.active, heads, strict=True):
                    course.heads[j] = head
                done += steps
                batches = batches[steps:]
                course.on_steps(steps)
        stop(done)
        course.weights = used.put(table, weights)
        if moments is not None:
            heads_only = stage.kind == "probe"
            moments.keep(optimizer_state, places, stage.active, done, heads_only)
        return curve

    def evaluate(self, data: Encoded, weights: Weights, head: Weights) -> np.ndarray:
        """Returns the logits of a head on all examples, float32, [examples, classes].

        Args:
            data: The examples.
            weights: In the order of `encoder.weights`.
            head: Kernel and bias.
        """
        return self._evaluate(data, weights, head)[0]

    def _evaluate(
        self, data: Encoded, weights: Weights, head: Weights
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns logits, and the features, [examples, width], that they are of."""
        settings, classes = self.settings, len(head[1])
        logits = np.zeros((len(data), classes), np.float32)
        features = np.zeros((len(data), self.encoder.width), np.float32)
        for batch in evaluation_batches(
            data, settings.max_length, settings.evaluation_batch_size
        ):
            inputs = data.arrays(batch.indices, batch.length)
            found = self.programs.evaluate((classes,), [*weights, *head], inputs)
            real = batch.indices >= 0
            for array, part in zip((logits, features), found, strict=True):
                array[batch.indices[real]] = np.asarray(part)[real]
        return logits, features

    def _begin_evaluation(self, data: Encoded, course: _Course, j: int) -> None:
        """Begins to compile what an evaluation of task j on these examples needs."""
        head, settings = course.heads[j], self.settings
        longest, count = settings.max_length, settings.evaluation_batch_size
        nothing = np.full(count, -1)
        for length in _lengths(evaluation_steps(data, longest, count, 1)):
            values, inputs = [*course.weights, *head], data.arrays(nothing, length)
            given = (values, self.encoder.state, inputs)
            self.programs.begin("evaluate", (len(head[1]),), None, given)

    def _logits(self, data: Encoded, course: _Course, j: int) -> np.ndarray:
        return self.evaluate(data, course.weights, course.heads[j])

    def _averaged(self, course: _Course, i: int, before: Weights) -> Weights:
        """Returns the average of the weights before and after task i, for WiSE-FT."""
        after = course.weights
        if course.arm.alpha != "training":
            return average(before, after, course.arm.alpha)
        samples = []
        for j in range(i + 1):
            train = course.subsets[j]
            count = min(_ALPHA_EXAMPLES, len(train))
            rng = _rng(course.seed, _ALPHA, j)
            samples.append(take(train, stratified(train.labels, count, rng)))

        def score(alpha: float) -> float:
            course.weights = average(before, after, alpha)
            return sum(
                _accuracy(self._logits(sample, course, j), sample.labels)
                for j, sample in enumerate(samples)
            )

        return average(before, after, best_alpha(score))

    def _consolidated(self, course: _Course, i: int) -> QuadraticPenalty:
        """Returns the penalty of the tasks so far, with that of task i, for EWC."""
        fisher = self.fisher(course.subsets[i], course.weights, course.heads[i])
        strength = np.float32(course.arm.strength or 0.0)
        new = QuadraticPenalty(fisher, _copy(course.weights), strength)
        if course.penalty is None:
            return new
        if course.arm.strategy == "ewc":
            return course.penalty.plus(new)
        return course.penalty.followed_by(new, course.arm.fisher_decay or 0.0)

    def fisher(self, data: Encoded, weights: Weights, head: Weights) -> Weights:
        """Returns the diagonal Fisher of the weights, the mean over these examples.

        Args:
            data: The examples, whose labels count.
            weights: In the order of `encoder.weights`.
            head: Kernel and bias.

        Raises:
            ValueError: If there is no example.
        """
        if not len(data):
            raise ValueError(
                "A Fisher is a mean over examples and needs at least one. Received: a "
                "set without any"
            )
        rows = self._room([data])
        used = self._used_rows(data, rows)
        examples, held = used.narrowed(data), used.take(weights)
        values, classes = [*held, *head], (len(head[1]),)
        total = [jnp.zeros_like(w) for w in held]
        settings, count = self.settings, self.settings.steps_per_call
        calls = list(
            evaluation_steps(examples, settings.max_length, _FISHER_CHUNK, count)
        )
        nothing = np.full((count, _FISHER_CHUNK), -1)
        for length in _lengths(calls):
            inputs = examples.arrays(nothing, length)
            given = (total, values, inputs, np.int32(0), np.float32(0))
            self.programs.begin("fisher", classes, rows, given)
        for call in calls:
            inputs = examples.arrays(filled(call.indices, count), call.length)
            steps, scale = len(call.indices), 1 / len(data)
            total = self.programs.fisher(
                classes, rows, total, values, inputs, steps, scale
            )
        # Of a token that does not occur the gradient is 0.
        return used.put(jnp.zeros_like(weights[used.position]), total)

    def _steps(self, examples: int, epochs: int, budget: float) -> int:
        """Returns the steps of one training."""
        steps = epochs * -(-examples // self.settings.batch_size)
        return min(steps, max(1, round(budget * steps)))

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


def training_subset(task: TaskData, seed: int, i: int) -> Encoded:
    """Returns the examples that a run of this seed trains on, as its task number i."""
    if task.train_examples is None:
        return task.train
    labels = task.train.labels
    rng = _rng(seed, _SUBSET, i)
    return take(task.train, stratified(labels, task.train_examples, rng))


def _lengths(calls: Iterable[Steps], steps: float = math.inf) -> list[int]:
    """Returns the lengths of the first so many batches, in the order of their use."""
    found: dict[int, None] = {}
    for call in calls:
        if steps > 0:
            found[call.length] = None
        steps -= len(call.indices)
    return list(found)


def _rng(seed: int, purpose: int, task: int) -> np.random.Generator:
    return np.random.default_rng([seed, purpose, task])


def _copy(values: Sequence[Any]) -> list:
    # A copy, since the programs take over the memory of what they are given.
    return [jnp.array(value, copy=True) for value in values]


def _accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(np.argmax(logits, axis=1) == labels))
