"""The clusters of a task, and the embeddings that they are of, computed once."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from lrdist_keras._storage import digest
from lrdist_keras.array_cache import Arrays, cached_arrays
from lrdist_keras.data.batches import Encoded
from lrdist_keras.data.shifts import Part, cluster_shift
from lrdist_keras.models.layer_features import FeatureReader

_FORMAT = "2"  # of the cache; part of its keys


def cached_cluster_shift(
    reader: FeatureReader,
    train: Encoded,
    validation: Encoded,
    clusters: int,
    seed: int,
    cache: str | os.PathLike[str],
    fit_on_validation: bool = False,
) -> list[Part]:
    """Divides a task by clusters of what the pretrained encoder makes of its texts.

    See `cluster_shift`. Embeddings and clusters are kept in folders of the cache, whose
    names are hashes of all that they depend on: the encoder's weights, the ids of the
    texts, and for the clusters also their number, the seed and scikit-learn's version.

    Raises:
        ValueError: If there are fewer examples to fit than clusters.
        InputError: If the cache cannot be read or written.
    """
    import sklearn

    cache, model = Path(cache), reader.encoder.digest
    count = len(train) + len(validation)
    keys = [digest(_FORMAT, model, data.digest) for data in (train, validation)]

    def embeddings(key: str, data: Encoded) -> np.ndarray:
        read = partial(reader.last, reader.encoder.weights, data)
        shape = (len(data), reader.encoder.width)
        return _cached(cache / f"embeddings-{key}", read, shape, np.float32)

    def clusters_of_all() -> np.ndarray:
        parts = cluster_shift(
            embeddings(keys[0], train),
            embeddings(keys[1], validation),
            clusters,
            seed,
            fit_on_validation,
        )
        found = np.zeros(count, np.int32)
        for i, part in enumerate(parts):
            found[part.train] = found[len(train) + part.validation] = i
        return found

    what = [*keys, clusters, seed, fit_on_validation, sklearn.__version__]
    name = digest(*map(str, what))
    found = _cached(cache / f"clusters-{name}", clusters_of_all, (count,), np.int32)
    return [
        Part(
            f"cluster {i + 1}",
            np.flatnonzero(found[: len(train)] == i),
            np.flatnonzero(found[len(train) :] == i),
        )
        for i in range(clusters)
    ]


def _cached(
    folder: Path,
    compute: Callable[[], np.ndarray],
    shape: tuple[int, ...],
    dtype: type[np.generic],
) -> np.ndarray:
    """Returns an array of this shape from a folder of the cache, computed once."""

    def fits(arrays: Arrays) -> bool:
        kept = arrays.get("array")
        return kept is not None and (kept.shape, kept.dtype) == (shape, dtype)

    kept = cached_arrays(folder, lambda: {"array": compute()}, fits)
    return np.array(kept["array"])
