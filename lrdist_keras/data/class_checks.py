"""Whether the classes of a task can be what its author meant."""

from __future__ import annotations

import itertools
import re
import unicodedata

import numpy as np

from lrdist_keras.data.findings import Finding, rows_of
from lrdist_keras.data.splits import Rows, Task
from lrdist_keras.printable import listed

_INTEGER = re.compile(r"[+-]?\d+")
_SEPARATORS = "|;,"
# More different numbers than this, of so few examples each, are no classes.
_MOST_NUMBERS = 20
_FEWEST_EXAMPLES = 10
_MOST_GAPS = 5  # that are looked for


def check_classes(task: Task) -> list[Finding]:
    """Finds classes that are none, that are one, or that a part lacks.

    What somebody said are the classes is taken for granted, see `Task.named`.
    """
    if task.named:
        return [*_two_readings(task), *_missing(task)]
    if found := _regression(task):
        return found
    return [*_several_labels(task), *_alike(task), *_gaps(task), *_missing(task)]


def alike(name: str) -> str:
    """Returns what names have in common that differ in case, spaces or marks only."""
    text = unicodedata.normalize("NFKC", name)
    seen = "".join(c for c in text if unicodedata.category(c) != "Cf")
    return " ".join(seen.split()).casefold()


def _integers(task: Task) -> list[int] | None:
    """The classes as numbers, None where one is no integer."""
    names = task.class_names
    return [int(n) for n in names] if all(map(_INTEGER.fullmatch, names)) else None


def _counts(task: Task, split: str) -> np.ndarray:
    labels = task.splits[split].labels
    return np.bincount(labels, minlength=len(task.class_names))


def _names(task: Task, classes: np.ndarray) -> str:
    names = [repr(task.class_names[i]) for i in classes]
    return f"class{'es' * (len(names) > 1)} {listed(names)}"


def _two_readings(task: Task) -> list[Finding]:
    """Integers that may be names or positions of names are read as names."""
    numbers = _integers(task)
    if numbers is None or numbers == list(range(len(numbers))):
        return []
    present = np.unique(np.concatenate([s.labels for s in task.splits.values()]))
    if any(not 0 <= numbers[i] < len(numbers) for i in present):
        return []
    sentence = (
        f"the labels can be names of `class_names`, {listed(task.class_names)}, or "
        "positions in it; they are read as names"
    )
    return [Finding("warning", task.name, sentence)]


def _regression(task: Task) -> list[Finding]:
    numbers, train = _integers(task), task.splits["train"]
    if numbers is None or len(numbers) <= _MOST_NUMBERS:
        return []
    mean = len(train) / len(numbers)
    if mean >= _FEWEST_EXAMPLES:
        return []
    sentence = (
        f"its {len(numbers):,} different numbers as labels, of {mean:.1f} training "
        "examples each, look like the target of a regression; make a few classes of "
        "them, or list them in `class_names`"
    )
    return [Finding("error", task.name, sentence)]


def _rows_of_classes(task: Task, classes: list[int]) -> tuple[Rows, ...]:
    """Returns the rows of the examples of some classes, of every split that has any."""
    return tuple(
        rows
        for split in task.splits.values()
        if len(chosen := np.flatnonzero(np.isin(split.labels, classes)))
        for rows in rows_of(split, chosen)
    )


def _several_labels(task: Task) -> list[Finding]:
    known = set(task.class_names)
    found = []
    for separator in _SEPARATORS:
        wrong = [
            i
            for i, name in enumerate(task.class_names)
            if len(parts := [part.strip() for part in name.split(separator)]) > 1
            and known.issuperset(parts)
        ]
        if not wrong:
            continue
        rows = _rows_of_classes(task, wrong)
        sentence = (
            f"cells of the {_names(task, np.array(wrong))} hold several labels, parted "
            f"by '{separator}', that are classes themselves; an example has one class, "
            "so keep one label of each, or list all classes in `class_names`"
        )
        found.append(Finding("error", task.name, sentence, rows))
    return found


def _alike(task: Task) -> list[Finding]:
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(task.class_names):
        groups.setdefault(alike(name), []).append(i)
    found = []
    sizes = _counts(task, "train") + _counts(task, "validation")
    for same in (group for group in groups.values() if len(group) > 1):
        rarer = [i for i in same if i != max(same, key=lambda i: sizes[i])]
        rows = _rows_of_classes(task, rarer)
        sentence = (
            f"the {_names(task, np.array(same))} differ in case, spaces or marks only "
            "and are almost certainly one; mend the file (the rows are of the rarer), "
            "or list all classes in `class_names` if they are several"
        )
        found.append(Finding("error", task.name, sentence, rows))
    return found


def _gaps(task: Task) -> list[Finding]:
    numbers = _integers(task)
    if numbers is None or numbers == [-1, 1]:
        return []
    count = numbers[-1] - numbers[0] + 1 - len(numbers)
    if not count:
        return []
    known = set(numbers)
    missing = (i for i in range(numbers[0], numbers[-1]) if i not in known)
    few = ", ".join(map(str, itertools.islice(missing, _MOST_GAPS)))
    more = f" and {count - _MOST_GAPS:,} more" if count > _MOST_GAPS else ""
    sentence = (
        f"its labels are integers from {numbers[0]} to {numbers[-1]}, but none is "
        f"{few}{more}; it has {len(numbers)} classes"
    )
    return [Finding("warning", task.name, sentence)]


def _missing(task: Task) -> list[Finding]:
    train, validation = _counts(task, "train"), _counts(task, "validation")
    found = []
    if not task.has_training:  # a trained model knows all its classes
        train = np.maximum(validation, 1)
    if len(lacking := np.flatnonzero((train > 0) & (validation == 0))):
        sentence = (
            f"validation has no example of the {_names(task, lacking)}, so that its "
            "accuracy says nothing about what is learned of them"
        )
        found.append(Finding("warning", task.name, sentence))
    if len(lacking := np.flatnonzero((train == 0) & (validation > 0))):
        split = task.splits["validation"]
        rows = rows_of(split, np.flatnonzero(np.isin(split.labels, lacking)))
        sentence = (
            f"training has no example of the {_names(task, lacking)}, and validation "
            f"has {validation[lacking].sum():,}, which nobody can tell; add some to "
            "training, or remove them"
        )
        found.append(Finding("error", task.name, sentence, rows))
    if len(lacking := np.flatnonzero((train == 0) & (validation == 0))):
        sentence = f"no example is of the {_names(task, lacking)}"
        found.append(Finding("warning", task.name, sentence))
    return found
