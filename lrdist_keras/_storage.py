"""Files written whole or not at all, and hashes by which caches know their content."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a file for writing that takes its name only once it is whole.

    Args:
        path: Name of the file. Its folder is made where it is missing.

    Yields:
        A binary file in the same folder. It is flushed to the disk and renamed at the
        end of the block; if the block raises, an older file of that name stays.

    Raises:
        OSError: If the folder cannot be written to or the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file as UTF-8, whole or not at all. See `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


def digest(*content: str | np.ndarray) -> str:
    """Returns the SHA-256 of texts and arrays, by which a cache can know them."""
    found = hashlib.sha256()
    for part in content:
        if isinstance(part, np.ndarray):
            head = f"{part.dtype} {part.shape}"
            data = np.ascontiguousarray(part).tobytes()
        else:
            head, data = "text", part.encode()
        found.update(f"{head} {len(data)}\n".encode())
        found.update(data)
    return found.hexdigest()


def without_nan(content: Any) -> Any:
    """Returns what JSON can hold: the content with None for what is not a number."""
    if isinstance(content, Mapping):
        return {name: without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content
