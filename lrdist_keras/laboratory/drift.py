"""How far weights and features moved, and what frozen features still hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lrdist_keras.errors import InputError
from lrdist_keras.groups import Groups, partition

_FOLDS = 5
# Inverse strengths of the probe's penalty, weakest last; scikit-learn's default is 1.
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Returns how alike two sets of features of the same examples are, in [0, 1].

    Linear centred kernel alignment in feature space (arXiv 1905.00414, section 3), with
    the columns of X and Y centred: ||Y' X||^2 / (||X' X|| ||Y' Y||), Frobenius norms.
    No matrix of examples by examples is formed. It is 1 for features that differ by a
    rotation, a shift and a scale.

    Args:
        x: Features, shape [examples, width].
        y: Features, shape [examples, other width].

    Returns:
        The alignment, NaN where the features of one side do not vary or are not finite.

    Raises:
        ValueError: If the numbers of examples differ.
    """
    if len(x) != len(y):
        raise InputError(
            "`x` and `y` must hold features of the same examples. "
            f"Received: {len(x)} and {len(y)} examples"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return float("nan")
    if not (np.ptp(x, axis=0).any() and np.ptp(y, axis=0).any()):
        return float("nan")
    x, y = (a.astype(np.float64) - a.mean(axis=0, dtype=np.float64) for a in (x, y))
    scale = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(y.T @ x) ** 2 / scale)


def weight_drift(
    before: Sequence[np.ndarray],
    after: Sequence[np.ndarray],
    paths: Sequence[str],
    groups: Groups,
) -> dict[str, float]:
    """Returns how far the weights of each group moved, relative to their size.

    sqrt(sum ||after - before||^2) / sqrt(sum ||before||^2) over a group's weights.

    Args:
        before: Weights, such as the encoder's.
        after: The same weights later.
        paths: Path of each weight's variable.
        groups: Mapping from group name to path patterns.

    Returns:
        By group, without those that hold none of the weights; not finite where a weight
        is not.

    Raises:
        ValueError: If a path is in no group or in several.
    """
    indices = np.array(partition(paths, groups, allow_empty=True))
    with np.errstate(over="ignore", invalid="ignore"):  # weights that diverged
        moved, size = (
            np.array([np.sum(np.square(w, dtype=np.float64)) for w in weights])
            for weights in (
                [np.subtract(a, b) for a, b in zip(after, before, strict=True)],
                before,
            )
        )
    return {
        name: float(np.sqrt(moved[indices == i].sum() / size[indices == i].sum()))
        for i, name in enumerate(groups)
        if (indices == i).any()
    }


def probe_accuracy(
    train: np.ndarray,
    train_labels: np.ndarray,
    validation: np.ndarray,
    validation_labels: np.ndarray,
) -> float:
    """Returns the accuracy of a head that is fitted anew on frozen features.

    A linear probe (arXiv 1610.01644): logistic regression with an L2 penalty on
    features standardised by the training examples. The strength with the best accuracy
    in 5-fold cross-validation of the training examples is taken, the strongest of
    equals; NaN where a feature is not finite. On the features of task A after training
    on task B it tells features that are lost from a head that no longer fits them.

    Args:
        train: Features to fit the head on, shape [examples, width].
        train_labels: Their class numbers, shape [examples].
        validation: Features to evaluate it on, shape [other examples, width].
        validation_labels: Their class numbers.

    Raises:
        ValueError: If no two classes have two training examples each.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, PredefinedSplit
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    counts = np.bincount(train_labels)
    if np.sum(counts >= 2) < 2:
        raise InputError(
            "A probe needs at least two training examples of each of two classes, to "
            f"choose its penalty. Received, by class: {counts.tolist()}"
        )
    if not (np.isfinite(train).all() and np.isfinite(validation).all()):
        return float("nan")
    # Neighbours in the order of classes go to different folds: every class to all.
    folds = np.empty(len(train), int)
    order = np.random.default_rng(0).permutation(len(train))
    order = order[np.argsort(train_labels[order], kind="stable")]
    folds[order] = np.arange(len(train)) % min(_FOLDS, len(train))
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        {"logisticregression__C": _STRENGTHS},
        cv=PredefinedSplit(folds),
    )
    search.fit(train.astype(np.float64), train_labels)
    return float(search.score(validation.astype(np.float64), validation_labels))
