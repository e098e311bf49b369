"""The folder of a run: one process at a time, one configuration, whole records."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lrdist_keras._storage import write_text
from lrdist_keras.config import Configuration
from lrdist_keras.errors import InputError
from lrdist_keras.strict_json import parse_json
from lrdist_keras.validated import read_validated

CONFIGURATION = "configuration.json"


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


def check_folder(
    folder: Path,
    content: Mapping[str, Any],
    has_results: bool,
    results: str,
    free: Sequence[str],
) -> None:
    """Checks that a folder holds no results of another configuration.

    Args:
        folder: Where results are to lie.
        content: The configuration, as JSON can hold it.
        has_results: Whether there are results already.
        results: Name of the file that holds them.
        free: Paths of keys, such as `data.cache`, that may differ; of a section all.

    Raises:
        InputError: If it does, or does not say of which they are.
    """
    if not has_results:
        return
    path = folder / CONFIGURATION
    if not path.is_file():
        raise InputError(
            f"The folder '{folder}' holds {results} without a {CONFIGURATION}; name "
            "another with --out."
        )
    try:
        old = _leaves(_of_this_version(parse_json(path.read_bytes())))
    except InputError as error:
        raise InputError(
            f"{path} is damaged: {error}. Name another folder with --out, or write the "
            "configuration of its results into it again."
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


def _of_this_version(content: Any) -> Any:
    """Returns a configuration with the keys that later versions have, at default."""
    try:
        return json.loads(Configuration.model_validate(content).model_dump_json())
    except ValidationError:
        return content


def read_configuration(folder: Path) -> Configuration:
    """Reads the configuration of the results in a folder.

    Raises:
        InputError: If it is missing or damaged.
    """
    path = folder / CONFIGURATION
    if not path.is_file():
        raise InputError(
            f"The folder '{folder}' holds no {CONFIGURATION}, so it is no run of "
            "`lrdist compare` or `lrdist search`."
        )
    return read_validated(path, Configuration)


def save_configuration(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes `configuration.json`."""
    write_text(folder / CONFIGURATION, json.dumps(content, indent=2) + "\n")


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
