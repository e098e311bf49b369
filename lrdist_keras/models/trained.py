"""Models that have learned a task already, read from what others have saved."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lrdist_keras import _tensorflow
from lrdist_keras.data.preset_files import PresetFiles, check_folder
from lrdist_keras.errors import InputError, MissingFile
from lrdist_keras.models.classifier import check_same_model, load_model, taken_apart
from lrdist_keras.models.encoder import Encoder, encoder_of, load_backbone
from lrdist_keras.models.saved import FILE, read_saved
from lrdist_keras.printable import listed, printable

_Kind = Literal["keras", "saved", "hub", "hugging_face"]
_SEQUENCE = "ForSequenceClassification"
_UNNAMED = re.compile(r"LABEL_\d+")
# Hugging Face's names of the pooler and of the head of a sequence classifier.
_POOLERS = {
    "BertBackbone": "bert.pooler.dense",
    "RobertaBackbone": "classifier.dense",
    "XLMRobertaBackbone": "classifier.dense",
    "DistilBertBackbone": "pre_classifier",
}
_HEADS = {
    "BertBackbone": "classifier",
    "RobertaBackbone": "classifier.out_proj",
    "XLMRobertaBackbone": "classifier.out_proj",
    "DistilBertBackbone": "classifier",
    "GPT2Backbone": "score",
}


@dataclass(frozen=True)
class TrainedModel:
    """A model that has learned a task.

    Args:
        weights: In the order of `Encoder.weights`.
        head: Kernel, shape [width, classes], and bias, shape [classes].
        class_names: Its classes in the order of the head's columns; None where nothing
            says what they are.
        tokenizer: The folder that holds its tokenizer, None where none does.
    """

    weights: list[np.ndarray]
    head: list[np.ndarray]
    class_names: tuple[str, ...] | None
    tokenizer: str | None


def load_trained(path: str, task: str, encoder: Encoder) -> TrainedModel:
    """Loads the model that has learned the first task.

    Args:
        path: A folder that `lrdist train` has written, a `.keras` file of a classifier,
            or a folder with a text classifier: a preset of KerasHub, or a sequence
            classifier of Hugging Face with safetensors.
        task: Name of the task.
        encoder: The encoder that it must fit.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        InputError: If it is none of these, is damaged, has no head, or is of another
            backbone or vocabulary.
    """
    what, place = _what(path, task), Path(path)
    kind = _kind_of(place, what)
    if kind == "keras":
        found = _from_keras(place, encoder, f"{what} the file")
    elif kind == "saved":
        found = _from_saved(place, task, encoder, what)
    elif kind == "hub":
        found = _from_hub(place, encoder, f"{what} the preset")
    else:
        found = _from_hugging_face(place, encoder, what)
    if not all(np.isfinite(array).all() for array in [*found.weights, *found.head]):
        raise InputError(
            f"{what} its weights must be finite; it diverged in training, or it is "
            "damaged."
        )
    return found


def trained_class_names(path: str, task: str) -> tuple[str, ...] | None:
    """Returns what a trained model calls the classes of a task; None if it does not.

    No weights are read.

    Args:
        path: See `load_trained`.
        task: Name of the task.

    Raises:
        InputError: If what the model says of itself is damaged.
    """
    what, place = _what(path, task), Path(path)
    kind = _kind_of(place, what)
    if kind == "saved":
        tasks = read_saved(place).tasks
        named = [tuple(t.class_names) for t in tasks if t.name == task]
        return named[0] if named else None
    if kind != "hugging_face":
        return None
    config = PresetFiles(str(place)).json("config.json") or {}
    labels = config.get("id2label")
    return _class_names(config, len(labels) if isinstance(labels, dict) else 0, what)


def _what(path: str, task: str) -> str:
    return f"Task '{printable(task)}', trained = '{printable(path)}':"


def _kind_of(
    place: Path, what: str
) -> Literal["keras", "saved", "hub", "hugging_face"]:
    """Returns what a trained model lies in.

    Raises:
        FileNotFoundError: If it is not there.
        InputError: If it is nothing that a model can be loaded from.
    """
    if not place.exists():
        raise MissingFile(f"{what} there is no such file or folder.")
    if not place.is_dir():
        if place.suffix != ".keras" or not place.is_file():
            raise InputError(
                f"{what} the name of a file must end in `.keras`. Received: "
                f"'{place.suffix}'"
            )
        return "keras"
    kinds: dict[str, _Kind] = {
        FILE: "saved",
        "task.json": "hub",
        "config.json": "hugging_face",
    }
    for name, kind in kinds.items():
        if (place / name).is_file():
            return kind
    there = listed(sorted(x.name for x in place.iterdir()))
    raise InputError(
        f"{what} must be a folder of `lrdist train`, a `.keras` file, a preset of a "
        "KerasHub classifier, or a sequence classifier of Hugging Face. Received a "
        f"folder with: {there or 'nothing'}"
    )


def _from_keras(path: Path, encoder: Encoder, what: str) -> TrainedModel:
    model = load_model(path, what)
    return TrainedModel(*taken_apart(model, encoder, what), None, None)


def _from_saved(folder: Path, task: str, encoder: Encoder, what: str) -> TrainedModel:
    saved = read_saved(folder)
    names = [entry.name for entry in saved.tasks]
    if task not in names:
        raise InputError(
            f"{what} the model must have learned a task of this name. It has: "
            f"{listed(map(printable, names))}"
        )
    entry = saved.tasks[names.index(task)]
    path = folder / entry.file
    model = load_model(path, f"{what} '{entry.file}'")
    weights, head = taken_apart(model, encoder, f"{what} '{entry.file}'")
    return TrainedModel(weights, head, tuple(entry.class_names), str(folder))


def _from_hub(folder: Path, encoder: Encoder, what: str) -> TrainedModel:
    hub = _tensorflow.keras_hub()
    check_folder(folder)
    try:
        model = hub.models.TextClassifier.from_preset(str(folder), preprocessor=None)
    except Exception as error:  # hubs raise errors of their own, of many classes
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"{what} must be one of a KerasHub text classifier. Received: {reason[0]}"
        ) from error
    return TrainedModel(*taken_apart(model, encoder, what), None, str(folder))


def _from_hugging_face(folder: Path, encoder: Encoder, what: str) -> TrainedModel:
    check_folder(folder)
    files = PresetFiles(str(folder))
    config = files.json("config.json") or {}
    kinds = config.get("architectures")
    kind = next(iter(kinds if isinstance(kinds, list) else []), None)
    if not isinstance(kind, str) or not kind.endswith(_SEQUENCE):
        raise InputError(
            f"{what} must be a sequence classifier with its head, whose config.json "
            f"has an architecture that ends in {_SEQUENCE}. Received: {kind!r}"
        )
    problem = config.get("problem_type") or "single_label_classification"
    if problem != "single_label_classification":
        raise InputError(
            f"{what} must give each text one class. Received: problem_type {problem!r}"
        )
    backbone = load_backbone(str(folder), 0.0)
    family = type(backbone).__name__
    if family != encoder.family or family not in _HEADS:
        raise InputError(
            f"{what} is of another backbone than model.preset, {encoder.family}; take "
            f"the preset that it was trained from. Received: {family} ({kind})"
        )
    found = encoder_of(backbone, str(folder), "float32")
    paths = [v.path for v in found.model.trainable_variables]
    values = dict(zip(paths, found.weights, strict=True))
    tensors = _Tensors(files, what)
    if family in _POOLERS:
        values |= zip(
            ("pooled_dense/kernel", "pooled_dense/bias"),
            tensors.dense(_POOLERS[family]),
            strict=True,
        )
    wanted = [v.path for v in encoder.model.trainable_variables]
    shapes = dict(zip(wanted, map(np.shape, encoder.weights), strict=True))
    check_same_model(shapes, {p: v.shape for p, v in values.items()}, what)
    head = tensors.dense(_HEADS[family])
    if head[0].shape[0] != encoder.width or head[0].shape[1] < 2:
        raise InputError(
            f"{what} must have a head of {encoder.width} inputs and at least two "
            f"classes. Received: {head[0].shape[0]} inputs, {head[0].shape[1]} classes"
        )
    names = _class_names(config, head[0].shape[1], what)
    return TrainedModel([values[p] for p in wanted], head, names, str(folder))


def _class_names(
    config: Mapping[str, Any], classes: int, what: str
) -> tuple[str, ...] | None:
    """Returns what `id2label` calls the classes; None where it only numbers them."""
    labels = config.get("id2label")
    if labels is None:
        return None
    wanted = [str(i) for i in range(classes)]
    if not isinstance(labels, dict) or sorted(labels) != sorted(wanted):
        raise InputError(
            f"{what} `id2label` in config.json must name the head's {classes} classes. "
            f"Received: {printable(str(labels))[:200]}"
        )
    names = [str(labels[i]) for i in wanted]
    return None if all(map(_UNNAMED.fullmatch, names)) else tuple(names)


class _Tensors:
    """Tensors of a folder in safetensors, by name."""

    def __init__(self, files: PresetFiles, what: str) -> None:
        self.files = files
        self.what = what
        self.names = files.tensor_names()
        if not self.names:
            raise InputError(
                f"{what} must hold its weights as safetensors; convert them with "
                "`save_pretrained` of the library transformers."
            )

    def dense(self, name: str) -> list[np.ndarray]:
        """Returns kernel, [inputs, outputs], and bias; 0 where it has none."""
        if f"{name}.weight" not in self.names:
            raise InputError(
                f"{self.what} must have a head and, where its family has one, a "
                f"pooler; the tensor `{name}.weight` is missing."
            )
        kernel = np.ascontiguousarray(self._read(f"{name}.weight").T)
        if f"{name}.bias" not in self.names:
            return [kernel, np.zeros(kernel.shape[1], np.float32)]
        return [kernel, self._read(f"{name}.bias")]

    def _read(self, name: str) -> np.ndarray:
        from safetensors import SafetensorError, safe_open

        index = self.files.json("model.safetensors.index.json") or {}
        file = index.get("weight_map", {}).get(name, "model.safetensors")
        path = self.files.path(file)
        try:
            with safe_open(str(path), "flax") as tensors:
                return np.asarray(tensors.get_tensor(name), np.float32)
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{self.what} '{file}' is damaged; get it again. Received: {error}"
            ) from None
