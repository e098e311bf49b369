"""What a check of the data found, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from lrdist_keras.printable import printable
from lrdist_keras.report.cells import caption, cell, empty_table

if TYPE_CHECKING:  # as for other tables, without loading what a check needs
    from lrdist_keras.data.checks import SplitSummary
    from lrdist_keras.laboratory.checking import Check

_MOST_CLASSES = 20  # of a task that are shown
_COLORS = {"error": "bold red", "warning": "yellow"}


def tables(found: Check) -> list[Table]:
    """Returns the tables of how many examples there are, how long, of which classes."""
    return [_lengths(found.summaries, found.max_length), _classes(found.summaries)]


def _lengths(summaries: Sequence[SplitSummary], max_length: int) -> Table:
    table = empty_table("Examples and their tokens")
    table.add_column("task", overflow="fold")
    table.add_column("split", no_wrap=True)
    for heading in ("examples", "min", "median", "95 %", "max", "cut"):
        table.add_column(heading, justify="right", no_wrap=True)
    for summary in summaries:
        first = summary.split == "train"
        if first:
            table.add_section()
        table.add_row(
            cell(summary.task if first else ""),
            summary.split,
            f"{summary.examples:,}",
            *(f"{length:,}" for length in summary.lengths),
            f"{summary.cut:.1%}",
        )
    table.caption = caption(
        [
            "Tokens with special ones, of pairs together; 95 %: so many examples have "
            f"no more. cut: share of examples above training.max_length = {max_length}."
        ]
    )
    return table


def _classes(summaries: Sequence[SplitSummary]) -> Table:
    table = empty_table("Classes")
    for heading in ("task", "class"):
        table.add_column(heading, overflow="fold")
    for heading in ("train", "validation"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in dict.fromkeys(summary.task for summary in summaries):
        train, validation = (s.classes for s in summaries if s.task == name)
        beside = name
        table.add_section()
        for i, (label, count) in enumerate(train.items()):
            if i == _MOST_CLASSES:
                table.add_row("", f"and {len(train) - i:,} more")
                break
            counts = f"{count:,}", f"{validation[label]:,}"
            table.add_row(cell(beside), cell(label), *counts)
            beside = ""
    return table


def findings_text(found: Check, most: int | None) -> Text:
    """Returns each finding in a line of its own, and how many there are.

    Args:
        found: What a check found.
        most: How many rows of a source are listed in full, None for all.
    """
    lines = [
        Text.assemble((f"{f.level}:", _COLORS[f.level]), f" {f.text(most)}")
        for f in found.findings
    ]
    lines += [
        Text(f"The clusters of '{printable(name)}' need the model and are not checked.")
        for name in found.unchecked
    ]
    counts = {"error": found.errors, "warning": len(found.findings) - found.errors}
    numbers = [f"{n} {level}{'s' * (n != 1)}" for level, n in counts.items()]
    longest = max((len(r.numbers) for f in found.findings for r in f.rows), default=0)
    left_out = most is not None and longest > most
    hint = " --all lists every row, --json FILE writes them." if left_out else ""
    return Text("\n").join([*lines, Text(f"{' and '.join(numbers)}.{hint}")])
