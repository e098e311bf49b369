"""Which labels of local files are the same class, and what the classes are called."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lrdist_keras.data.splits import Rows
from lrdist_keras.errors import InputError
from lrdist_keras.printable import listed, printable
from lrdist_keras.settings import nearest

# What a label is, however it is written: a whole number, or a name.
Label = int | str

_INTEGER = re.compile(r"([+-]?\d{1,18})(?:\.0*)?")
_FRACTION = re.compile(r"[+-]?\d*\.\d+(?:[eE][+-]?\d+)?|nan", re.IGNORECASE)
_LONGEST = 60  # characters of a label in a message

_NO_LABEL = "a label must be an integer or a class name"
_REGRESSION = (
    f"{_NO_LABEL}; numbers with a fraction or without a value look like the target of "
    "a regression, so make classes of them, or list them in `class_names`"
)
_HIDDEN = (
    "labels must be at least 0, or -1 and 1; negative labels usually mark hidden ones, "
    "as in a test split. If they are classes, list all classes in `class_names`"
)


@dataclass(frozen=True)
class LabelColumn:
    """The labels of a local file as they stand there.

    Args:
        path: The file.
        values: What each row has, as CSV or JSON gives it.
        lines: The line of each.
    """

    path: Path
    values: Sequence[Any]
    lines: Sequence[int]


def class_numbers(
    columns: Mapping[str, LabelColumn], class_names: Sequence[str] | None
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Returns the names of the classes, and the class number of every label.

    An integer is the same label whether it is written `1`, `1.0` or ` 1 `, and so is
    the truth, `true`, `True` or JSON's. Without `class_names` the labels of the
    training file name the classes: integers in the order of their value, names in that
    of the alphabet. With `class_names` a label is one of these names, or the position
    of one from 0 where none of them is an integer.

    Args:
        columns: Labels of each split; `train` is one of them.
        class_names: Names of the classes in the order of their numbers, if given.

    Returns:
        The names, and class numbers by split, int32, shape [examples].

    Raises:
        ValueError: If labels break a rule; the message names the file and the lines.
    """
    if class_names is not None:
        known = _known(class_names)
        numbers = {
            split: _numbers_by_name(column, class_names, known)
            for split, column in columns.items()
        }
        return list(class_names), numbers
    labels = {split: _labels(column) for split, column in columns.items()}
    number = {
        label: i for i, label in enumerate(_in_order(columns["train"], labels["train"]))
    }
    names = [str(label) for label in number]
    for split, column in columns.items():
        unknown = [i for i, label in enumerate(labels[split]) if label not in number]
        received = [labels[split][i] for i in unknown]
        rule = _HIDDEN
        if not any(map(_is_negative, received)):
            hint = nearest(str(received[0]), names) if received else ""
            rule = (
                "a label must be one of those of the training file "
                f"'{printable(columns['train'].path)}', {_list(names)}{hint}"
            )
        _refuse(column, unknown, rule, received)
    return names, {
        split: np.array([number[label] for label in found], np.int32)
        for split, found in labels.items()
    }


class _NoLabel(Exception):
    """A value is no label; the message is the rule that it breaks."""


def _label(value: Any) -> Label:
    """Returns what a value means, so that one label is one however it is written."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if not value.is_integer():  # nor are infinity and NaN
            raise _NoLabel(_REGRESSION)
        return int(value)
    if isinstance(value, int):
        return value
    text = value.strip() if isinstance(value, str) else ""
    if not text:
        raise _NoLabel(_NO_LABEL)
    if whole := _INTEGER.fullmatch(text):
        return int(whole[1])
    if _FRACTION.fullmatch(text):
        raise _NoLabel(_REGRESSION)
    return text.lower() if text.lower() in ("false", "true") else sys.intern(text)


def _labels(column: LabelColumn) -> list[Label]:
    found: list[Label] = []
    refused: dict[str, list[int]] = {}
    for i, value in enumerate(column.values):
        try:
            found.append(_label(value))
        except _NoLabel as error:
            refused.setdefault(str(error), []).append(i)
    for rule, rows in refused.items():
        _refuse(column, rows, rule, [column.values[i] for i in rows])
    return found


def _in_order(column: LabelColumn, labels: Sequence[Label]) -> list[Label]:
    """The different labels of a training file in the order of their numbers."""
    integers = {label for label in labels if isinstance(label, int)}
    names = {label for label in labels if isinstance(label, str)}
    if integers and names:
        rows = [i for i, label in enumerate(labels) if isinstance(label, str)]
        rule = (
            "some labels are integers, so each must be one, unless `class_names` says "
            "which names there are"
        )
        _refuse(column, rows, rule, [labels[i] for i in rows])
    if integers != {-1, 1}:
        rows = [i for i, label in enumerate(labels) if _is_negative(label)]
        _refuse(column, rows, _HIDDEN, [labels[i] for i in rows])
    return [*sorted(integers), *sorted(names)]


def _is_negative(label: Label) -> bool:
    return isinstance(label, int) and label < 0


def _known(class_names: Sequence[str]) -> dict[Label, int]:
    """Returns the class number of every label that `class_names` allow.

    Raises:
        ValueError: If two of the names are the same label, or one is none.
    """
    known: dict[Label, int] = {}
    for i, name in enumerate(class_names):
        label = _name(name)
        if label == "":
            raise InputError(f"class_names: {_NO_LABEL}. Received: {name!r}")
        if label in known:
            raise InputError(
                f"class_names: {_list([class_names[known[label]], name])} are the same "
                "label, however it is written, so one of them must go."
            )
        known[label] = i
    if _are_integers(known):
        return known
    return {i: i for i in range(len(class_names))} | known


def _are_integers(labels: Iterable[Label]) -> bool:
    return any(isinstance(label, int) for label in labels)


def _name(value: Any) -> Label:
    """Returns what a class name means, which need not be a label without it."""
    try:
        return _label(value)
    except _NoLabel:
        return str(value).strip()


def _numbers_by_name(
    column: LabelColumn, class_names: Sequence[str], known: Mapping[Label, int]
) -> np.ndarray:
    labels = ["" if value is None else _name(value) for value in column.values]
    unknown = [i for i, label in enumerate(labels) if label not in known]
    received = [labels[i] for i in unknown]
    if any(map(_is_negative, received)):
        rule = _HIDDEN
    else:
        hint = nearest(str(received[0]), class_names) if received else ""
        names = f"one of the class names {_list(class_names)}{hint}"
        if _are_integers(map(_name, class_names)):
            rule = f"a label must be {names}; as some are integers, none is a position"
        else:
            most = len(class_names) - 1
            rule = f"a label must be an integer from 0 to {most} or {names}"
    _refuse(column, unknown, rule, received)
    return np.array([known[label] for label in labels], np.int32)


def _refuse(
    column: LabelColumn, rows: Sequence[int], rule: str, received: Iterable[Any]
) -> None:
    """Raises an error that names these rows of a file, if there are any."""
    if rows:
        lines = np.array([column.lines[i] for i in rows], np.int64)
        where = Rows(str(column.path), lines, "line").listed()
        values = listed(dict.fromkeys(map(_brief, received)))
        raise InputError(f"{where}: {rule}. Received: {values}")


def _list(names: Iterable[Any]) -> str:
    return f"[{listed(map(_brief, names))}]"


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
