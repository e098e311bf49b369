"""How a table and a number in it look."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from lrdist_keras.printable import printable


def empty_table(title: str) -> Table:
    """Returns a table without rows, in the style of all tables."""
    return Table(
        title=Text(printable(title), style="table.title"),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )


def cell(text: object) -> Text:
    """Returns a name as a cell that shows it as it is.

    A bare string would be searched for Rich's markup and codes of emojis, and what it
    has of control characters would reach the terminal.
    """
    return Text(printable(text))


def caption(lines: Iterable[str]) -> Text | None:
    """Returns what stands below a table, as it is; None where there are no lines."""
    text = "\n".join(map(printable, lines))
    return Text(text, style="table.caption") if text else None


def short(value: float, sign: str = "") -> str:
    """Three decimals without a leading zero."""
    if math.isnan(value):
        return "-"
    # Adding 0 takes the sign off what is rounded to it.
    text = f"{round(value, 3) + 0.0:{sign}.3f}"
    return text if text.lstrip("+-")[0] != "0" else text.replace("0.", ".", 1)


def with_deviation(mean: float, deviation: float) -> str:
    """Returns mean ± standard deviation as text."""
    if math.isnan(mean):
        return "-"
    if math.isnan(deviation):
        return f"{mean:.3f}"
    return f"{mean:.3f}±" + f"{deviation:.3f}".removeprefix("0")
