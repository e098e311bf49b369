"""Texts with labels, and the tasks that they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lrdist_keras.printable import listed, printable


@dataclass(frozen=True)
class Rows:
    """Some rows of a source, so that a message can say where something stands.

    Args:
        source: A file's path, or what else has rows, such as `glue/sst2, train`.
        numbers: Lines of the file, counted from 1, or rows of the source, counted from
            0, int64, shape [rows].
        unit: Which of the two.
    """

    source: str
    numbers: np.ndarray
    unit: Literal["line", "row"] = "row"

    def take(self, indices: np.ndarray) -> Rows:
        """Returns the rows at these indices."""
        return Rows(self.source, self.numbers[indices], self.unit)

    def listed(self, most: int | None = 20) -> str:
        """Returns them in words: `train.csv, lines 3, 7`.

        Args:
            most: How many are listed in full; of more than that the first five and the
                number of the others. None lists any number.
        """
        unit = self.unit if len(self.numbers) == 1 else f"{self.unit}s"
        return f"{printable(self.source)}, {unit} {listed(self.numbers, most)}"


@dataclass(frozen=True)
class Split:
    """Texts with labels.

    Args:
        texts: One list of texts, or two of equal length for pairs.
        labels: Class numbers from 0, int32, shape [examples].
        rows: Where each example stands, None where nobody knows.
    """

    texts: tuple[Sequence[str], ...]
    labels: np.ndarray
    rows: Rows | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Split:
        """Returns the examples at these indices."""
        texts = tuple([column[i] for i in indices] for column in self.texts)
        rows = None if self.rows is None else self.rows.take(indices)
        return Split(texts, self.labels[indices], rows)


@dataclass(frozen=True)
class Task:
    """A classification task.

    Args:
        name: Its name.
        source: Where it comes from, such as `glue/cola`.
        splits: Splits by name: `train` and `validation`.
        class_names: Names of the classes in the order of their numbers.
        named: Whether somebody said what the classes are, the source or the
            configuration; otherwise whatever the training file has is a class.
    """

    name: str
    source: str
    splits: Mapping[str, Split]
    class_names: tuple[str, ...]
    named: bool = True

    @property
    def has_training(self) -> bool:
        """Whether there are training examples, which a trained model needs none of."""
        return len(self.splits["train"]) > 0
