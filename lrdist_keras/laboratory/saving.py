"""The model of a run as a folder: a classifier a task, tokenizer, model card."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lrdist_keras import _tensorflow, machine
from lrdist_keras._storage import umask
from lrdist_keras.config import ArmSettings, SequenceSettings
from lrdist_keras.errors import InputError
from lrdist_keras.laboratory.inputs import Input
from lrdist_keras.laboratory.loading import Loaded
from lrdist_keras.laboratory.model_card import card
from lrdist_keras.models.classifier import hub_classifier, keras_classifier
from lrdist_keras.models.encoder import Encoder, find_preset, load_encoder
from lrdist_keras.models.pooler import PooledEncoder, load_pooled
from lrdist_keras.models.saved import FILE, SavedModel, SavedTask, read_saved
from lrdist_keras.models.text_classifier import load_classifier
from lrdist_keras.training.run import Run, TaskData
from lrdist_keras.training.strategies.base import Strategy

_CHECKED = 64  # validation examples that a saved classifier must answer as the run did
_TOLERANCE = 1e-3  # of logits, of one model computed in two ways


@dataclass
class KeptModel:
    """The model of a run on its way, for `Observer.after_task`.

    Args:
        tasks: Number of tasks.
        strategy: What it is trained with.
        models: Weights and head by number of the task, as the run leaves them.
    """

    tasks: int
    strategy: Strategy
    models: dict[int, tuple[list[np.ndarray], list[np.ndarray]]] = field(
        default_factory=dict
    )

    def after_task(self, i: int, weights: list, heads: list) -> None:
        """Copies what the run has made: of a sequence its end, else each task's own."""
        is_last = i == self.tasks - 1
        if self.strategy.trains_a_sequence and not is_last:
            return
        whole = [np.array(w) for w in weights]
        for j in range(self.tasks) if is_last else [i]:
            if j not in self.models:
                self.models[j] = whole, [np.array(array) for array in heads[j]]


@dataclass(frozen=True)
class Trained:
    """A run that is to be saved.

    Args:
        loaded: What it was trained with.
        sequence: The sequence.
        arm: The arm.
        seed: The seed.
        tasks: Its tasks.
        inputs: What its numbers depend on.
        run: What it gave.
        models: Weights and head by number of the task.
    """

    loaded: Loaded
    sequence: SequenceSettings
    arm: ArmSettings
    seed: int
    tasks: Sequence[TaskData]
    inputs: dict[str, Input]
    run: Run
    models: dict[int, tuple[list[np.ndarray], list[np.ndarray]]]


@dataclass(frozen=True)
class ModelKeeper:
    """Keeps models of a comparison's runs.

    Args:
        folder: Where, as folders like those of `lrdist train`.
        which: `all`, or of each sequence the `best`: of the runs that learned the one
            with the highest reward, p_s + p_o on validation examples.
    """

    folder: Path
    which: Literal["best", "all"]

    def __call__(self, trained: Trained, record: Mapping[str, Any]) -> None:
        """Saves the model of a run that has ended, if it is to be kept.

        Raises:
            OSError: If it cannot be written.
        """
        settings = trained.loaded.configuration
        number = settings.sequences.index(trained.sequence)
        if record["diverged"] or (self.which == "best" and not record["learned"]):
            return
        if self.which == "all":
            arm = settings.arms.index(trained.arm)
            folder = self.folder / f"{number}-{arm}-{trained.seed}"
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was not noted
            save_model(trained, folder)
            return
        folder = self.folder / f"best-{number}"
        if folder.is_dir() and _reward(folder) >= record["reward"]:
            return
        with tempfile.TemporaryDirectory(dir=_made(self.folder), prefix=".") as place:
            save_model(trained, Path(place) / "model")
            shutil.rmtree(folder, ignore_errors=True)
            (Path(place) / "model").rename(folder)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _reward(folder: Path) -> float:
    """Returns the reward of a saved model, see `metrics.reward`."""
    return sum(task.accuracy for task in read_saved(folder).tasks)


