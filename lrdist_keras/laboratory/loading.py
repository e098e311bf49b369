"""What a configuration needs loaded before anything is trained."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lrdist_keras.array_cache import cache_errors
from lrdist_keras.config import ArmSettings, Configuration, SequenceSettings
from lrdist_keras.data.batches import Encoded
from lrdist_keras.data.findings import stop_at_errors
from lrdist_keras.data.local_files import check_is_file
from lrdist_keras.data.shifts import (
    LabelShares,
    Part,
    label_table,
)
from lrdist_keras.data.splits import Split, Task
from lrdist_keras.data.tokenizer import Tokenizer, encode, load_tokenizer
from lrdist_keras.errors import InputError
from lrdist_keras.laboratory.cluster_cache import cached_cluster_shift
from lrdist_keras.laboratory.given import with_given
from lrdist_keras.laboratory.task_data import (
    check_domain,
    check_texts,
    divide,
    encode_tasks,
    halves,
    load_texts,
    print_warnings,
    token_counts,
)
from lrdist_keras.models.encoder import (
    Encoder,
    find_preset,
    load_encoder,
    scheme_of,
)
from lrdist_keras.models.layer_features import FeatureReader
from lrdist_keras.models.platforms import settled
from lrdist_keras.models.pooler import load_pooled
from lrdist_keras.models.precision import resolve_here
from lrdist_keras.printable import printable
from lrdist_keras.training.compiler import keep_programs
from lrdist_keras.training.mlm_fisher import (
    PretrainingFisher,
    cached_pretraining_fisher,
)
from lrdist_keras.training.penalties import Weights
from lrdist_keras.training.run import TaskData
from lrdist_keras.training.strategies.base import Strategy
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
                check_domain(sequence, self.texts)
            return replace(
                self,
                tasks={name: self.tasks[name] for name in sequence.tasks},
                texts={name: self.texts[name] for name in sequence.tasks},
            )
        (task,) = sequence.tasks
        data, texts = divide(
            self.tasks[task],
            self.texts[task],
            self._parts(sequence),
            f"The sequence '{printable(sequence.name)}'",
        )
        return replace(self, tasks=data, texts=texts)

    @property
    def given(self) -> dict[str, str]:
        """Digests of the models that have learned a task already, by its name."""
        return {
            name: task.given.digest
            for name, task in self.tasks.items()
            if task.given is not None
        }

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
        if sequence.shift == "length":
            counts = token_counts(self.configuration, task, texts, self.tokenizer)
            return halves(self.configuration, counts)
        return cached_cluster_shift(
            FeatureReader(self.trainer.encoder, self.configuration.training.max_length),
            task.train,
            task.validation,
            sequence.clusters or 2,
            _CLUSTER_SEED,
            self.configuration.data.cache,
            "cluster_on_validation" in self.configuration.compat,
        )


def resolved(configuration: Configuration) -> Configuration:
    """Returns the configuration with what it leaves to this machine and its platform.

    Folders and fingerprints are of this one: runs of two precisions do not mix.
    """
    precision = resolve_here(configuration.model.precision)
    model = configuration.model.model_copy(update={"precision": precision})
    training = settled(configuration.training)
    return configuration.model_copy(update={"model": model, "training": training})


def load(configuration: Configuration, names: Collection[str]) -> Loaded:
    """Loads the encoder and these tasks, and prints what may be wrong with their data.

    Raises:
        ValueError: If an input breaks a rule, or the data must be mended; the message
            names all that is wrong with the data at once.
        OSError: If an input is missing.
    """
    preset = find_preset(configuration.model)
    with cache_errors(configuration.data.cache):
        keep_programs(configuration.data.cache)
    texts = load_texts(configuration, names)
    findings = check_texts(configuration, texts)
    stop_at_errors(findings)
    print_warnings(findings)
    training = configuration.training
    model = configuration.model
    load_one = load_pooled if model.pooler else load_encoder
    encoder = load_one(preset, model.dropout, resolve_here(model.precision))
    scheme = scheme_of(encoder, model)
    tokenizer = load_tokenizer(preset, encoder.rows("token"))
    if (most := encoder.max_length) is not None and training.max_length > most:
        raise InputError(
            f"training.max_length must be at most the {most} positions of the model. "
            f"Received: {training.max_length}"
        )
    tasks = encode_tasks(configuration, texts, tokenizer)
    for name, task in tasks.items():
        _check_segments(name, encoder, task.train, task.validation)
    trainer = SequentialTrainer(encoder, training, scheme, configuration.compat)
    tasks = with_given(configuration, tasks, texts, encoder, tokenizer)
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
    """Names the arm in the errors of what it asks for.

    Raises:
        InputError: The same, with the name of the arm.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"Arm '{printable(arm.name)}': {error}") from error


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
        print(f"{printable(arm.name)}: {found}", file=sys.stderr, flush=True)
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
    path, name = Path(configuration.data.dir) / file, printable(arm.name)
    check_is_file(path, f"Arm '{name}', `raw_text`")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"Arm '{name}': `raw_text` must name a text file in UTF-8, relative to "
            f"data.dir. Received: '{printable(path)}' ({error})"
        ) from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise InputError(
            f"Arm '{name}': a Fisher needs texts, and `raw_text` '{printable(path)}' "
            "has none."
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
