"""Results of one run that other runs need too, kept by what they depend on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lrdist_keras._storage import digest
from lrdist_keras.array_cache import Arrays, cached_arrays


@dataclass(frozen=True)
class SharedResults:
    """Where runs find trainings and Fishers that they have in common.

    A result is known by a hash of all that it depends on: weights, examples, rates,
    seed. So a run that takes it gives the bits that it would have computed.

    Args:
        folder: Where results lie, as folders of arrays with their hashes.
        trainings: How many of a run's tasks, from the first, are trained as in another
            run.
        fishers: Whether another run needs the Fisher of the same weights.
    """

    folder: Path
    trainings: int = 0
    fishers: bool = False

    def get(
        self, what: str, depends_on: tuple[str | np.ndarray, ...], make: Callable
    ) -> Arrays:
        """Returns a result, made if it is not there yet.

        Args:
            what: Its kind, such as `training`.
            depends_on: Texts and arrays that determine it.
            make: Computes it: arrays by name.

        Raises:
            InputError: If the folder cannot be read or written.
        """
        folder = self.folder / f"{what}-{digest(what, *depends_on)}"
        return cached_arrays(folder, make, lambda arrays: True, "--out")
