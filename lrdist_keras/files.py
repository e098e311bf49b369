"""How the project writes files: under a temporary name, flushed, then renamed."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


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


def package_folder(module: str) -> Path:
    """Returns the folder of an installed package without importing it.

    Raises:
        FileNotFoundError: If no such package is installed.
    """
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"The package '{module}' is not installed; install it with "
            f"`pip install --no-deps {module.replace('_', '-')}`."
        )
    return Path(spec.submodule_search_locations[0])
