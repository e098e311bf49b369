"""What is measured of a run beside its accuracy matrix, for the laboratory's tables."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lrdist_keras.config import MeasureSettings
from lrdist_keras.data.batches import Encoded, take
from lrdist_keras.data.sampling import stratified
from lrdist_keras.laboratory import metrics
from lrdist_keras.laboratory.drift import linear_cka, probe_accuracy, weight_drift
from lrdist_keras.models.layer_features import FeatureReader
from lrdist_keras.training.run import Run, TaskData, accuracy_of, training_subset
from lrdist_keras.training.strategies.base import Strategy
from lrdist_keras.training.trainer import SequentialTrainer

_NOTHING = MeasureSettings(
    forward_transfer=False, probe=False, similarity=False, drift=False
)


def of_evaluations(
    run: Run,
    tasks: Sequence[TaskData],
    sources: Mapping[str, str],
    strategy: Strategy,
) -> dict[str, Any]:
    """Returns what follows from the evaluations of a run, as its record holds it.

    `average_accuracy` and `learning_accuracy`; `backward_transfer` and, of each earlier
    task, `task_forgetting`, but not for joint and single, which train no sequence; and
    of each task `task_metrics` and `calibration_error`, `after` its own training and
    `final`.

    Args:
        run: The run.
        tasks: Its tasks.
        sources: Where each task comes from, by name, such as `glue/cola`.
        strategy: What it was trained with.
    """
    last = len(tasks) - 1
    record: dict[str, Any] = {
        "average_accuracy": metrics.average_accuracy(run.accuracy),
        "learning_accuracy": metrics.learning_accuracy(run.accuracy),
    }
    if last and strategy.trains_a_sequence:
        record["backward_transfer"] = metrics.backward_transfer(run.accuracy)
        record["task_forgetting"] = metrics.task_forgetting(run.accuracy).tolist()
    moments = {
        "after": [run.logits[j, j] for j in range(last + 1)],
        "final": [run.logits[last, j] for j in range(last + 1)],
    }
    record["task_metrics"] = {
        moment: [
            metrics.task_metrics(sources[task.name], found, task.validation.labels)
            for task, found in zip(tasks, logits, strict=True)
        ]
        for moment, logits in moments.items()
    }
    record["calibration_error"] = {
        moment: [
            metrics.calibration_error(found, task.validation.labels)
            for task, found in zip(tasks, logits, strict=True)
        ]
        for moment, logits in moments.items()
    }
    return record


class Measures:
    """Measures runs; what is the same for several is read once.

    Args:
        trainer: What trains the runs.
        settings: What is measured.
    """

    def __init__(self, trainer: SequentialTrainer, settings: MeasureSettings) -> None:
        self.trainer = trainer
        self.settings = settings
        self.reader = FeatureReader(trainer.encoder, trainer.settings.max_length)
        self.paths = [v.path for v in trainer.encoder.model.trainable_variables]
        self._layers: dict[str, np.ndarray] = {}
        self._untrained: dict[tuple[str, int, int], float] = {}

    def begin(
        self, sequence: str, tasks: Sequence[TaskData], strategy: Strategy, seed: int
    ) -> Measurement:
        """Returns what measures one run.

        Of one task, and of joint and single, nothing is measured: there is no later
        task that could have moved anything.
        """
        sequential = len(tasks) > 1 and strategy.trains_a_sequence
        settings = self.settings if sequential else _NOTHING
        if not len(tasks[0].train):  # a probe is fitted on training examples
            settings = settings.model_copy(update={"probe": False})
        return Measurement(self, settings, sequence, tasks, seed)

    def sample(self, task: TaskData) -> Encoded:
        """Returns the validation examples that features are compared on."""
        return _subset(task.validation, self.settings.examples)

    def pretrained_layers(self, sequence: str, task: TaskData) -> np.ndarray:
        """Returns what each layer of the pretrained model makes of the sample."""
        if sequence not in self._layers:
            weights = self.trainer.encoder.weights
            found = self.reader.layers(weights, self.sample(task))
            self._layers[sequence] = found
        return self._layers[sequence]

    def untrained_accuracy(
        self, sequence: str, seed: int, i: int, task: TaskData, head: list
    ) -> float:
        """Returns the accuracy of a new head on the pretrained model, of all arms."""
        key = (sequence, seed, i)
        if key not in self._untrained:
            weights = self.trainer.encoder.weights
            self._untrained[key] = self.accuracy(task, weights, head)
        return self._untrained[key]

    def accuracy(self, task: TaskData, weights: list, head: list) -> float:
        """Returns the accuracy of a head on the sample."""
        sample = self.sample(task)
        logits = self.trainer.evaluate(sample, weights, head)
        return accuracy_of(logits, sample.labels)


class Measurement:
    """The measures of one run, whose `Observer` must be given its `after_task`.

    Args:
        measures: What is shared with other runs.
        settings: What is measured.
        sequence: Name of the sequence.
        tasks: Its tasks.
        seed: Seed of the run.
    """

    def __init__(
        self,
        measures: Measures,
        settings: MeasureSettings,
        sequence: str,
        tasks: Sequence[TaskData],
        seed: int,
    ) -> None:
        self.measures = measures
        self.settings = settings
        self.sequence = sequence
        self.tasks = tasks
        self.seed = seed
        self.seconds = 0.0
        self._features: dict[tuple[int, int], np.ndarray] = {}
        self._zero_shot: list[tuple[float, float]] = []
        self._drift: list[dict[str, float]] = []
        self._first: list[np.ndarray] = []
        self._first_layers = np.array([])
        self._record: dict[str, Any] = {}

    def after_task(self, i: int, weights: list, heads: list) -> None:
        """Reads what is needed of the model as it is after task i."""
        start = time.perf_counter()
        settings, measures, last = self.settings, self.measures, len(self.tasks) - 1
        if settings.forward_transfer and i < last:
            task, head = self.tasks[i + 1], heads[i + 1]
            self._zero_shot.append(
                (
                    measures.accuracy(task, weights, head),
                    measures.untrained_accuracy(
                        self.sequence, self.seed, i + 1, task, head
                    ),
                )
            )
        if settings.probe:
            for j in range(last) if i == last else [i]:
                found = measures.reader.last(weights, self._probed(j))
                self._features[i, j] = found
        if settings.similarity:
            self._compare_layers(i, weights)
        if settings.drift:
            self._compare_weights(i, weights)
        self.seconds += time.perf_counter() - start

    def record(self, run: Run) -> dict[str, Any]:
        """Returns the measures as the record of the run holds them.

        What is not measured has no key.

        `forward_transfer`, from the `zero_shot` accuracies of each task but the first,
        with its new head, `after_previous` and on the `pretrained` model.

        `probe`: accuracy of a head refitted for each earlier task, on the features
        `after` its own training and on the `final` ones; their means are `probe_after`
        and `probe_p_o`.

        `similarity`: linear CKA per layer, lowest first, on the first task's sample,
        of the final model with the `pretrained` and with that `after_first`.

        `drift`: per group the relative distance to the `pretrained` weights after each
        task, and of the final weights to those `after_first`.

        `measuring_seconds`: what all this took.
        """
        start = time.perf_counter()
        record = self._record
        if self._zero_shot:
            after, before = np.array(self._zero_shot).T
            matrix = run.accuracy.copy()
            matrix[np.arange(len(after)), np.arange(1, len(matrix))] = after
            initial = np.concatenate([[np.nan], before])
            record["forward_transfer"] = metrics.forward_transfer(matrix, initial)
            record["zero_shot"] = {
                "after_previous": after.tolist(),
                "pretrained": before.tolist(),
            }
        if self.settings.probe:
            last = len(self.tasks) - 1
            probe = {
                "after": [self._probe(run, j, j) for j in range(last)],
                "final": [self._probe(run, last, j) for j in range(last)],
            }
            record["probe"] = probe
            record["probe_after"] = float(np.mean(probe["after"]))
            record["probe_p_o"] = float(np.mean(probe["final"]))
        self.seconds += time.perf_counter() - start
        return record | {"measuring_seconds": round(self.seconds, 3)}

    def _probed(self, j: int) -> Encoded:
        """Returns the examples that the head of task j is refitted on."""
        train = training_subset(self.tasks[j], self.seed, j)
        return _subset(train, self.settings.probe_examples)

    def _probe(self, run: Run, i: int, j: int) -> float:
        """Returns the accuracy on task j after task i.

        NaN of too few examples, and of features that are not finite.
        """
        labels = self._probed(j).labels
        if np.sum(np.bincount(labels) >= 2) < 2:
            return float("nan")
        validation = self.tasks[j].validation.labels
        return probe_accuracy(
            self._features[i, j], labels, run.features[i, j], validation
        )

    def _compare_layers(self, i: int, weights: list) -> None:
        measures, task, last = self.measures, self.tasks[0], len(self.tasks) - 1
        if i not in (0, last):
            return
        layers = measures.reader.layers(weights, measures.sample(task))
        if i == 0:
            self._first_layers = layers
            return
        pretrained = measures.pretrained_layers(self.sequence, task)
        self._record["similarity"] = {
            name: [linear_cka(*pair) for pair in zip(before, layers, strict=True)]
            for name, before in (
                ("pretrained", pretrained),
                ("after_first", self._first_layers),
            )
        }

    def _compare_weights(self, i: int, weights: list) -> None:
        groups, paths = self.measures.trainer.groups, self.measures.paths
        # Later steps take over the memory of these weights.
        now = [np.asarray(w) for w in weights]
        pretrained = self.measures.trainer.encoder.weights
        self._drift.append(weight_drift(pretrained, now, paths, groups))
        if i == 0:
            self._first = [w.copy() for w in now]
        if i == len(self.tasks) - 1:
            self._record["drift"] = {
                "pretrained": self._drift,
                "after_first": weight_drift(self._first, now, paths, groups),
            }


def _subset(data: Encoded, count: int) -> Encoded:
    if len(data) <= count:
        return data
    return take(data, stratified(data.labels, count, np.random.default_rng(0)))
