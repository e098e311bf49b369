"""The tasks of a configuration: loaded, checked, and encoded for training."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from lrdist_keras._storage import digest
from lrdist_keras.config import Configuration, SequenceSettings
from lrdist_keras.data.batches import take
from lrdist_keras.data.checks import check_tasks
from lrdist_keras.data.findings import Finding
from lrdist_keras.data.sampling import (
    class_sizes,
    search_slice,
    shortage,
    stratified,
)
from lrdist_keras.data.shifts import Part, check_parts, length_shift
from lrdist_keras.data.splits import Split, Task
from lrdist_keras.data.tasks import as_bytes_literals, load_task
from lrdist_keras.data.tokenizer import Tokenizer, encode, uncut_lengths
from lrdist_keras.errors import InputError
from lrdist_keras.models.trained import trained_class_names
from lrdist_keras.printable import printable
from lrdist_keras.settings import TaskSettings
from lrdist_keras.training.run import TaskData

_MOST_ROWS = 5  # that a warning before training names


def load_texts(configuration: Configuration, names: Collection[str]) -> dict[str, Task]:
    """Loads the texts and labels of these tasks.

    Raises:
        ValueError: If sources break rules; the message names all of them.
        OSError: If something is missing.
    """
    texts: dict[str, Task] = {}
    errors: list[InputError] = []
    for settings in configuration.tasks:
        if settings.name in names:
            try:
                named = with_class_names(settings)
                texts[settings.name] = load_task(named, configuration.data)
            except InputError as error:
                errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise InputError(
            f"{len(errors)} tasks cannot be loaded. "
            + " ".join(f"({i}) {error}" for i, error in enumerate(errors, start=1))
        )
    return texts


def with_class_names(settings: TaskSettings) -> TaskSettings:
    """Returns settings that name the classes of a task without a training file.

    They are those of the model that has learned it.

    Raises:
        InputError: If neither the settings nor the model say what they are.
    """
    if settings.source != "files" or settings.train or settings.class_names:
        return settings
    names = trained_class_names(settings.trained or "", settings.name)
    if names is None:
        raise InputError(
            f"Task '{printable(settings.name)}': without `train` the classes must be "
            "said, and the model of `trained` does not name them; list them in "
            "`class_names`, in the order of the model's outputs."
        )
    return settings.model_copy(update={"class_names": list(names)})


def check_texts(
    configuration: Configuration, texts: Mapping[str, Task]
) -> list[Finding]:
    """Finds what is wrong with loaded tasks and with the subsets trained on."""
    # Of a task that is only ever divided the number is that of each part.
    whole = {
        name
        for sequence in configuration.sequences
        if sequence.shift in ("task", "domain")
        for name in sequence.tasks
    }
    examples = {
        task.name: task.train_examples
        for task in configuration.tasks
        if task.name in whole
    }
    sequences = [s.tasks for s in configuration.sequences if texts.keys() >= {*s.tasks}]
    return check_tasks(texts, sequences, examples)


def print_warnings(findings: Sequence[Finding]) -> None:
    """Prints the warnings among the findings on stderr, each in one line."""
    warnings = [found for found in findings if found.level == "warning"]
    for found in warnings:
        print(f"lrdist: warning: {found.text(_MOST_ROWS)}", file=sys.stderr)
    if any(len(rows.numbers) > _MOST_ROWS for f in warnings for rows in f.rows):
        print("lrdist: `lrdist check CONFIG --all` lists every row.", file=sys.stderr)


def encode_tasks(
    configuration: Configuration, texts: Mapping[str, Task], tokenizer: Tokenizer
) -> dict[str, TaskData]:
    """Encodes tasks, or takes their token ids from the cache.

    Raises:
        OSError: If the cache cannot be written.
    """
    training = configuration.training
    tasks = {}
    for name, task in texts.items():
        settings = configuration.task(name)
        train, validation = (
            encode(
                seen(task.splits[split], configuration),
                tokenizer,
                training.max_length,
                configuration.data.cache,
                f"{name}, {split}",
            )
            for split in ("train", "validation")
        )
        tasks[name] = TaskData(
            name=name,
            train=train,
            validation=validation,
            classes=len(task.class_names),
            train_examples=settings.train_examples,
            epochs=settings.epochs or training.epochs,
        )
    return tasks


def token_counts(
    configuration: Configuration, task: TaskData, texts: Task, tokenizer: Tokenizer
) -> dict[str, np.ndarray]:
    """Returns the numbers of tokens of a task's texts without any limit, by split."""
    encoded = {"train": task.train, "validation": task.validation}
    return {
        split: uncut_lengths(
            seen(texts.splits[split], configuration),
            data,
            tokenizer,
            configuration.training.max_length,
        )
        for split, data in encoded.items()
    }


def halves(
    configuration: Configuration, lengths: Mapping[str, np.ndarray]
) -> list[Part]:
    """Divides a task by the length of its texts, see `length_shift`.

    Args:
        configuration: Which says whether the authors' halving is reproduced.
        lengths: Numbers of tokens by split, see `token_counts`.
    """
    random_halving = "random_length_halving" in configuration.compat
    return length_shift(lengths["train"], lengths["validation"], random_halving)


