"""What a check of the data found, and how it is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lrdist_keras.data.splits import Rows, Split
from lrdist_keras.errors import InputError
from lrdist_keras.printable import printable


@dataclass(frozen=True)
class Finding:
    """Something in the data that makes results wrong, or worth less than they look.

    Args:
        level: `error` where nothing should be trained before it is mended, else
            `warning`.
        task: The task that it is about.
        sentence: What was found, with its number, and what can be done about it;
            printable, and without the full stop.
        rows: All rows that it is about, by source; empty where they are not known, or
            where it is about all.
    """

    level: Literal["error", "warning"]
    task: str
    sentence: str
    rows: tuple[Rows, ...] = ()

    @property
    def places(self) -> list[tuple[str, int]]:
        """Every row that it is about as (file, line), or (source, row)."""
        return [(r.source, int(number)) for r in self.rows for number in r.numbers]

    def text(self, most: int | None = 20) -> str:
        """Returns it in one line.

        Args:
            most: How many rows of a source are listed in full, see `Rows.listed`.
        """
        rows = "; ".join(part.listed(most) for part in self.rows if len(part.numbers))
        where = f" [{rows}]" if rows else ""
        return f"Task '{printable(self.task)}': {self.sentence}{where}."


def rows_of(split: Split, chosen: np.ndarray) -> tuple[Rows, ...]:
    """Returns the rows of these examples, nothing where nobody knows them.

    Args:
        split: Their split.
        chosen: Indices, or a mask over all examples.
    """
    return () if split.rows is None else (split.rows.take(chosen),)


def errors_of(findings: Sequence[Finding]) -> list[Finding]:
    """Returns those that are errors."""
    return [found for found in findings if found.level == "error"]


def stop_at_errors(findings: Sequence[Finding]) -> None:
    """Stops where something is wrong.

    Raises:
        ValueError: If there are errors; the message names all of them.
    """
    errors = errors_of(findings)
    texts = [found.text() for found in errors]
    if len(texts) > 1:
        texts = [f"({i}) {text}" for i, text in enumerate(texts, start=1)]
        texts.insert(0, f"{len(errors)} things are wrong in the data:")
    if any(found.rows for found in errors):
        texts.append("`lrdist check CONFIG --all` lists every row.")
    if errors:
        raise InputError(" ".join(texts))
