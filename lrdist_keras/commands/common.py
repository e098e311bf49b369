"""What the commands share: options, errors as one line, what is printed last."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from lrdist_keras import interrupts
from lrdist_keras.errors import InputError, SearchFailed
from lrdist_keras.printable import printable

OverridesOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Overrides an entry of CONFIG."),
]
OutOption = Annotated[
    Path | None, typer.Option(help="Folder of the results [runs/NAME].")
]


@contextmanager
def input_errors() -> Iterator[None]:
    """Turns what the user can mend into one line on stderr and exit code 2."""
    try:
        yield
    except (InputError, SearchFailed, OSError) as error:
        lines = [" ".join(str(error).split())]
        if isinstance(error, SearchFailed):  # which holds a traceback
            lines = str(error).splitlines()
        text = "\n".join(map(printable, lines))
        print("lrdist: error:", text, file=sys.stderr)
        raise typer.Exit(2) from None


@contextmanager
def interruptible(
    what: str = "What is finished is kept; the same command goes on from there.",
) -> Iterator[None]:
    """Ends at the first Ctrl-C between two steps, and says how to go on.

    Args:
        what: What is kept, and how to go on.
    """
    try:
        with interrupts.kept_for_steps():
            yield
    except KeyboardInterrupt:
        print(f"lrdist: interrupted. {what}", file=sys.stderr)
        raise typer.Exit(130) from None


def new_console() -> Any:
    """Returns a console of the terminal's width."""
    from rich.console import Console

    return Console()


def print_statistics(configuration: Any, records: list[dict[str, Any]]) -> None:
    """Prints the tables of differences, or one line that says why there are none."""
    from lrdist_keras.laboratory.results import paired_statistics
    from lrdist_keras.laboratory.statistics import NoStatistics
    from lrdist_keras.report import comparison_tables

    try:
        found = paired_statistics(configuration, records)
    except NoStatistics as error:
        print(f"No statistics: {error}")
        return
    console = new_console()
    for table in comparison_tables.statistics_tables(found):
        console.print(table)
    if found.equal_p_s is None:
        print(
            "No comparison at equal p_s: the flat-rate curve takes at least two flat "
            "arms, of strategy plain with one `rate` for all groups."
        )


def print_compat(compat: Sequence[str]) -> None:
    """Prints the line that names the faults that were on, if any was."""
    from lrdist_keras.report.tables import compat_line

    if line := compat_line(compat):
        print(line)


def print_compilations() -> None:
    """Prints how many programs were compiled and how many came from the cache."""
    from lrdist_keras.training.compiler import compilations

    print(f"Programs: {compilations.compiled} compiled, {compilations.cached} cached")
