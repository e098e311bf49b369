"""TensorFlow and what brings it, imported late, quietly and without taking a GPU."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from lrdist_keras.errors import InputError

_NOISE = re.compile(r"I\d{4} |WARNING: All log messages before absl|To enable the foll")


def keras_hub() -> Any:
    """Imports KerasHub, which takes TensorFlow along where it is installed."""
    with _quietly():
        with suppress(ModuleNotFoundError):
            _tensorflow()
        import keras_hub

    return keras_hub


def tensorflow_datasets() -> Any:
    """Imports TensorFlow Datasets.

    Raises:
        InputError: If they or TensorFlow, which they need, are not installed.
    """
    try:
        with _quietly():
            _tensorflow()
            import tensorflow_datasets
    except ModuleNotFoundError as error:
        raise InputError(
            "Tasks of TensorFlow Datasets need the packages tensorflow and "
            "tensorflow-datasets; install them, or give the task as files (source = "
            f"'files'). Received: {error}"
        ) from error
    return tensorflow_datasets


def _tensorflow() -> None:
    import tensorflow

    # TensorFlow would take all of a GPU's memory for itself; here it only reads data.
    tensorflow.config.set_visible_devices([], "GPU")


@contextmanager
def _quietly() -> Iterator[None]:
    """Keeps the informational lines of TensorFlow's C++ code off stderr."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            for line in file.read().decode(errors="replace").splitlines():
                if not _NOISE.match(line):
                    print(line, file=sys.stderr)
