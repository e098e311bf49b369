"""Files written whole or not at all, and hashes of contents."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

_JUST_MADE = 5  # seconds; so young a temporary file may not be held yet
_DAY = 24 * 3600


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a file for writing that takes its name only once it is whole.

    What a killed writer of the same file has left is removed.

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
    remove_unfinished(
        path.parent, re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}")
    )
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with held(temporary):
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~umask())
            os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file as UTF-8, whole or not at all. See `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


def remove_unfinished(folder: Path, names: re.Pattern[str]) -> None:
    """Removes what writers that no longer live have left, as far as that is allowed."""
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if names.fullmatch(entry.name) and _is_abandoned(Path(entry.path)):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    with suppress(OSError):
                        os.unlink(entry.path)


def _is_abandoned(path: Path) -> bool:
    """Whether a temporary file is a day old, or its writer does not hold it.

    One that others may look into is none: temporary files are their owner's alone.
    """
    try:
        status = path.lstat()
        age = time.time() - status.st_mtime
        if os.name == "posix" and status.st_mode & 0o077:
            return False
        if age > _DAY:
            return True
        if age < _JUST_MADE or path.name.startswith(".encoding-"):
            return False
        import fcntl

        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(handle)
    except (ImportError, OSError):  # Windows, file systems without locks; it is held
        return False
    return True


@contextmanager
def held(temporary: str | os.PathLike[str]) -> Iterator[None]:
    """Shows other processes that the writer lives; a killed one lets go by itself."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    handle = os.open(temporary, os.O_RDONLY)
    try:
        with suppress(OSError):  # not every file system has locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def umask() -> int:
    """Returns the process's mask of permissions, which can only be read by setting."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256_of_file(path: Path) -> str:
    """Returns the SHA-256 of a file, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_file(path: Path) -> str:
    """Returns the `digest` of a file's bytes."""
    return digest(np.frombuffer(path.read_bytes(), np.uint8))


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
