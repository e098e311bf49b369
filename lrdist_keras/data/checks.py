"""What is wrong with the data of tasks, found before anything is trained on them."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from lrdist_keras.data.class_checks import check_classes
from lrdist_keras.data.findings import Finding, rows_of
from lrdist_keras.data.sampling import class_sizes, shortage
from lrdist_keras.data.splits import Split, Task
from lrdist_keras.printable import listed, printable

_FEW_TEXTS = 0.5  # share of different texts below which a file is mostly copies
_LEAK = 0.5  # share of validation above which it is training
_PARTS = {"train": "training", "validation": "validation"}
_EMPTY = 0  # number of the text without a visible character


def check_tasks(
    tasks: Mapping[str, Task],
    sequences: Iterable[Sequence[str]] = (),
    train_examples: Mapping[str, int | None] | None = None,
) -> list[Finding]:
    """Finds what makes results of tasks wrong, or worth less than they look.

    Texts count as the same where they differ in case, in spaces, or in how Unicode
    composes their characters only.

    Args:
        tasks: Loaded tasks by name.
        sequences: Names of the tasks that are trained one after the other.
        train_examples: Size of the subset that each task is trained on, None for all.
    """
    texts = _numbered(tasks)
    found: list[Finding] = []
    for name, task in tasks.items():
        found += check_classes(task)
        found += _check_sizes(task, (train_examples or {}).get(name))
        found += _check_empty(task, texts)
        found += _check_copies(task, texts[name, "train"])
        found += _check_leak(task, texts)
    pairs = (pair for names in sequences for pair in itertools.permutations(names, 2))
    for name, other in dict.fromkeys(pairs):
        found += _check_other(tasks[name], tasks[other], texts)
    return sorted(found, key=lambda finding: finding.level != "error")


@dataclass(frozen=True)
class _Texts:
    """Numbers of the texts of a split, the same for the same text in any split.

    Args:
        columns: Number of each text, int64, shape [columns, examples].
        rows: A number of each example, the same where all its texts are, [examples].
    """

    columns: np.ndarray
    rows: np.ndarray

    @property
    def empty(self) -> np.ndarray:
        """Whether each example has no text at all, shape [examples]."""
        return (self.columns == _EMPTY).all(axis=0)


def _numbered(tasks: Mapping[str, Task]) -> dict[tuple[str, str], _Texts]:
    """Returns the numbers of all texts, by task and split."""
    known = {_digest(""): _EMPTY}
    columns = {
        (name, split): np.array(
            [
                [known.setdefault(_digest(text), len(known)) for text in column]
                for column in content.texts
            ],
            np.int64,
        )
        for name, task in tasks.items()
        for split, content in task.splits.items()
    }
    base = len(known)
    return {
        key: _Texts(found, found[0] if len(found) == 1 else found[0] * base + found[1])
        for key, found in columns.items()
    }


def _digest(text: str) -> bytes:
    """Returns what two texts share that are the same to a reader.

    A text without a visible character is the same as an empty one.
    """
    if not any(c.isprintable() and not c.isspace() for c in text):
        text = ""
    folded = unicodedata.normalize("NFC", " ".join(text.split()).casefold())
    return blake2b(folded.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _check_sizes(task: Task, train_examples: int | None) -> list[Finding]:
    labels = task.splits["train"].labels
    counts = np.bincount(labels)
    found = []

    def error(sentence: str) -> None:
        found.append(Finding("error", task.name, sentence))

    rule = "must be at least 2 examples of at least two classes"
    if not task.has_training:
        pass
    elif lack := shortage(counts, task.class_names):
        error(f"training {rule}; add some. Received: {lack}")
    elif train_examples is not None and train_examples > len(labels):
        error(
            f"`train_examples` must be at most the {len(labels):,} examples there are. "
            f"Received: {train_examples}"
        )
    elif train_examples is not None:
        sizes = class_sizes(labels, train_examples)
        if lack := shortage(sizes, task.class_names):
            error(f"`train_examples` {rule}; raise it. Received: {lack}")
        elif len(lost := np.flatnonzero((sizes == 0) & (counts > 0))):
            names = listed(repr(task.class_names[i]) for i in lost)
            sentence = (
                f"no example is trained of the class{'es' * (len(lost) > 1)} {names}, "
                f"whose share of {train_examples} `train_examples` is below one"
            )
            found.append(Finding("warning", task.name, sentence))
    counts = np.bincount(task.splits["validation"].labels)
    if lack := shortage(counts, task.class_names):
        error(
            f"validation {rule}; add some, or raise `validation_examples`. "
            f"Received: {lack}"
        )
    return found


def _check_empty(task: Task, texts: Mapping[tuple[str, str], _Texts]) -> list[Finding]:
    found = []
    for name, split in task.splits.items():
        if not len(split):
            continue
        columns = texts[task.name, name].columns == _EMPTY
        empty = columns.any(axis=0)
        part = _PARTS[name]
        if columns.all(axis=1).any():
            sentence = (
                f"a text is empty in all {len(split):,} {part} examples; name the "
                "right column with `text`, or mend the file"
            )
            found.append(Finding("error", task.name, sentence))
        elif empty.any():
            sentence = f"a text is empty in {_share(empty, part)}"
            rows = rows_of(split, np.flatnonzero(empty))
            found.append(Finding("warning", task.name, sentence, rows))
    return found


def _check_copies(task: Task, texts: _Texts) -> list[Finding]:
    """Texts that stand in training more than once, with one label or with several."""
    split = task.splits["train"]
    rows = np.flatnonzero(~texts.empty)
    _, text_of, times = np.unique(
        texts.rows[rows], return_inverse=True, return_counts=True
    )
    pair = text_of * len(task.class_names) + split.labels[rows]
    _, first, pair_of, same = np.unique(
        pair, return_index=True, return_inverse=True, return_counts=True
    )
    found = []
    if len(times) < _FEW_TEXTS * len(rows):
        sentence = (
            f"its {len(rows):,} training examples have only {len(times):,} different "
            "texts; look whether `text` names the right column"
        )
        found.append(Finding("warning", task.name, sentence))
    elif len(same) < len(rows):
        copies = np.ones(len(split), bool)
        copies[rows[first]] = False
        sentence = (
            f"training repeats {_share(copies & ~texts.empty, 'training')} with the "
            "same label, which count that much more; all copies are listed"
        )
        where = rows_of(split, rows[same[pair_of] > 1])
        found.append(Finding("warning", task.name, sentence, where))
    contrary = np.zeros(len(split), bool)
    contrary[rows[same[pair_of] < times[text_of]]] = True
    if contrary.any():
        chosen = np.flatnonzero(contrary)
        chosen = chosen[np.argsort(texts.rows[chosen], kind="stable")]
        sentence = (
            "training has the same text with another label for "
            f"{_share(contrary, 'training')}, listed text by text"
        )
        where = rows_of(split, chosen)
        found.append(Finding("warning", task.name, sentence, where))
    return found


def _check_leak(task: Task, texts: Mapping[tuple[str, str], _Texts]) -> list[Finding]:
    """Validation examples that are trained on."""
    train, validation = texts[task.name, "train"], texts[task.name, "validation"]
    splits = task.splits
    seen = np.isin(validation.rows, train.rows) & ~validation.empty
    if not seen.any():
        return []
    trained = np.isin(train.rows, validation.rows) & ~train.empty
    rows = (*rows_of(splits["validation"], seen), *rows_of(splits["train"], trained))
    much = seen.mean() > _LEAK
    if much and _is_part(splits["validation"], splits["train"]):
        sentence = (
            "its validation examples are training examples; name another file for "
            "`validation`, or none, and a tenth of the training file is held out"
        )
        return [Finding("error", task.name, sentence)]
    sentence = (
        f"training holds the texts of {_share(seen, 'validation')} too, so that the "
        "accuracy on them shows memory; remove them from one of the two"
    )
    return [Finding("error" if much else "warning", task.name, sentence, rows)]


def _check_other(
    task: Task, other: Task, texts: Mapping[tuple[str, str], _Texts]
) -> list[Finding]:
    """Validation examples that another task of the sequence is trained on."""
    validation, train = texts[task.name, "validation"], texts[other.name, "train"]
    if len(validation.columns) == len(train.columns):
        seen = np.isin(validation.rows, train.rows)
        trained = np.isin(train.rows, validation.rows)
    else:  # of a pair one text is enough
        seen = _any(np.isin(validation.columns, train.columns))
        trained = _any(np.isin(train.columns, validation.columns))
    seen, trained = seen & ~validation.empty, trained & ~train.empty
    if not seen.any():
        return []
    sentence = (
        f"the training examples of '{printable(other.name)}', of the same sequence, "
        f"hold the texts of {_share(seen, 'validation')}"
    )
    rows = (
        *rows_of(task.splits["validation"], seen),
        *rows_of(other.splits["train"], trained),
    )
    return [Finding("warning", task.name, sentence, rows)]


def _any(columns: np.ndarray) -> np.ndarray:
    return np.logical_or.reduce(columns, axis=0)


def _is_part(split: Split, whole: Split) -> bool:
    """Whether the rows of a split are rows of the other."""
    if split.rows is None or whole.rows is None:
        return False
    same = split.rows.source == whole.rows.source
    return same and bool(np.isin(split.rows.numbers, whole.rows.numbers).all())


def _share(chosen: np.ndarray, part: str) -> str:
    """Returns in words how many: `9 of 900 training examples (1.0%)`."""
    share = chosen.mean()
    percent = "under 0.1%" if share < 1e-3 else f"{share:.1%}"
    return f"{chosen.sum():,} of {len(chosen):,} {part} examples ({percent})"


@dataclass(frozen=True)
class SplitSummary:
    """What a table shows of a split.

    Args:
        task: Name of the task.
        split: Name of the split.
        examples: Number of examples.
        classes: Number of examples of each class by name.
        lengths: Smallest and median number of tokens, that which 95 % of the examples
            do not exceed, and the largest, special tokens included.
        cut: Share of the examples that are longer than a training shows.
    """

    task: str
    split: str
    examples: int
    classes: dict[str, int]
    lengths: tuple[int, int, int, int]
    cut: float


def summarize_split(
    task: Task, split: str, lengths: np.ndarray, max_length: int
) -> SplitSummary:
    """Returns what a table shows of a split.

    Args:
        task: The task.
        split: Name of its split.
        lengths: Numbers of tokens without any limit, shape [examples].
        max_length: Tokens per example at most in training.
    """
    labels = task.splits[split].labels
    counts = np.bincount(labels, minlength=len(task.class_names)).tolist()
    quantiles = np.quantile(lengths, (0, 0.5, 0.95, 1), method="inverted_cdf")
    first, median, long, last = (int(length) for length in quantiles)
    return SplitSummary(
        task.name,
        split,
        len(labels),
        dict(zip(task.class_names, counts, strict=True)),
        (first, median, long, last),
        float(np.mean(lengths > max_length)),
    )
