"""What a configuration needs loaded before anything is trained."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax

from lrdist_keras.config import Configuration
from lrdist_keras.encoding import encode, load_tokenizer
from lrdist_keras.models import find_preset, load_encoder
from lrdist_keras.tasks import Split, load_task
from lrdist_keras.training import SequentialTrainer, TaskData

_PACKAGES = (
    "lrdist-keras",
    "keras",
    "jax",
    "jaxlib",
    "keras-hub",
    "numpy",
    "tokenizers",
    "tensorflow-datasets",
    "keras-tuner",
    "scikit-learn",
    "scipy",
)


@dataclass(frozen=True)
class Loaded:
    """The model and the data of a configuration, checked.

    Args:
        trainer: Trains sequences on the encoder.
        tasks: Encoded tasks by name.
        train: Texts and labels that each task is trained on, by name.
    """

    trainer: SequentialTrainer
    tasks: dict[str, TaskData]
    train: dict[str, Split]


def load(configuration: Configuration, names: Collection[str]) -> Loaded:
    """Loads the encoder and these tasks.

    Raises:
        ValueError: If an input breaks a rule.
        OSError: If an input is missing.
    """
    preset = find_preset(configuration.model)
    loaded = {
        settings.name: (settings, load_task(settings, configuration.data))
        for settings in configuration.tasks
        if settings.name in names
    }
    for settings, task in loaded.values():
        count, available = settings.train_examples, len(task.splits["train"])
        if count is not None and count > available:
            raise ValueError(
                f"Task '{settings.name}': `train_examples` must be at most the "
                f"{available} examples there are. Received: {count}"
            )
    training = configuration.training
    encoder = load_encoder(preset, configuration.model.dropout)
    tokenizer = load_tokenizer(preset)
    if (most := encoder.max_length) is not None and training.max_length > most:
        raise ValueError(
            f"training.max_length must be at most the {most} positions of the model. "
            f"Received: {training.max_length}"
        )
    tasks = {}
    for name, (settings, task) in loaded.items():
        train, validation = (
            encode(
                task.splits[split],
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
    trainer = SequentialTrainer(
        encoder,
        training,
        configuration.model.encoder_groups,
        configuration.model.rounding,
    )
    splits = {name: task.splits["train"] for name, (_, task) in loaded.items()}
    return Loaded(trainer, tasks, splits)


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Returns what the results were computed on."""
    return {
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "devices": [str(device) for device in jax.devices()],
    }
