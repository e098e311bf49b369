"""The finished runs of a folder: one line of `runs.jsonl` each, read with suspicion."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lrdist_keras._storage import digest_of_file, replacing
from lrdist_keras.errors import InputError
from lrdist_keras.laboratory import metrics
from lrdist_keras.laboratory.metrics import METRICS
from lrdist_keras.strict_json import parse_json

NAME = "runs.jsonl"
_Share = Annotated[float, Field(ge=0, le=1)]


class _Logits(BaseModel):
    """Where the logits of a run lie.

    Args:
        file: Their file, relative to the run's folder.
        sha256: The digest of its content.
    """

    model_config = ConfigDict(strict=True, extra="forbid")
    file: str
    sha256: str


class _Record(BaseModel):
    """What every record holds; what is measured beside it may differ."""

    model_config = ConfigDict(strict=True, extra="allow")
    sequence: str
    arm: str
    seed: int
    a1: float | None
    p_s: float | None
    p_o: float | None
    reward: float | None
    forgetting: float | None
    learned: bool
    diverged: bool = False
    accuracy: list[list[_Share | None]] = Field(min_length=1)
    majority_rates: list[_Share]
    examples: list[Annotated[int, Field(ge=1)]]
    logits: _Logits | None = None
    rates: list[dict[str, Annotated[float, Field(gt=0)]]] | None = None


def key_of(record: Mapping[str, Any]) -> tuple[str, str, int]:
    """Returns what a run is known by: sequence, arm and seed."""
    return record["sequence"], record["arm"], record["seed"]


def read_runs(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the finished runs of a folder.

    A last line without its end is being written, or what an interruption left: it does
    not count, and that run is done again.

    Raises:
        InputError: If another line is damaged: it is not JSON, lacks an entry, holds
            one of the wrong type or range, or metrics that do not follow from its
            accuracies; or if two lines are of one run. The message names the lines.
    """
    path = Path(folder) / NAME
    if not path.is_file():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    records: list[dict[str, Any]] = []
    seen: dict[tuple[str, str, int], int] = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = _checked(parse_json(line))
        except InputError as error:
            raise InputError(
                f"{path}, line {number} is damaged; remove the line to do its run "
                f"again. What is wrong: {error}"
            ) from None
        if (key := key_of(record)) in seen:
            sequence, arm, seed = key
            raise InputError(
                f"{path}, lines {seen[key]} and {number} are of the same run: sequence "
                f"'{sequence}', arm '{arm}', seed {seed}; remove one of them."
            )
        seen[key] = number
        records.append(record)
    return records


def _checked(content: Any) -> dict[str, Any]:
    """Returns a record as it is, if it is one.

    Raises:
        InputError: If it is none.
    """
    try:
        record = _Record.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the record"
        raise InputError(f"{where}: {problem['msg']}") from None
    try:
        matrix = np.array(record.accuracy, dtype=float)
    except ValueError:
        raise InputError("accuracy: rows of different lengths") from None
    count = len(matrix)
    if matrix.shape != (count, count) or not (
        len(record.majority_rates) == len(record.examples) == count
    ):
        raise InputError("accuracy, majority_rates, examples: sizes that do not fit")
    if (rates := record.rates) is not None:
        if len(rates) != count:
            raise InputError(f"rates: of {len(rates)} tasks, not {count}")
        if any(of_task.keys() != rates[0].keys() for of_task in rates):
            raise InputError("rates: the groups of the tasks differ")
    for name in METRICS:
        follows = getattr(metrics, name)(matrix)
        stands = math.nan if content[name] is None else content[name]
        if not np.isclose(stands, follows, rtol=0, atol=1e-9, equal_nan=True):
            raise InputError(
                f"{name} is {content[name]}, but its accuracies give {follows:g}"
            )
    return content


def append_run(folder: Path, record: Mapping[str, Any]) -> None:
    """Adds a finished run, flushed to the disk."""
    line = json.dumps(record, allow_nan=False) + "\n"
    with (folder / NAME).open("ab") as file:
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def cut_half_a_line(folder: Path) -> None:
    """Removes what an interruption left of a line at the end of `runs.jsonl`."""
    path = folder / NAME
    content = path.read_bytes() if path.is_file() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with replacing(path) as file:
            file.write(whole)


def save_logits(
    folder: Path, file: str, logits: Mapping[tuple[int, int], np.ndarray]
) -> dict[str, str]:
    """Writes the logits of a run; returns what its record says of them.

    Args:
        folder: Folder of the run.
        file: Name of the file in it, an NPZ.
        logits: Logits of every evaluation at (after task, on task), shape [examples,
            classes] each. They become `after_{i}_on_{j}`.
    """
    arrays = {f"after_{i}_on_{j}": v for (i, j), v in logits.items()}
    with replacing(folder / file) as opened:
        np.savez_compressed(opened, **arrays)  # type: ignore[arg-type]
    return {"file": file, "sha256": digest_of_file(folder / file)}


def lost_logits(folder: Path, record: Mapping[str, Any]) -> bool:
    """Returns whether the logits of a run are missing, or are not its own."""
    told = record.get("logits")
    if told is None:  # of an older version, which did not say
        return False
    path = folder / told["file"]
    return not path.is_file() or digest_of_file(path) != told["sha256"]
