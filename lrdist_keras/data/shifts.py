"""How one task is divided into parts that are trained one after the other."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lrdist_keras.data.sampling import class_sizes, shortage
from lrdist_keras.errors import InputError


@dataclass(frozen=True)
class Part:
    """A part of a task.

    Args:
        name: What is in it, such as `short` or `cluster 1`.
        train: Indices of its training examples, increasing.
        validation: Indices of its validation examples, increasing.
    """

    name: str
    train: np.ndarray
    validation: np.ndarray


@dataclass(frozen=True)
class LabelShares:
    """The labels of one part, beside those of the first.

    Args:
        part: Name of the part.
        classes: Names of its classes.
        train: Share of each class among its training examples.
        validation: Share of each class among its validation examples.
        train_distance: Total variation between its training labels and those of the
            first part, in [0, 1]; NaN where that has other classes.
        validation_distance: The same for validation.
    """

    part: str
    classes: tuple[str, ...]
    train: tuple[float, ...]
    validation: tuple[float, ...]
    train_distance: float
    validation_distance: float


def length_shift(
    train: np.ndarray, validation: np.ndarray, random_halving: bool = False
) -> list[Part]:
    """Divides a task by the length of its texts: the shorter half, then the longer.

    Training and validation are halved each by itself, equal lengths in the order of the
    examples; of an odd number the longer half has one more.

    Args:
        train: Numbers of tokens of the training examples.
        validation: Numbers of tokens of the validation examples.
        random_halving: Whether to halve as the authors' code does. There example i goes
            to the first half if the example that is i-th in the order of lengths has an
            index above half the number of examples, which has nothing to do with the
            length of example i.

    Returns:
        The parts `short` and `long`, so called in either case.
    """
    halves = _authors_halves if random_halving else _halves
    sides = zip(halves(train), halves(validation), strict=True)
    return [
        Part(name, *side) for name, side in zip(("short", "long"), sides, strict=True)
    ]


def _halves(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(lengths, kind="stable")
    half = len(lengths) // 2
    return np.sort(order[:half]), np.sort(order[half:])


def _authors_halves(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # The index that argsort gives is taken for the rank of the example at its place.
    first = np.argsort(lengths, kind="stable") > len(lengths) / 2
    return np.flatnonzero(first), np.flatnonzero(~first)


def cluster_shift(
    train: np.ndarray,
    validation: np.ndarray,
    clusters: int,
    seed: int,
    fit_on_validation: bool = False,
) -> list[Part]:
    """Divides a task by k-means on embeddings of its texts, the largest part first.

    The centres are fitted to the training embeddings alone; every example belongs to
    the nearest centre. Sizes are those among the training examples.

    Args:
        train: Embeddings of the training examples, shape [examples, width].
        validation: Embeddings of the validation examples, shape [examples, width].
        clusters: Number of clusters k.
        seed: Seed of the centres' first places.
        fit_on_validation: Whether the centres are fitted to the validation embeddings,
            as in the authors' code.

    Returns:
        The parts `cluster 1` to `cluster k`.

    Raises:
        ValueError: If there are fewer examples to fit than clusters.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    fitted = validation if fit_on_validation else train
    if clusters > len(fitted):
        raise InputError(
            f"`clusters` must be at most the {len(fitted)} examples that they are "
            f"fitted to. Received: {clusters}"
        )
    with warnings.catch_warnings():
        # Of fewer different texts than clusters; parts stay empty, which is an error.
        warnings.simplefilter("ignore", ConvergenceWarning)
        means = KMeans(clusters, n_init=10, random_state=seed).fit(fitted)
    homes = means.predict(train), means.predict(validation)
    order = np.argsort(-np.bincount(homes[0], minlength=clusters), kind="stable")
    return [
        Part(f"cluster {number}", *(np.flatnonzero(home == i) for home in homes))
        for number, i in enumerate(order, start=1)
    ]


def check_parts(
    parts: Sequence[Part],
    train_labels: np.ndarray,
    validation_labels: np.ndarray,
    train_examples: int | None,
    what: str,
) -> None:
    """Makes sure that every part can be trained and evaluated.

    Args:
        parts: The parts of a task.
        train_labels: Class numbers of all its training examples.
        validation_labels: Class numbers of all its validation examples.
        train_examples: How many of each part are trained on, None for all.
        what: How errors call the sequence.

    Raises:
        ValueError: If the training or the validation examples of a part, or the subset
            that is trained on, are not at least two of at least two classes; the
            message names all of them.
    """
    problems = []
    for part in parts:
        labels = train_labels[part.train]
        counts = {
            "training": np.bincount(labels),
            "validation": np.bincount(validation_labels[part.validation]),
        }
        if train_examples is not None:
            if train_examples > len(labels):
                problems.append(
                    "`train_examples` is the number of each part, and must be at most "
                    f"the {len(labels):,} examples of '{part.name}'. "
                    f"Received: {train_examples}"
                )
            else:
                counts["`train_examples`"] = class_sizes(labels, train_examples)
        problems += [
            f"every part needs at least 2 {name} examples, of at least two classes; "
            "take more examples, fewer clusters or another shift. Received for "
            f"'{part.name}': {lack}"
            for name, found in counts.items()
            if (lack := shortage(found))
        ]
    if problems:
        raise InputError(f"{what}: " + "; ".join(problems))


def label_table(
    names: Sequence[str],
    train: Sequence[np.ndarray],
    validation: Sequence[np.ndarray],
    classes: Sequence[Sequence[str]],
) -> list[LabelShares]:
    """Returns the label distributions of parts, since a shift can hide a label shift.

    Args:
        names: Names of the parts.
        train: Class numbers of the training examples of each; of a part without any the
            shares are NaN.
        validation: Class numbers of the validation examples of each.
        classes: Names of the classes of each, in the order of their numbers.
    """
    shares = [
        [
            np.bincount(labels, minlength=len(of_part)) / len(labels)
            if len(labels)
            else np.full(len(of_part), np.nan)
            for labels, of_part in zip(side, classes, strict=True)
        ]
        for side in (train, validation)
    ]

    def distance(side: int, i: int) -> float:
        if tuple(classes[i]) != tuple(classes[0]):
            return float("nan")
        return total_variation(shares[side][i], shares[side][0])

    return [
        LabelShares(
            name,
            tuple(classes[i]),
            tuple(shares[0][i].tolist()),
            tuple(shares[1][i].tolist()),
            distance(0, i),
            distance(1, i),
        )
        for i, name in enumerate(names)
    ]


def total_variation(p: np.ndarray, q: np.ndarray) -> float:
    """Returns sum |p - q| / 2: the largest difference in probability of any event."""
    return float(np.abs(p - q).sum() / 2)
