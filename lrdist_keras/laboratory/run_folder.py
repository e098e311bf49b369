"""The folder of a run: one process at a time, one configuration, whole records."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lrdist_keras._storage import replacing, write_text
from lrdist_keras.config import Configuration
from lrdist_keras.errors import InputError
from lrdist_keras.laboratory.metrics import METRICS


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
            raise InputError(
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
            raise InputError(
                f"The folder '{folder}' belongs to another configuration; name another "
                f"with --out, or remove it. What differs: {', '.join(differing)}"
            )
    elif (folder / results).exists():
        raise InputError(
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


def claim(configuration: Configuration, folder: Path) -> None:
    """Makes the folder that of this configuration; more seeds may be added later.

    Raises:
        ValueError: If it holds finished runs of another configuration.
        OSError: If it cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        claim_folder(
            folder,
            configuration.model_dump(),
            has_results=bool(read_runs(folder)),
            results="runs.jsonl",
            free=(
                "data.cache",
                "data.download",
                "seeds",
                "search",
                "measures",
                "report",
            ),
        )


def read_runs(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the finished runs of a folder.

    A last line without its end is being written, or what an interruption left: it does
    not count, and that run is done again.

    Raises:
        ValueError: If another line is damaged.
    """
    path = Path(folder) / "runs.jsonl"
    if not path.is_file():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not {"sequence", "arm", "seed", *METRICS} <= set(record):
                raise ValueError
            records.append(record)
        except (ValueError, TypeError):
            raise InputError(
                f"{path}, line {number} is damaged; remove the line to do its run "
                "again."
            ) from None
    return records


def cut_half_a_line(folder: Path) -> None:
    """Removes what an interruption left of a line at the end of `runs.jsonl`."""
    path = folder / "runs.jsonl"
    content = path.read_bytes() if path.is_file() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with replacing(path) as file:
            file.write(whole)
