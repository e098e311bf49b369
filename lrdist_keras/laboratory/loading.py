"""What a configuration needs loaded before anything is trained."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lrdist_keras._storage import cache_errors
from lrdist_keras.config import ArmSettings, Configuration, SequenceSettings
from lrdist_keras.data.batches import Encoded, take
from lrdist_keras.data.shifts import (
    LabelShares,
    Part,
    check_parts,
    label_table,
    length_shift,
)
from lrdist_keras.data.splits import Split, Task
from lrdist_keras.data.tasks import as_bytes_literals, load_task
from lrdist_keras.data.tokenizer import Tokenizer, encode, load_tokenizer, uncut_lengths
from lrdist_keras.errors import InputError
from lrdist_keras.laboratory.cluster_cache import cached_cluster_shift
from lrdist_keras.models.bfloat16 import resolve_here
from lrdist_keras.models.encoder import Encoder, find_preset, load_encoder
from lrdist_keras.models.layer_features import FeatureReader
from lrdist_keras.training.compiler import keep_programs
from lrdist_keras.training.mlm_fisher import (
    PretrainingFisher,
    cached_pretraining_fisher,
)
from lrdist_keras.training.penalties import Weights
from lrdist_keras.training.run import TaskData
from lrdist_keras.training.strategies.base import Strategy
from lrdist_keras.training.strategies.elastic import Overshoot
from lrdist_keras.training.trainer import SequentialTrainer

_CLUSTER_SEED = 0  # one for all runs, which compare arms on the same parts


@dataclass(frozen=True)
class Loaded:
    """The model and the data of a configuration, checked.

    Args:
        configuration: What was loaded.
        trainer: Trains sequences on the encoder.
        tokenizer: The checkpoint's tokenizer.
        tasks: Encoded tasks by name.
        texts: Texts and labels of the same tasks, as their sources have them.
    """

    configuration: Configuration
    trainer: SequentialTrainer
    tokenizer: Tokenizer
    tasks: dict[str, TaskData]
    texts: dict[str, Task]

    @property
    def train(self) -> dict[str, Split]:
        """Texts and labels that each task is trained on, by name."""
        return {name: task.splits["train"] for name, task in self.texts.items()}

    def shifted(self, sequence: SequenceSettings) -> Loaded:
        """Returns what a sequence trains one after the other, in its order.

        For the shifts `task` and `domain` that is its tasks; for `length` and `cluster`
        the parts of its task, called `sst2 (short)` or `sst2 (cluster 1)`.

        Raises:
            ValueError: If the tasks do not fit the shift, or a part cannot be trained.
            InputError: If the cache cannot be read or written.
        """
        if sequence.shift in ("task", "domain"):
            if sequence.shift == "domain":
                self._check_classes(sequence)
            return replace(
                self,
                tasks={name: self.tasks[name] for name in sequence.tasks},
                texts={name: self.texts[name] for name in sequence.tasks},
            )
        (task,) = sequence.tasks
        parts = self._parts(sequence)
        check_parts(
            parts,
            self.tasks[task].train.labels,
            self.tasks[task].train_examples,
            f"The sequence '{sequence.name}'",
        )
        data, texts = {}, {}
        for part in parts:
            name = f"{task} ({part.name})"
            data[name] = replace(
                self.tasks[task],
                name=name,
                train=take(self.tasks[task].train, part.train),
                validation=take(self.tasks[task].validation, part.validation),
            )
            splits = {
                "train": self.texts[task].splits["train"].take(part.train),
                "validation": self.texts[task]
                .splits["validation"]
                .take(part.validation),
            }
            texts[name] = replace(self.texts[task], name=name, splits=splits)
        return replace(self, tasks=data, texts=texts)

    def label_table(self) -> list[LabelShares]:
        """Returns the label distributions, and how far from that of the first task."""
        tasks = list(self.tasks.values())
        return label_table(
            [task.name for task in tasks],
            [task.train.labels for task in tasks],
            [task.validation.labels for task in tasks],
            [self.texts[task.name].class_names for task in tasks],
        )

    def _parts(self, sequence: SequenceSettings) -> list[Part]:
        (name,) = sequence.tasks
        task, texts = self.tasks[name], self.texts[name]
        compat = self.configuration.compat
        max_length = self.configuration.training.max_length
        if sequence.shift == "length":
            train, validation = (
                uncut_lengths(
                    _seen(texts.splits[split], self.configuration),
                    data,
                    self.tokenizer,
                    max_length,
                )
                for split, data in (
                    ("train", task.train),
                    ("validation", task.validation),
                )
            )
            return length_shift(train, validation, "random_length_halving" in compat)
        return cached_cluster_shift(
            FeatureReader(self.trainer.encoder, max_length),
            task.train,
            task.validation,
            sequence.clusters or 2,
            _CLUSTER_SEED,
            self.configuration.data.cache,
            "cluster_on_validation" in compat,
        )

    def _check_classes(self, sequence: SequenceSettings) -> None:
        first, *others = sequence.tasks
        wanted = self.texts[first].class_names
        for name in others:
            if (found := self.texts[name].class_names) != wanted:
                raise InputError(
                    f"The sequence '{sequence.name}': with shift = 'domain' all tasks "
                    "must have the same classes in the same order; set `class_names` "
                    f"where they only are called otherwise. '{first}' has "
                    f"{list(wanted)}. Received for '{name}': {list(found)}"
                )


def resolved(configuration: Configuration) -> Configuration:
    """Returns the configuration with the precision that it means on this machine.

    Folders and fingerprints are of this one: runs of two precisions do not mix.
    """
    precision = resolve_here(configuration.model.precision)
    model = configuration.model.model_copy(update={"precision": precision})
    return configuration.model_copy(update={"model": model})


def load(configuration: Configuration, names: Collection[str]) -> Loaded:
    """Loads the encoder and these tasks.

    Raises:
        ValueError: If an input breaks a rule.
        OSError: If an input is missing.
    """
    preset = find_preset(configuration.model)
    with cache_errors(configuration.data.cache):
        keep_programs(configuration.data.cache)
    loaded = {
        settings.name: (settings, load_task(settings, configuration.data))
        for settings in configuration.tasks
        if settings.name in names
    }
    for settings, task in loaded.values():
        count, available = settings.train_examples, len(task.splits["train"])
        if count is not None and count > available:
            raise InputError(
                f"Task '{settings.name}': `train_examples` must be at most the "
                f"{available} examples there are. Received: {count}"
            )
    training = configuration.training
    model = configuration.model
    encoder = load_encoder(preset, model.dropout, resolve_here(model.precision))
    tokenizer = load_tokenizer(preset, encoder.rows("token"))
    if (most := encoder.max_length) is not None and training.max_length > most:
        raise InputError(
            f"training.max_length must be at most the {most} positions of the model. "
            f"Received: {training.max_length}"
        )
    tasks = {}
    for name, (settings, task) in loaded.items():
        train, validation = (
            encode(
                _seen(task.splits[split], configuration),
                tokenizer,
                training.max_length,
                configuration.data.cache,
                f"{name}, {split}",
            )
            for split in ("train", "validation")
        )
        _check_segments(name, encoder, train, validation)
        tasks[name] = TaskData(
            name=name,
            train=train,
            validation=validation,
            classes=len(task.class_names),
            train_examples=settings.train_examples,
            epochs=settings.epochs or training.epochs,
        )
    trainer = SequentialTrainer(
        encoder,
        training,
        configuration.model.encoder_groups,
        configuration.model.rounding,
        configuration.compat,
    )
    texts = {name: task for name, (_, task) in loaded.items()}
    return Loaded(configuration, trainer, tokenizer, tasks, texts)


def _check_segments(name: str, encoder: Encoder, *splits: Encoded) -> None:
    """Checks that a model of one segment is not shown pairs of texts."""
    pairs = any(bool((split.second < split.lengths).any()) for split in splits)
    if pairs and encoder.rows("segment") == 1:
        raise InputError(
            f"Task '{name}': pairs of texts need a model with two segments; join them "
            "in one column, or take another model.preset. Received: one row of segment "
            "embeddings"
        )


@contextmanager
def errors_named(arm: ArmSettings) -> Iterator[None]:
    """Names the arm where its rates and its strength do not go together.

    Raises:
        ValueError: If they do not.
    """
    try:
        yield
    except Overshoot as error:
        raise InputError(f"Arm '{arm.name}': {error}") from error


def arm_strategy(
    configuration: Configuration, arm: ArmSettings, loaded: Loaded
) -> Strategy:
    """Returns the strategy of an arm with all that it needs from files.

    Raises:
        ValueError: If its text cannot be read, or there is none.
        InputError: If the cache cannot be read or written.
    """

    def text_fisher(file: str, examples: int) -> Weights:
        found = _text_fisher(configuration, arm, loaded, file, examples)
        print(f"{arm.name}: {found}", file=sys.stderr, flush=True)
        return found.fisher

    return arm.strategy.prepared(text_fisher)


def _text_fisher(
    configuration: Configuration,
    arm: ArmSettings,
    loaded: Loaded,
    file: str,
    examples: int,
) -> PretrainingFisher:
    """Estimates the Fisher of masked language modelling on a text file.

    Raises:
        ValueError: If the text cannot be read, or there is none.
        InputError: If the cache cannot be read or written.
    """
    path = Path(configuration.data.dir) / file
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"Arm '{arm.name}': `raw_text` must name a text file in UTF-8, relative to "
            f"data.dir. Received: '{path}' ({error})"
        ) from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise InputError(
            f"Arm '{arm.name}': a Fisher needs texts, and `raw_text` '{path}' has none."
        )
    tokenizer = loaded.tokenizer
    length = configuration.training.max_length
    encoded = encode(
        Split((texts,), np.zeros(len(texts), np.int32)),
        tokenizer,
        length,
        configuration.data.cache,
        path.name,
    )
    return cached_pretraining_fisher(
        loaded.trainer.encoder,
        encoded,
        tokenizer.mask_id,
        length,
        examples,
        configuration.data.cache,
    )


def _seen(split: Split, configuration: Configuration) -> Split:
    """Returns a split as the model sees it."""
    if "bytes_literal_texts" in configuration.compat:
        return as_bytes_literals(split)
    return split
