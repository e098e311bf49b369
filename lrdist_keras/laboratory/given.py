"""The first task as a model that has learned it, checked against data and preset."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lrdist_keras.config import Configuration
from lrdist_keras.data.class_checks import alike
from lrdist_keras.data.splits import Task
from lrdist_keras.data.tokenizer import Tokenizer, load_tokenizer
from lrdist_keras.errors import InputError
from lrdist_keras.models.encoder import Encoder
from lrdist_keras.models.trained import TrainedModel, load_trained
from lrdist_keras.printable import listed, printable
from lrdist_keras.training.run import GivenModel, TaskData

_TEXTS = 200  # that two tokenizers are compared on


def with_given(
    configuration: Configuration,
    tasks: Mapping[str, TaskData],
    texts: Mapping[str, Task],
    encoder: Encoder,
    tokenizer: Tokenizer,
) -> dict[str, TaskData]:
    """Returns the tasks, those of `trained` with the model that has learned them.

    Args:
        configuration: Where the models lie.
        tasks: Encoded tasks by name.
        texts: The same as texts.
        encoder: The encoder of model.preset, which they must fit.
        tokenizer: Its tokenizer, which must be theirs.

    Raises:
        FileNotFoundError: If a model is missing.
        InputError: If one does not fit its data, the encoder or the tokenizer.
    """
    found = dict(tasks)
    for name, data in tasks.items():
        if (path := configuration.task(name).trained) is None:
            continue
        model = load_trained(path, name, encoder)
        what = f"Task '{printable(name)}', trained = '{printable(path)}'"
        _check_tokenizer(model, texts[name], tokenizer, what)
        kernel, bias = _in_order(model, texts[name].class_names, what)
        given = GivenModel(path, model.weights, [kernel, bias])
        found[name] = replace(data, given=given)
    return found


def _in_order(model: TrainedModel, classes: tuple[str, ...], what: str) -> list:
    """Returns the head with its columns in the order of the data's classes."""
    kernel, bias = model.head
    names = model.class_names
    if len(bias) != len(classes):
        its = "" if names is None else f": {listed(map(repr, names))}"
        raise InputError(
            f"{what}: the head has {len(bias)} classes{its}. The data has "
            f"{len(classes)}: {listed(map(repr, classes))}; they must be the same."
        )
    if names is None:
        print(
            f"lrdist: {what} does not say what its classes are; they are taken to be, "
            f"in this order: {listed(map(repr, classes))}",
            file=sys.stderr,
        )
        return [kernel, bias]
    if names == classes:
        return [kernel, bias]
    if sorted(names) != sorted(classes):
        hint = ""
        if sorted(map(alike, names)) == sorted(map(alike, classes)):
            hint = " They differ in case or spaces only; set `class_names`."
        raise InputError(
            f"{what}: its classes are {listed(map(repr, names))}, those of the data "
            f"{listed(map(repr, classes))}; they must be the same.{hint}"
        )
    order = [names.index(name) for name in classes]
    return [kernel[:, order], bias[order]]


def _check_tokenizer(
    model: TrainedModel, task: Task, tokenizer: Tokenizer, what: str
) -> None:
    """Compares the ids that both tokenizers give the first validation examples."""
    if model.tokenizer is None or not _has_tokenizer(Path(model.tokenizer)):
        print(
            f"lrdist: {what} has no tokenizer; that it was trained with that of "
            "model.preset cannot be checked.",
            file=sys.stderr,
        )
        return
    its = load_tokenizer(model.tokenizer)
    texts = tuple(column[:_TEXTS] for column in task.splits["validation"].texts)
    pairs = zip(its.encode(texts, 128), tokenizer.encode(texts, 128), strict=True)
    differing = [
        i for i, (a, b) in enumerate(pairs) if list(a[0]) != list(b[0]) or a[1] != b[1]
    ]
    if differing:
        example = texts[0][differing[0]][:80]
        raise InputError(
            f"{what}: its vocabulary is not that of model.preset, whose tokenizer "
            f"gives other ids to {len(differing)} of {len(texts[0])} texts; take the "
            f"preset that it was trained from. The first: {example!r}"
        )


def _has_tokenizer(folder: Path) -> bool:
    names = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model")
    return any((folder / name).is_file() for name in names)