def divide(
    task: TaskData, texts: Task, parts: Sequence[Part], what: str
) -> tuple[dict[str, TaskData], dict[str, Task]]:
    """Returns the parts of a task as tasks, called `sst2 (short)` and the like.

    Args:
        task: The task.
        texts: Its texts.
        parts: Its parts.
        what: How errors call the sequence.

    Raises:
        ValueError: If a part cannot be trained or evaluated.
    """
    labels = task.train.labels, task.validation.labels
    check_parts(parts, *labels, task.train_examples, what)
    data, of_parts = {}, {}
    for part in parts:
        name = f"{task.name} ({part.name})"
        data[name] = replace(
            task,
            name=name,
            train=take(task.train, part.train),
            validation=take(task.validation, part.validation),
        )
        splits = {
            "train": texts.splits["train"].take(part.train),
            "validation": texts.splits["validation"].take(part.validation),
        }
        of_parts[name] = replace(texts, name=name, splits=splits)
    return data, of_parts


def check_domain(sequence: SequenceSettings, texts: Mapping[str, Task]) -> None:
    """Makes sure that the tasks of a domain shift have the same classes.

    Raises:
        ValueError: If they do not.
    """
    first, *others = sequence.tasks
    wanted = texts[first].class_names
    for name in others:
        if (found := texts[name].class_names) != wanted:
            raise InputError(
                f"The sequence '{printable(sequence.name)}': with shift = 'domain' all "
                "tasks must have the same classes in the same order; set `class_names` "
                f"where they only are called otherwise. '{printable(first)}' has "
                f"{list(wanted)}. Received for '{printable(name)}': {list(found)}"
            )


def with_search_slices(
    configuration: Configuration,
    tasks: Mapping[str, TaskData],
    texts: Mapping[str, Task],
) -> list[TaskData]:
    """Returns tasks with a slice of their training examples in place of validation.

    Rewards of a search are taken on it, and nothing is trained on it. A model that has
    learned a task already may have seen all its training examples: of such a task it is
    a half of the validation examples, see `validation_half`.

    Args:
        configuration: The search.
        tasks: What it trains one after the other, by name.
        texts: The texts of the same.

    Raises:
        ValueError: If a slice, or what it leaves, is too small; the message names all.
    """
    sliced, problems = [], []
    for name, task in tasks.items():
        if task.given is not None:
            sliced.append(validation_half(task, 0))
            continue
        train = texts[name].splits["train"]
        rng = np.random.default_rng(0)
        count = configuration.search.slice_examples
        rest, chosen = search_slice(train, count, rng)
        if problem := _slice_problem(task, train.labels, rest, chosen):
            problems.append(f"Task '{printable(name)}': {problem}")
        sliced.append(
            replace(
                task, train=take(task.train, rest), validation=take(task.train, chosen)
            )
        )
    if problems:
        raise InputError("; ".join(problems))
    return sliced


def validation_half(task: TaskData, half: int) -> TaskData:
    """Returns a task with a half of its validation examples, stratified and fixed.

    Args:
        task: The task.
        half: 0 for what a search takes its rewards on, 1 for the others, which reports
            are of.
    """
    labels = task.validation.labels
    first = stratified(labels, len(labels) // 2, np.random.default_rng(0))
    rest = np.setdiff1d(np.arange(len(labels)), first)
    return replace(task, validation=take(task.validation, rest if half else first))


def examples_digest(task: TaskData) -> str:
    """Returns a SHA-256 of a task's validation examples, with their labels."""
    return digest(task.validation.digest, np.asarray(task.validation.labels))


def _slice_problem(
    task: TaskData, labels: np.ndarray, rest: np.ndarray, chosen: np.ndarray
) -> str | None:
    rule = "must have at least 2 examples, of at least two classes"
    if lack := shortage(np.bincount(labels[chosen])):
        return (
            f"the slice of a search, a fifth of the {len(labels):,} training examples "
            f"at most, {rule}; add training examples, or raise search.slice_examples. "
            f"Received: {lack}"
        )
    if lack := shortage(np.bincount(labels[rest])):
        return (
            f"what the slice of a search leaves of the {len(labels):,} training "
            f"examples {rule}; add some, or lower search.slice_examples. "
            f"Received: {lack}"
        )
    wanted = task.train_examples
    if wanted is None:
        return None
    if wanted > len(rest):
        return (
            f"`train_examples` must be at most the {len(rest):,} that the slice of the "
            f"search leaves. Received: {wanted}"
        )
    lack = shortage(class_sizes(labels[rest], wanted))
    return lack and f"`train_examples` {rule}; raise it. Received: {lack}"


def seen(split: Split, configuration: Configuration) -> Split:
    """Returns a split as the model sees it."""
    if "bytes_literal_texts" in configuration.compat:
        return as_bytes_literals(split)
    return split
