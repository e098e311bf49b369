"""The table of groups that `LayerwiseOptimizer.summary` prints."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any


def print_summary(
    learning_rate: float,
    groups: Iterable[tuple[tuple[str, float], Sequence[Any]]],
    decay_of: Callable[[Any], float],
    print_fn: Callable[[str], Any],
) -> None:
    """Prints group, variables, parameters, learning rate and weight decay.

    Args:
        learning_rate: That of multiplier 1.
        groups: Name, multiplier and variables of each group.
        decay_of: The weight decay of a variable.
        print_fn: What prints a line.
    """
    rows = [["group", "variables", "parameters", "rate", "decay"]]
    for (group, multiplier), members in groups:
        rate = learning_rate * multiplier
        decays = [decay for v in members if (decay := decay_of(v))]
        decayed = "-"
        if decays:
            decayed = f"{rate * max(decays):.3e} ({len(decays)}/{len(members)})"
        parameters = sum(math.prod(v.shape) for v in members)
        rows.append(
            [group, f"{len(members)}", f"{parameters:,}", f"{rate:.3e}", decayed]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        print_fn("  ".join(cells))
