"""A saved classifier that answers raw text."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lrdist_keras.data.batches import Encoded, buckets, evaluation_batches
from lrdist_keras.data.token_ids import Texts, Tokenizer, check_ids
from lrdist_keras.data.tokenizer import load_tokenizer
from lrdist_keras.errors import InputError
from lrdist_keras.models.classifier import load_model
from lrdist_keras.models.saved import SavedTask, read_saved
from lrdist_keras.printable import listed, printable

_BATCH = 16


@dataclass(frozen=True)
class TextClassifier:
    """The classifier of one task, with its tokenizer.

    Args:
        model: Keras model from token ids to logits.
        tokenizer: The tokenizer of its checkpoint.
        max_length: Tokens per example at most, special tokens included; of a pair the
            longer text is cut first.
        class_names: Names of the classes in the order of the logits.
        columns: Texts of an example, 1 or 2.
    """

    model: Any
    tokenizer: Tokenizer
    max_length: int
    class_names: tuple[str, ...]
    columns: int = 1

    def predict(self, texts: Sequence[str | tuple[str, str]]) -> list[str]:
        """Returns the name of each text's class.

        Args:
            texts: Texts, or pairs of texts where the task has pairs.

        Raises:
            InputError: If what is given is not that.
        """
        found = np.argmax(self.logits(texts), axis=1)
        return [self.class_names[i] for i in found]

    def logits(self, texts: Sequence[str | tuple[str, str]]) -> np.ndarray:
        """Returns the logits, float32, shape [texts, classes]. See `predict`.

        On JAX, products are computed in float32 on every platform.
        """
        data = self._encoded(texts)
        result = np.zeros((len(data), len(self.class_names)), np.float32)
        names = [tensor.name for tensor in self.model.inputs]
        with _float32_products():
            for batch in evaluation_batches(data, buckets(self.max_length), _BATCH):
                arrays = data.arrays(batch.indices, batch.length)
                inputs = {name: arrays[name] for name in names}
                found = self.model.predict_on_batch(inputs)
                real = batch.indices >= 0
                result[batch.indices[real]] = np.asarray(found)[real]
        return result

    def _encoded(self, texts: Sequence[str | tuple[str, str]]) -> Encoded:
        columns = self._columns(texts)
        found = self.tokenizer.encode(columns, self.max_length) if len(texts) else []
        sizes = [len(ids) for ids, _ in found]
        ids = np.array([i for row, _ in found for i in row], np.int64)
        check_ids(ids, self.tokenizer.rows, "texts")
        return Encoded(
            ids.astype(np.int32),
            np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]),
            np.array([second for _, second in found], np.int32),
            np.zeros(len(found), np.int32),
            self.tokenizer.pad_id,
        )

    def _columns(self, texts: Sequence[str | tuple[str, str]]) -> Texts:
        wanted = "a text" if self.columns == 1 else "a pair of texts"
        for k, example in enumerate(texts if not isinstance(texts, str) else [None]):
            parts = (example,) if isinstance(example, str) else example
            fits = isinstance(parts, tuple | list) and len(parts) == self.columns
            if not fits or not all(isinstance(part, str) for part in parts or ()):
                raise InputError(
                    f"`texts` must be a list of which each element is {wanted}. "
                    f"Received as element {k}: {example!r}"
                )
        if self.columns == 1:
            return ([x if isinstance(x, str) else x[0] for x in texts],)
        first, second = zip(*texts, strict=True) if len(texts) else ((), ())
        return list(first), list(second)


def load_classifier(
    folder: str | os.PathLike[str], task: str | None = None
) -> TextClassifier:
    """Loads the classifier of a task from a folder of `lrdist train`.

    Args:
        folder: The folder.
        task: Name of the task; not needed where there is one.

    Raises:
        FileNotFoundError: If there is no such folder, or a file of it is missing.
        InputError: If it is damaged, or has no such task.
    """
    folder = Path(folder)
    saved = read_saved(folder)
    entry = _entry(saved.tasks, task, folder)
    model = load_model(folder / entry.file, f"'{folder / entry.file}'")
    tokenizer = load_tokenizer(str(folder))
    return TextClassifier(
        model, tokenizer, saved.max_length, tuple(entry.class_names), entry.columns
    )


def _entry(tasks: Sequence[SavedTask], task: str | None, folder: Path) -> SavedTask:
    names = [entry.name for entry in tasks]
    if task is None and len(tasks) == 1:
        return tasks[0]
    if task not in names:
        raise InputError(
            f"`task` must be one of the tasks of '{folder}': "
            f"{listed(repr(printable(name)) for name in names)}. Received: {task!r}"
        )
    return tasks[names.index(task)]


def _float32_products() -> AbstractContextManager[Any]:
    import keras

    if keras.backend.backend() != "jax":
        return nullcontext()
    import jax

    return jax.default_matmul_precision("highest")
