"""Texts with labels, and the tasks that they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Split:
    """Texts with labels.

    Args:
        texts: One list of texts, or two of equal length for pairs.
        labels: Class numbers from 0, int32, shape [examples].
    """

    texts: tuple[Sequence[str], ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Split:
        """Returns the examples at these indices."""
        texts = tuple([column[i] for i in indices] for column in self.texts)
        return Split(texts, self.labels[indices])


@dataclass(frozen=True)
class Task:
    """A classification task.

    Args:
        name: Its name.
        source: Where it comes from, such as `glue/cola`.
        splits: Splits by name: `train` and `validation`.
        class_names: Names of the classes in the order of their numbers.
    """

    name: str
    source: str
    splits: Mapping[str, Split]
    class_names: tuple[str, ...]
