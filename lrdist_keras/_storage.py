"""Files written whole or not at all, JSON read strictly, hashes of contents."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lrdist_keras.errors import InputError


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


def parse_json(text: str | bytes) -> Any:
    """Reads JSON as the standard says, and more strictly than `json`.

    Raises:
        InputError: If it is not JSON, a key stands twice in an object, a number is not
            finite, or it is nested too deeply.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=_without_repeated,
            parse_constant=_refused,
            parse_float=_finite_float,
            parse_int=_short_int,
        )
    except RecursionError:
        raise InputError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise InputError(f"it is not text in UTF-8: {error}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"it is not JSON: {error}") from None


def _without_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise InputError(f"a key stands twice: {', '.join(map(repr, repeated))}")
    return content


def _refused(constant: str) -> Any:
    raise InputError(f"numbers must be finite. Received: {constant}")


def _finite_float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refused(text)


def _short_int(text: str) -> int:
    # Python's own limit on digits is an error of another class.
    return int(text) if len(text) <= 400 else _refused(f"{text[:20]}…")


def finite_or_none(content: Any) -> Any:
    """Returns what JSON can hold: the content with None for what is not finite."""
    if isinstance(content, Mapping):
        return {name: finite_or_none(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite_or_none(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
