"""Which examples are taken: stratified subsets, and the slice of a search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lrdist_keras.data.splits import Split
from lrdist_keras.errors import InputError

_LONGEST_PART = 60  # words; no phrase of SST-2 is longer


def stratified(
    labels: np.ndarray,
    count: int,
    rng: np.random.Generator,
    what: str = "`count`",
    least: int = 0,
) -> np.ndarray:
    """Draws a subset with the class proportions of the whole.

    Each class gets its share of `count`, rounded by the largest remainders.

    Args:
        labels: Class numbers, shape [examples].
        count: Size of the subset.
        rng: Source of the draw.
        what: How errors call `count`.
        least: Examples that each class gets at least, if it has as many; for their
            sake the subset may be larger than `count`.

    Returns:
        Indices in increasing order, shape [sum of `class_sizes`].

    Raises:
        ValueError: If `count` is more than there are.
    """
    if count > len(labels):
        raise InputError(
            f"{what} must be at most the {len(labels)} examples there are. "
            f"Received: {count}"
        )
    chosen = [
        rng.permutation(np.flatnonzero(labels == label))[:number]
        for label, number in enumerate(class_sizes(labels, count, least))
    ]
    return np.sort(np.concatenate(chosen))


def class_sizes(labels: np.ndarray, count: int, least: int = 0) -> np.ndarray:
    """Returns how many examples of each class a stratified subset of this size has.

    Args:
        labels: Class numbers of the whole, shape [examples].
        count: Size of the subset, at most that of the whole.
        least: Examples that each class gets at least, see `stratified`.

    Returns:
        int64, shape [largest class number + 1].
    """
    there = np.bincount(labels)
    share = there * (count / max(len(labels), 1))
    take = np.floor(share).astype(int)
    rest = np.argsort(take - share, kind="stable")[: count - take.sum()]
    take[rest] += 1
    return np.maximum(take, np.minimum(there, least))


def shortage(counts: np.ndarray, names: Sequence[str] = ()) -> str | None:
    """Says what is too little to train on or to judge by, None where it is enough.

    At least two examples are needed, of at least two classes.

    Args:
        counts: Number of examples of each class.
        names: Names of the classes; without them they are called by their numbers.
    """
    total = int(counts.sum())
    if np.count_nonzero(counts) >= 2:
        return None
    if not total:
        return "none"
    number = int(np.argmax(counts))
    of_one = f"of class {names[number]!r}" if names else f"of class {number}"
    return f"1, {of_one}" if total == 1 else f"{total:,}, all {of_one}"


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


def majority_rate(labels: np.ndarray) -> float:
    """Returns the share of the most frequent class."""
    return float(np.bincount(labels).max() / len(labels))
