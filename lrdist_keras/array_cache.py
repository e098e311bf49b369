"""Arrays in a cache, beside their hashes: what is damaged is made again."""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from lrdist_keras._storage import held, remove_unfinished, sha256_of_file, umask
from lrdist_keras.errors import InputError

Arrays = dict[str, np.ndarray]
_SUMS = "SHA256SUMS"  # of the arrays in a folder of a cache, as `sha256sum -c` reads it
_SUM = re.compile(r"([0-9a-f]{64})  (\w+)\.npy")
_LARGEST_SUMS = 1 << 20  # bytes
# What a killed writer leaves in a cache; `.encoding-` is what earlier versions left.
_UNFINISHED = re.compile(
    r"\.([a-z]+-)?[0-9a-f]{64}(\.np[yz])?\.[a-z0-9_]{8}|\.encoding-[a-z0-9_]{8}"
)


def cached_arrays(
    folder: str | os.PathLike[str],
    make: Callable[[], Mapping[str, np.ndarray]],
    fits: Callable[[Arrays], bool],
    setting: str = "data.cache",
) -> Arrays:
    """Returns arrays from a cache, or makes them and puts them there.

    They lie in a folder of their own, one `.npy` file each, beside their SHA-256. If
    that does not fit, or the arrays do not, they are made again, which one line on
    stderr says. What killed writers have left in the cache is removed.

    Args:
        folder: Folder of these arrays. Its name must hold a hash of all that they
            depend on; the folder above it is the cache.
        make: Computes the arrays; their names may have letters, digits and `_`.
        fits: Whether arrays are of the names and shapes that were asked for.
        setting: What names the cache's folder, for errors.

    Returns:
        The arrays, mapped from their files and read-only.

    Raises:
        InputError: If the cache cannot be read or written.
    """
    folder = Path(folder)
    with cache_errors(folder.parent, setting):
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(folder.parent, _UNFINISHED)
        try:
            if os.path.lexists(folder):
                return _read(folder, fits)
        except _Damaged as error:
            print(
                f"The cache '{folder}' is damaged ({error}); it is made again.",
                file=sys.stderr,
                flush=True,
            )
            _discard(folder)
    arrays = make()
    with cache_errors(folder.parent, setting):
        _write(folder, arrays)
        try:
            return _read(folder, fits)
        except _Damaged as error:
            raise OSError(f"'{folder}' is not what was written: {error}") from None


@contextmanager
def cache_errors(
    cache: str | os.PathLike[str], setting: str = "data.cache"
) -> Iterator[None]:
    """Says how to mend it if a cache cannot be read or written.

    Raises:
        InputError: In place of any OSError in the block.
    """
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(
            f"The cache '{os.fspath(cache)}' must be a folder that can be read and "
            f"written; name another with {setting}, or mend its permissions or the "
            f"space on its disk. Received: {error}"
        ) from error


class _Damaged(Exception):
    """Arrays in a cache are not those that were written."""


def _read(folder: Path, fits: Callable[[Arrays], bool]) -> Arrays:
    """Maps the arrays of a folder, once their hashes were found to be right."""
    if not _regular(folder / _SUMS) or (folder / _SUMS).stat().st_size > _LARGEST_SUMS:
        raise _Damaged(f"no {_SUMS}")
    arrays = {}
    for line in (folder / _SUMS).read_bytes().decode("latin-1").splitlines():
        match = _SUM.fullmatch(line)
        if match is None:
            raise _Damaged(f"{_SUMS} is none")
        expected, name = match.groups()
        path = folder / f"{name}.npy"
        if not _regular(path):
            raise _Damaged(f"no {path.name}")
        if sha256_of_file(path) != expected:
            raise _Damaged(f"{path.name} has another SHA-256")
        try:
            arrays[name] = np.load(path, mmap_mode="r")
        except (ValueError, EOFError) as error:
            raise _Damaged(f"{path.name}: {error}") from None
    if not fits(arrays):
        raise _Damaged("arrays of other names or shapes")
    return arrays


def _write(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays and their hashes into a folder that takes its name once whole.

    Nothing is flushed to the disk: what a crash of the machine tears has another hash.
    """
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        with held(temporary):
            sums = ""
            for name, array in arrays.items():
                path = temporary / f"{name}.npy"
                np.save(path, array, allow_pickle=False)
                sums += f"{sha256_of_file(path)}  {path.name}\n"
            (temporary / _SUMS).write_bytes(sums.encode())
            temporary.chmod(0o777 & ~umask())
            try:
                temporary.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _regular(path: Path) -> bool:
    """Whether a file can be opened: a pipe, for one, would wait for its other end."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _discard(path: Path) -> None:
    """Removes what has this name, at once, though others may do so at the same time."""
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        with suppress(FileNotFoundError):
            path.rename(aside / path.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