def check_new(folder: Path) -> None:
    """Checks that a folder can be written: it is not there, or empty.

    Raises:
        InputError: If it is not.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"--out must name a folder that is new or empty, since nothing is written "
            f"over. Received: '{folder}'"
        )


def save_model(trained: Trained, folder: Path) -> None:
    """Writes the model of a run, whole or not at all.

    Each classifier is loaded again and compared with what the run computed.

    Raises:
        InputError: If the run diverged, or the folder is not empty.
        OSError: If it cannot be written.
    """
    if trained.run.diverged:
        raise InputError(
            "The run diverged: its weights are not finite, so there is no model to "
            "save; lower the learning rate or the strength."
        )
    check_new(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _whole(folder) as place:
        _write(trained, place)


@contextmanager
def _whole(folder: Path) -> Any:
    """Yields a folder that takes its name once all is in it."""
    place = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield place
        place.chmod(0o777 & ~umask())
        if folder.is_dir():
            folder.rmdir()
        place.rename(folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _write(trained: Trained, place: Path) -> None:
    loaded = trained.loaded
    encoder, preset = _in_float32(loaded), find_preset(loaded.configuration.model)
    _save_tokenizer(loaded, preset, place)
    saved = _description(trained, encoder)
    (place / FILE).write_text(saved.model_dump_json(indent=2) + "\n", encoding="utf-8")
    text = card(saved, trained.run, trained.tasks)
    (place / "README.md").write_text(text, encoding="utf-8")
    for j, entry in enumerate(saved.tasks):
        weights, head = trained.models[j]
        keras_classifier(encoder, weights, head).save(place / entry.file)
        if entry.preset is not None and isinstance(encoder, PooledEncoder):
            task = hub_classifier(preset, encoder, weights, head)
            task.save_to_preset(str(place / entry.preset))
        _check(trained, place, j)


def _in_float32(loaded: Loaded) -> Encoder:
    """Returns the encoder that the saved files compute with."""
    settings = loaded.configuration.model
    load = load_pooled if settings.pooler else load_encoder
    return load(find_preset(settings), settings.dropout)


def _save_tokenizer(loaded: Loaded, preset: str, place: Path) -> None:
    if (content := loaded.tokenizer.content) is not None:
        (place / "tokenizer.json").write_text(content, encoding="utf-8")
        return
    tokenizer = _tensorflow.keras_hub().models.Tokenizer.from_preset(preset)
    tokenizer.save_to_preset(str(place))


def _description(trained: Trained, encoder: Encoder) -> SavedModel:
    loaded, run, last = trained.loaded, trained.run, len(trained.tasks) - 1
    settings, tasks = loaded.configuration, []
    pooled = isinstance(encoder, PooledEncoder)
    for j, task in enumerate(trained.tasks):
        texts = loaded.texts[task.name]
        name = f"{j + 1}-{_slug(task.name)}"
        tasks.append(
            SavedTask(
                name=task.name,
                file=f"{name}.keras",
                preset=name if pooled else None,
                class_names=list(texts.class_names),
                columns=len(texts.splits["validation"].texts),
                source=texts.source,
                train_examples=None if task.given is not None else task.size,
                validation_examples=len(task.validation),
                accuracy_after=float(run.accuracy[j, j]),
                accuracy=float(run.accuracy[last, j]),
            )
        )
    return SavedModel(
        tasks=tasks,
        max_length=settings.training.max_length,
        preset=settings.model.preset,
        pooler=pooled,
        precision=loaded.trainer.encoder.precision,
        arm=trained.arm.name,
        strategy=trained.arm.strategy.name,
        sequence=trained.sequence.name,
        seed=trained.seed,
        rates=[
            None if task.given is not None else _rates(trained, j)
            for j, task in enumerate(trained.tasks)
        ],
        versions=machine.versions(),
        inputs={
            n: {"source": i.source, "sha256": i.sha256}
            for n, i in trained.inputs.items()
        },
        configuration=json.loads(settings.model_dump_json()),
    )


def _rates(trained: Trained, j: int) -> dict[str, float]:
    """Returns the learning rate of each group in a task, 0 of those not trained."""
    shared = j == 0 and trained.tasks[0].shared_rates is not None
    frozen = () if shared else trained.arm.strategy.frozen
    return dict(trained.run.rates[j].rates) | dict.fromkeys(frozen, 0.0)


def _check(trained: Trained, place: Path, j: int) -> None:
    """Compares what the saved classifier says with what the run computed."""
    if trained.loaded.trainer.encoder.precision != "float32":
        return
    task, last = trained.tasks[j], len(trained.tasks) - 1
    split = trained.loaded.texts[task.name].splits["validation"]
    rows = np.arange(min(_CHECKED, len(task.validation)))
    if len(split) != len(task.validation):  # a half that no search has used
        return
    if "bytes_literal_texts" in trained.loaded.configuration.compat:
        return
    texts: Any = list(zip(*split.take(rows).texts, strict=True))
    classifier = load_classifier(place, task.name)
    found = classifier.logits(texts)
    expected = trained.run.logits[last, j][rows]
    worst = float(np.abs(found - expected).max())
    if not worst <= _TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise RuntimeError(
            f"The saved classifier of '{task.name}' gives other logits than the run, "
            f"by {worst:g}; nothing is saved."
        )


def _slug(name: str) -> str:
    """Returns a name that any file system takes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "task"
