"""How a table and a number in it look."""

from __future__ import annotations

import math

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table


def empty_table(title: str) -> Table:
    """Returns a table without rows, in the style of all tables."""
    return Table(
        title=escape(title),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )


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
